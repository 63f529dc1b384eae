"""The command line: packaged grids by name, one program name, one function for each subcommand."""

import argparse
import os
import re
from pathlib import Path

import pytest

from contseg import __version__, run_benchmark
from contseg.benchmark.cli.arguments import grid_file, packaged
from contseg.datasets.errors import UserError
from contseg.tests.material import ROOT


def subcommands() -> dict[str, argparse.ArgumentParser]:
    (found,) = [a for a in run_benchmark.parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(found.choices)


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "benchmark/configs").glob("*.toml")))
def test_a_packaged_grid_has_a_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = ROOT / "benchmark/configs" / f"{name}.toml"
    assert grid_file(name) == grid_file(f"{name}.toml") == expected == packaged()[name]


def test_a_file_of_the_user_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.toml").touch()
    assert grid_file("demo.toml") == Path("demo.toml")
    assert grid_file("demo") == packaged()["demo"]
    assert grid_file("sub/demo.toml") == Path("sub/demo.toml")  # a path; read_config says that it is not there


@pytest.mark.parametrize("text", ["demoo", "Demo.toml", "dem"])
def test_an_unknown_grid_is_told_with_the_nearest_name(text: str) -> None:
    name = text.removesuffix(".toml")
    with pytest.raises(UserError, match=rf"^unknown configuration '{name}': did you mean 'demo'\? Known: ade, .*; or "):
        grid_file(text)


def test_list_configs_names_every_packaged_grid(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_benchmark.main(["list", "configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:] if line.strip()] == sorted(packaged())
    assert "SDR" in next(line for line in lines if "sdr_paper" in line)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run_benchmark.main(["--version"])
    assert not left.value.code and capsys.readouterr().out == f"contseg {__version__}\n"


def test_the_program_is_called_contseg() -> None:
    assert run_benchmark.parser().prog == "contseg"
    for name, command in subcommands().items():
        assert command.prog == f"contseg {name}"
    said = re.findall(r"^.*run_benchmark\.py\b.*$", run_benchmark.parser().format_help(), re.M)
    assert [line.split()[0] for line in said] == ["accelerate", "In"]  # a launcher needs the file; a checkout has it


def test_every_subcommand_names_its_function() -> None:
    for command in subcommands().values():
        assert callable(command.get_default("run"))


@pytest.mark.parametrize("name", sorted(subcommands()))
def test_the_help_of_a_subcommand_has_examples_of_it(name: str) -> None:
    shown = subcommands()[name].format_help().partition("\nexamples:\n")[2].splitlines()
    first = [line.split()[1] for line in shown if line.startswith("  contseg ")]
    assert first[:1] == [name] and set(first) <= {name, "run"}


def test_list_scenarios_warns_of_names_that_differ(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_benchmark.main(["list", "scenarios"]) == 0
    short = capsys.readouterr().out
    assert "5-6-8@cil" in short and "AWT" not in short
    assert run_benchmark.main(["list", "scenarios", "--long"]) == 0
    lines = capsys.readouterr().out.splitlines()
    awt = next(line for line in lines if line.split()[:1] == ["AWT"])
    assert "voc 15-1a ... 15-1j" in awt and "15-1@b ... 15-1@k" in awt and "one letter off" in awt


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["run", "--methds", "FT"],
            "unrecognized arguments: --methds FT (did you mean --methods?); see `contseg run --help`",
        ),
        (
            ["plan", "--trials", "3"],
            "unrecognized arguments: --trials 3 (--trials belongs to `tune`); see `contseg plan --help`",
        ),
        (["cache", "list", "--methods", "FT", "--select=first"], "unrecognized arguments: --select=first (did you"),
        (["run", "FT"], "unrecognized arguments: FT; see `contseg run --help`"),
        (["run", "--seeds", "x"], "argument --seeds: invalid int value: 'x'; see `contseg run --help`"),
        (["rn"], "argument COMMAND: invalid choice: 'rn' (choose from "),
    ],
)
def test_words_that_no_command_takes(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, without the list of all options."""
    with pytest.raises(SystemExit) as left:
        run_benchmark.main(words)
    (said,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and said.startswith(f"error: {line}")


@pytest.mark.parametrize(
    ("words", "name", "path"),
    [
        (["run", "--out=~/x"], "out", "x"),
        (["run", "--out", "~/x"], "out", "x"),
        (["run", "--config=~/grid.toml"], "config", "grid.toml"),
        (["data", "prepare", "voc", "--root=~/voc"], "root", "voc"),
        (["report", "--records=~/a", "--figures=~/f"], "records", "a"),
        (["plan", "--plugin=~/my.py"], "plugin", "my.py"),
    ],
)
def test_the_folder_of_the_user_is_found_where_the_shell_leaves_it(
    words: list[str], name: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell does not expand ``--out=~/x``, and a folder called ~ was made."""
    monkeypatch.setenv("HOME", str(tmp_path))
    found = getattr(run_benchmark._parse(run_benchmark.parser(), words), name)
    assert [Path(p) for p in found] == [tmp_path / path] if isinstance(found, list) else found == tmp_path / path


def test_a_report_passes_by_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "records").mkdir()
    os.mkfifo(tmp_path / "records/step0.json")
    assert run_benchmark.main(["report", "--out", str(tmp_path)]) == 2
    assert "step0.json: unreadable or cut short (not a regular file)" in capsys.readouterr().err
