"""Imports point one way, the tree keeps its shape, and nothing heavy lies on the way of ``--help``."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from contseg.tests.benchmarks.field import write_cache
from contseg.tests.material import ROOT
from contseg.tests.records import make_run, write_records

# Each wing of `benchmark/` may import the wings to its left, never one to its right (docs/architecture.md).
WINGS = ("store", "plan", "models", "train", "contract", "score", "report", "site", "submit", "cli")
PARTS = ("benchmark", "datasets", "methods", "run_benchmark.py")

# folder or file -> what of ours it may import, and which third parties (None: any)
RULES: dict[str, tuple[tuple[str, ...], set[str] | None]] = {
    "datasets": (("datasets",), {"torch", "torchvision", "numpy", "PIL", "tqdm", "scipy", "pycocotools"}),
    "methods": (("methods", "datasets.scenario", "datasets.errors"), {"torch", "msgspec"}),
    **{
        f"benchmark/{wing}": ((*(f"benchmark.{w}" for w in WINGS[: i + 1]), "methods", "datasets"), None)
        for i, wing in enumerate(WINGS)
    },
    "run_benchmark.py": (("benchmark.cli", "datasets.errors"), set()),
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
        package = ".".join(("contseg", *path.relative_to(ROOT).parent.parts))
        for name in imported(path.read_text(encoding="utf-8"), package):
            root, _, inside = name.partition(".")
            if root == "contseg":
                allowed = inside == "__version__" or any(inside == m or inside.startswith(f"{m}.") for m in ours)
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


def modules() -> dict[str, Path]:
    return {
        ".".join(("contseg", *p.relative_to(ROOT).with_suffix("").parts)): p for part in PARTS for p in sources(part)
    }


def test_no_two_files_import_each_other() -> None:
    """No circle, whether an import stands at the top of a file or inside a function."""
    known = modules()
    reads = {}
    for name, path in known.items():
        found = imported(path.read_text(encoding="utf-8"), name.rpartition(".")[0])
        reads[name] = {m if m in known else m.rpartition(".")[0] for m in found} & set(known) - {name}
    left = dict(reads)
    while free := [n for n, needed in left.items() if not needed & set(left)]:
        for name in free:
            del left[name]
    assert sorted(left) == []


# --- the shape of the tree ----------------------------------------------------------------------------------------


def test_every_wing_is_small_and_known() -> None:
    inside = {p.name for p in (ROOT / "benchmark").iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert inside == set(WINGS)
    for folder in [ROOT / "benchmark" / wing for wing in WINGS] + [ROOT / "datasets", *(ROOT / "datasets").glob("*/")]:
        assert len([p for p in folder.glob("*.py") if p.name != "__init__.py"]) <= 15, folder


def test_no_file_is_long() -> None:
    long = {str(p.relative_to(ROOT)): n for p in modules().values() if (n := len(p.read_text().splitlines())) > 400}
    assert long == {}


def test_at_most_five_positional_arguments() -> None:
    """``self`` and ``cls`` do not count, nor ``forward`` of an autograd function, which torch calls by position.

    What comes behind a bare ``*`` has to be named.
    """
    many = []
    for path in modules().values():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        kinds = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
        autograd = [n for n in kinds if "torch.autograd.Function" in map(ast.unparse, n.bases)]
        exempt = [f for kind in autograd for f in kind.body if isinstance(f, ast.FunctionDef) and f.name == "forward"]
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node not in exempt:
                names = [a.arg for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in ("self", "cls")]
                if len(names) > 5:
                    many.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert many == []


def test_every_folder_of_the_package_is_installed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = ["contseg"] + [
        ".".join(("contseg", *p.parent.relative_to(ROOT).parts))
        for part in PARTS[:3]
        for p in (ROOT / part).rglob("__init__.py")
    ]
    assert sorted(listed) == sorted(there)


# --- what is loaded -----------------------------------------------------------------------------------------------


def loaded_by(code: str, suspects: set[str]) -> set[str]:
    """Which of the suspects are in ``sys.modules`` after the code ran in a fresh interpreter."""
    report = f"{code}\nimport sys\nprint('loaded:', *({suspects!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-P", "-c", report], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


HEAVY = {"torch", "torchvision", "accelerate", "pandas", "numpy", "matplotlib"}


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
    assert loaded_by(f"import contseg.{module}", HEAVY) == set()


def test_methods_load_no_torchvision() -> None:
    code = "from contseg.methods.registry import methods\nmethods()"
    assert loaded_by(code, {"torchvision", "accelerate"}) == set()


def test_a_plan_loads_no_torchvision(tmp_path: Path) -> None:
    words = ["plan", "--scenarios", "shapes/3-3/overlapped", "--methods", "FT", "MiB+SDR", "--out", str(tmp_path)]
    run = f"from contseg import run_benchmark\nassert run_benchmark.main({words!r}) == 0"
    assert loaded_by(run, {"torchvision", "accelerate", "matplotlib"}) == set()


@pytest.mark.parametrize("words", [["report", "--records", "DIR"], ["cache", "list"]])
def test_what_only_reads_loads_no_torch(words: list[str], tmp_path: Path) -> None:
    write_records(tmp_path, make_run(external=[]))
    write_cache(tmp_path, 1)
    words = [*(str(tmp_path) if word == "DIR" else word for word in words), "--out", str(tmp_path)]
    run = f"from contseg import run_benchmark\nassert run_benchmark.main({words!r}) == 0"
    assert loaded_by(run, {"torch", "torchvision", "accelerate", "matplotlib"}) == set()
