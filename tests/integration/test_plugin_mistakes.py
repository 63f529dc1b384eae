"""Mistakes in a method plugin: one line in `check`, `plan` and `run` alike, with the line of the plugin."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from contseg import run_benchmark
from contseg.methods import registry
from contseg.tests.integration.grid import call, small

PLUGIN = """
from dataclasses import dataclass
from contseg.methods.base import Batch, CrossEntropy, Method, Term
from contseg.methods.registry import register_method

class Vector(Term):
    def __call__(self, batch: Batch):
        return batch.logits.mean((1, 2, 3))

class Number(Term):
    def __call__(self, batch: Batch):
        return batch.logits.mean().item()

class Crash(Term):
    def __call__(self, batch: Batch):
        return batch.logits @ batch.labels

@register_method("Vector")
def vector() -> Method:
    return Method("Vector", {"ce": CrossEntropy(), "mine": Vector()})

@register_method("Number")
def number() -> Method:
    return Method("Number", {"ce": CrossEntropy(), "mine": Number()})

@register_method("Crash")
def crash() -> Method:
    return Method("Crash", {"ce": CrossEntropy(), "mine": Crash()})

@register_method("Listed")
def listed() -> Method:
    return Method("Listed", [CrossEntropy()])
"""
SAID = {
    "Vector": "'mine' gives a tensor of shape (4,): a loss is a scalar (my_mistake.py, line 6)",
    "Number": "'mine' gives a float: give the scalar tensor itself, without .item() (my_mistake.py, line 10)",
    "Crash": "(my_mistake.py, line 16)",
}


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Path]:
    """The file; afterwards it is forgotten."""
    path = tmp_path / "my_mistake.py"
    path.write_text(PLUGIN)
    registry.methods()
    before = [dict(table) for table in (registry._METHODS, registry._ADDONS)]
    yield path
    for name in ("my_mistake", "my_second"):
        sys.modules.pop(name, None)
    for table, saved in zip((registry._METHODS, registry._ADDONS), before, strict=True):
        table.clear()
        table.update(saved)


def main(*words: object) -> int:
    return run_benchmark.main([str(word) for word in words])


def test_check_names_each_and_its_exit_code_counts_all(plugin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("check", *SAID, "Joint", "--plugin", plugin) == 1
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert [line.split()[0].rstrip(":") for line in lines] == [*SAID, "Joint"]
    for line, expected in zip(lines, SAID.values(), strict=False):
        assert line.endswith(expected)
    assert "Traceback" not in told.err


def test_a_report_is_shown_as_soon_as_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from contseg.benchmark.contract import check

    class Stop(BaseException):
        pass

    def checked(name: str) -> check.Report:
        if name == "MiB":
            raise Stop
        return check.Report(name, 1)

    shown: list[str] = []
    monkeypatch.setattr(check, "check_method", checked)
    monkeypatch.setattr("contseg.benchmark.cli.commands.say", shown.append)
    with pytest.raises(Stop):
        main("check", "FT", "MiB")
    assert shown == ["FT: all 1 rules hold"]


def test_run_names_each_and_the_others_go_on(plugin: Path, tmp_path: Path) -> None:
    assert main("plan", *small(tmp_path, *SAID), "--plugin", plugin) == 0  # it runs no term
    done = call("run", *small(tmp_path, "FT", *SAID), "--plugin", plugin)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    for name, expected in SAID.items():
        assert any(f" {name} seed 0: " in line and line.endswith(expected) for line in done.stderr.splitlines()), name
    assert "FT" in (tmp_path / "leaderboard.csv").read_text()


@pytest.mark.parametrize("command", ["check", "plan", "run"])
def test_terms_in_a_list(plugin: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["Listed"] if command == "check" else small(tmp_path / "out", "Listed")
    assert main(command, *words, "--plugin", plugin) == 2
    told = capsys.readouterr()
    assert "terms is a list: give a dictionary" in told.err and "(my_mistake.py, line 32)" in told.err
    assert len(told.err.splitlines()) == 1
    assert told.out == ""


def test_a_name_that_is_unknown_is_told_before_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("check", "FT", "FTT") == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "unknown method 'FTT': did you mean 'FT'?" in told.err


@pytest.mark.parametrize("command", ["check", "list", "plan"])
def test_a_plugin_that_registers_nothing(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "my_nothing.py"
    path.write_text("x = 1\n")
    words = {"check": ["FT"], "list": ["methods"], "plan": small(tmp_path, "FT")}[command]
    assert main(command, *words, "--plugin", path) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert f"plugin '{path}' registers nothing: put @register_method" in told.err


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("my_own", "plugin 'my_own' is no module that can be found: did you mean my_own.py?"),
        (
            "note.txt",
            "plugin 'note.txt' is no Python file: give the path of a file FILE.py, or the name of an installed",
        ),
        ("a b", "plugin 'a b' is no module that can be found: give the path of a file"),
        ("torch.nothere", "plugin 'torch.nothere' is no module that can be found: give the path"),
        ("nothere.x", "plugin 'nothere.x' is no module that can be found: give the path"),
        ("x..y", "plugin 'x..y' is no module that can be found: give the path"),
    ],
)
def test_a_plugin_that_is_not_there(
    spec: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("my_own.py", "note.txt"):
        Path(name).touch()
    assert main("list", "methods", "--plugin", spec) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: {line}")


def test_plugins_named_one_after_the_other_are_all_loaded(
    plugin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = tmp_path / "my_second.py"
    names = ("Vector", "Number", "Crash", "Listed")
    text = PLUGIN
    for name in names:
        text = text.replace(f'@register_method("{name}")', f'@register_method("{name}2")')
    second.write_text(text)
    assert main("list", "methods", "--plugin", plugin, "--plugin", second, "--plugin", plugin) == 0
    assert {*names, "Crash2"} <= set(capsys.readouterr().out.split())
