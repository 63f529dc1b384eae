"""Long work says how far it is: a bar on a terminal, whole lines elsewhere."""

import sys
from collections.abc import Iterator

import pytest
from tqdm import tqdm

from contseg.benchmark.cli.arguments import say
from contseg.datasets import progress as module
from contseg.datasets.progress import Lines, progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Seconds that a test turns on by hand."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    yield now


def test_on_a_terminal_it_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress(None, "work", total=3) as bar:
        assert type(bar) is tqdm


def test_short_work_writes_nothing_into_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(3), "work")) == [0, 1, 2]
    with progress(None, "work", total=3, leave=True) as bar:
        bar.update()
        bar.set_postfix({"ce": 1})
    assert capsys.readouterr() == ("", "")


def test_long_work_writes_a_line_every_30_seconds(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress(None, "MiB step 1", total=40, initial=10, unit="update") as bar:
        assert isinstance(bar, Lines)
        for _ in range(13):
            clock[0] += 10
            bar.update()
            bar.set_postfix_str("ce=0.5")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == [f"MiB step 1: update {10 + n} of 40" for n in (3, 6, 9, 12)]
    assert all("so far, about " in line and "\r" not in line for line in lines) and lines[1].endswith("left, ce=0.5")


def test_lines_get_rarer(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress(None, "steps", unit="step", total=24 * 360) as bar:
        for _ in range(24 * 360):
            clock[0] += 10
            bar.update()
            bar.refresh()
    assert 60 < len(capsys.readouterr().err.splitlines()) < 140  # of a day


def test_unknown_length_and_bytes(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    for total in (None, 4096):
        with progress(None, "a.zip", total=total, unit="B", unit_scale=True, unit_divisor=1024) as bar:
            clock[0] += 31
            bar.update(2048)
            bar.refresh()
    unknown, known = capsys.readouterr().err.splitlines()
    assert unknown.startswith("a.zip: 2.00k B, ") and known.startswith("a.zip: 2.00kB of 4.00kB, ")


def test_what_is_said_in_between_is_a_line_of_its_own(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    for _ in progress(range(2), "check", unit="method"):
        clock[0] += 31
        say("MiB: all rules hold")
    out, err = capsys.readouterr()
    assert out == "MiB: all rules hold\n" * 2
    assert err.startswith("check: method 0 of 2, ") and err.count("\n") == 2 and "\r" not in err
