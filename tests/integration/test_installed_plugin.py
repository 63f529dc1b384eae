"""A plugin of an installed package: found without an option, named by its package, and harmless where it is broken."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from contseg.tests.integration.grid import call, small
from contseg.tests.material import search_path

PLUGIN = """
from dataclasses import dataclass
from contseg.datasets.base import register_dataset
from contseg.datasets.formats.shapes import Shapes
from contseg.methods.base import CrossEntropy, Method, Term
from contseg.methods.registry import register_method

@dataclass(eq=False)
class Broken(Term):
    def __call__(self, batch):
        raise ZeroDivisionError("as planted")

@register_method("{name}")
def mine(trains: bool = True) -> Method:
    '''My method.'''
    return Method("{name}", terms={{"ce": CrossEntropy()}} if trains else {{"ce": CrossEntropy(), "mine": Broken()}})

@register_dataset("shapes_of_{name}")
class Mine(Shapes):
    '''My data.'''
"""
Command = Callable[..., subprocess.CompletedProcess[str]]


def install(site: Path, name: str, text: str) -> None:
    """A distribution of one module, as pip would leave it."""
    module = name.replace("-", "_")
    info = site / f"{module}-1.5.dist-info"
    info.mkdir(parents=True)
    (site / f"{module}.py").write_text(text)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    (info / "RECORD").write_text(f"{module}.py,,\n")
    (info / "top_level.txt").write_text(f"{module}\n")
    (info / "entry_points.txt").write_text(f"[contseg.plugins]\nmine = {module}\n")


@pytest.fixture
def contseg(tmp_path: Path) -> Command:
    """The real command beside two installed plugins, one of which cannot be loaded."""
    site = tmp_path / "site-packages"
    install(site, "good-plugin", PLUGIN.format(name="Good"))
    install(site, "bad-plugin", PLUGIN.format(name="Bad") + "import no_such_module_at_all\n")
    return lambda *words: call(*words, PYTHONPATH=search_path(site))


def test_a_broken_one_is_one_line_and_stops_nobody_else(contseg: Command) -> None:
    done = contseg("list")
    assert (done.returncode, done.stderr) == (
        0,
        "warning: plugin 'mine' of the installed package bad-plugin 1.5 could not be loaded: ModuleNotFoundError: No "
        f"module named 'no_such_module_at_all' (bad_plugin.py, line {len(PLUGIN.splitlines()) + 1})\n",
    )
    rows = {row.split()[0]: row for row in done.stdout.splitlines() if row.strip()}
    assert rows["Good"].endswith(" good-plugin 1.5") and "1.5" not in rows["MiB"]
    assert "Bad" not in rows and "shapes_of_Good" in rows


def test_what_a_broken_one_would_bring_is_an_error_that_names_it(contseg: Command) -> None:
    done = contseg("check", "Bad")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: unknown method 'Bad': ")
    assert done.stderr.endswith("; could not be loaded: bad-plugin 1.5\n")


def test_a_data_set_is_known_without_a_method(contseg: Command, tmp_path: Path) -> None:
    done = contseg("data", "show", "shapes_of_Good/3-3/overlapped", "--out", tmp_path / "page.png")
    assert done.returncode == 0, done.stderr


def test_a_mistake_of_its_method_is_one_line_of_its_file(contseg: Command, tmp_path: Path) -> None:
    done = contseg("run", *small(tmp_path / "out", "Good[trains=false]"))
    line = PLUGIN.splitlines().index('        raise ZeroDivisionError("as planted")') + 1
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert f"ZeroDivisionError: as planted (good_plugin.py, line {line})" in done.stderr
