"""Imports point one way, and nothing heavy lies on the way of ``--help`` (docs/architecture.md)."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.material import ROOT

OURS = {"run_benchmark", "benchmark", "methods", "datasets", "tests", "results"}

# folder or file -> what of ours it may import, and which third parties (None: any)
RULES: dict[str, tuple[set[str], set[str] | None]] = {
    "datasets": ({"datasets"}, {"torch", "torchvision", "numpy", "PIL", "tqdm", "scipy", "pycocotools"}),
    "methods": ({"methods", "datasets.scenario", "datasets.errors"}, {"torch", "msgspec"}),
    "benchmark": ({"benchmark", "methods", "datasets"}, None),
    "run_benchmark.py": ({"benchmark", "datasets.errors"}, set()),
}


def sources(part: str) -> list[Path]:
    path = ROOT / part
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def imported(text: str, package: str) -> Iterator[str]:
    """Every module that a source names in an import, wherever it stands; ``package`` resolves relative ones."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            # ``from datasets import scenario`` and ``from datasets.scenario import Step`` name the same module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def offences(part: str) -> list[str]:
    ours, third_parties = RULES[part]
    found = []
    for path in sources(part):
        package = ".".join(path.relative_to(ROOT).parent.parts)
        for name in imported(path.read_text(encoding="utf-8"), package):
            root = name.partition(".")[0]
            if root in OURS:
                allowed = any(name == m or name.startswith(f"{m}.") for m in ours)
            else:
                allowed = third_parties is None or root in third_parties or root in sys.stdlib_module_names
            if not allowed:
                found.append(f"{path.relative_to(ROOT)} imports {name}")
    return found


@pytest.mark.parametrize("part", RULES)
def test_imports_point_one_way(part: str) -> None:
    assert sources(part)
    assert offences(part) == []


def test_the_reader_of_imports_sees_every_form() -> None:
    text = (
        "import a.b, c\nfrom d import e\ndef f():\n    from . import g\n    from .h import i\n    from ..j import k\n"
    )
    assert list(imported(text, "p.q")) == ["a.b", "c", "d.e", "p.q.g", "p.q.h.i", "p.j.k"]


def loaded_by(code: str, suspects: set[str]) -> set[str]:
    """Which of the suspects are in ``sys.modules`` after the code ran in a fresh interpreter."""
    report = f"{code}\nimport sys\nprint('loaded:', *({suspects!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", report], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


HEAVY = {"torch", "torchvision", "accelerate", "pandas", "numpy", "sklearn", "matplotlib"}


def test_help_loads_nothing_heavy() -> None:
    run = (
        "import runpy, sys\n"
        "sys.argv = ['run_benchmark.py', '--help']\n"
        "try:\n"
        "    runpy.run_path('run_benchmark.py', run_name='__main__')\n"
        "except SystemExit as leave:\n"
        "    assert not leave.code\n"
    )
    assert loaded_by(run, HEAVY) == set()


@pytest.mark.parametrize("module", ["datasets", "datasets.scenario", "datasets.errors", "methods.registry"])
def test_names_are_known_without_anything_heavy(module: str) -> None:
    assert loaded_by(f"import {module}", HEAVY) == set()


def test_methods_load_no_torchvision() -> None:
    assert loaded_by("from methods.registry import methods\nmethods()", {"torchvision", "accelerate"}) == set()


def test_a_plan_loads_no_torchvision(tmp_path: Path) -> None:
    words = ["plan", "--scenarios", "shapes/3-3/overlapped", "--methods", "FT", "MiB+SDR", "--out", str(tmp_path)]
    run = f"import run_benchmark\nassert run_benchmark.main({words!r}) == 0"
    assert loaded_by(run, {"torchvision", "accelerate", "sklearn", "matplotlib"}) == set()
