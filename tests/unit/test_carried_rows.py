"""What a search chose is called so wherever its runs go: on the site, in a submission, and where it is merged."""

import re
import shutil
from pathlib import Path

import pytest

from contseg import run_benchmark
from contseg.benchmark.plan.protocol import PROTOCOLS
from contseg.benchmark.report.reporter import leaderboard
from contseg.benchmark.score.rows import carry_rows, read_rows
from contseg.benchmark.score.submissions import verify
from contseg.benchmark.submit.board import Board, Judged, Version
from contseg.benchmark.submit.pack import Replaces, Submission, pack, read_submission
from contseg.benchmark.submit.pages import boards, difference
from contseg.tests.records import make_run, write_records

FT, MIB = make_run("FT"), make_run("MiB[kd=3]")
ROW = 'method = "MiB[kd=3]"\ntrial = 1\nruns = ["{}"]\n'
SEARCH = '[search]\non = "first"\nscenario = "toy/[1|2]/overlapped"\ntrials = 4\ndraw = 0\nrecord = "{}"\n\n[[row]]\n'
NAME = "MiB[kd=3], tuned on first (toy/[1|2]/overlapped), 4 trials"
TRIALS = "df979e1a.csv"  # the SHA-256 of what it holds


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A results folder with two runs, one of which a search chose."""
    folder = write_records(tmp_path / "results", [*FT, *MIB])
    (folder / "tuned").mkdir()
    (folder / "tuned" / "a.toml").write_text(SEARCH.format(TRIALS) + ROW.format(MIB[0]["run"]))
    (folder / "tuned" / TRIALS).write_text("trials\n")
    return folder


def packed(results: Path, out: Path) -> Submission:
    pack(results, verify([*FT, *MIB]), out)
    submission, faults = read_submission(out)
    assert submission is not None and faults == []
    return submission


def test_the_site_calls_a_tuned_row_so(results: Path, tmp_path: Path) -> None:
    assert run_benchmark.main(["site", str(results), "--out", str(tmp_path / "site")]) == 0
    page = (tmp_path / "site/scenario/toy-2-1-overlapped.html").read_text()
    assert "MiB, tuned on first, 4 trials" in page and "not ranked together" in page


def test_a_damaged_file_of_rows_is_named_when_a_site_is_built(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (results / "tuned" / "a.toml").write_text("[search")
    assert run_benchmark.main(["site", str(results), "--out", str(tmp_path / "site")]) == 2
    assert "not a table of tuned rows" in capsys.readouterr().err


def test_rows_are_carried_for_the_runs_that_go_and_no_others(results: Path, tmp_path: Path) -> None:
    carry_rows([results], {FT[0]["run"]}, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    carry_rows([results], {MIB[0]["run"]}, tmp_path / "one")
    assert read_rows([tmp_path / "one"]) == read_rows([results])
    assert (tmp_path / "one" / "tuned" / TRIALS).read_text() == "trials\n"


def test_trials_that_are_not_what_their_name_says_stay(results: Path, tmp_path: Path) -> None:
    (results / "tuned" / TRIALS).write_text("other\n")
    carry_rows([results], {MIB[0]["run"]}, tmp_path / "one")
    (tuned,) = read_rows([tmp_path / "one"])[0].values()
    assert tuned[0].search.record == "" and [p.suffix for p in (tmp_path / "one" / "tuned").iterdir()] == [".toml"]


def test_a_submission_takes_the_search_of_its_runs_along(results: Path, tmp_path: Path) -> None:
    submission = packed(results, tmp_path / "our-lab")
    version = Version(1, "our-lab", submission.seal, "", "")
    board = Board(tmp_path, (version,), {"our-lab": submission})
    (table,) = boards(board.records(), board.searches())
    assert table.frame["method"].tolist() == ["FT", NAME]
    assert table.frame["tuned_on"].tolist() == ["no search", NAME.partition("tuned on ")[2]]


def test_the_comment_says_what_the_next_version_shows(results: Path, tmp_path: Path) -> None:
    """The same runs again, without the search: the row changes its name, as in the version that follows."""
    first = packed(results, tmp_path / "our-lab")
    board = Board(tmp_path, (Version(1, "our-lab", first.seal, "", ""),), {"our-lab": first})
    shutil.rmtree(results / "tuned")
    pack(results, verify([*FT, *MIB]), tmp_path / "again", replaces=Replaces("our-lab", "the search was another's"))
    again, _ = read_submission(tmp_path / "again")
    lines = difference(board, Judged(again, ())).splitlines()[2:]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert [row[:4] for row in cells] == [
        ["new", "`toy/2-1/overlapped`", "`sdr`", "`MiB[kd=3]`"],
        ["removed", "`toy/2-1/overlapped`", "`sdr`", f"`{NAME}`".replace("|", r"\|")],
    ]
    assert {len(row) for row in cells} == {8}  # a bar would have ended the cell


def test_a_submission_cannot_say_that_runs_of_others_were_tuned(results: Path, tmp_path: Path) -> None:
    packed(results, tmp_path / "our-lab")
    (file,) = (tmp_path / "our-lab" / "tuned").glob("*.toml")
    file.write_text(file.read_text().replace(MIB[0]["run"], "f" * 64))
    submission, faults = read_submission(tmp_path / "our-lab")
    assert submission is not None and submission.searches == {}
    assert "tuned/: names the run ffffffff, which is not in it" in faults
    assert any("was altered since it was packed" in fault for fault in faults)


def test_a_record_of_trials_lies_beside_its_rows(results: Path, tmp_path: Path) -> None:
    (results / "tuned" / "a.toml").write_text(SEARCH.format("../../a.csv") + ROW.format(MIB[0]["run"]))
    tuned, (line,) = read_rows([results])
    assert tuned == {} and "not a table of tuned rows" in line
    assert leaderboard([*FT, *MIB], PROTOCOLS["sdr"], tuned=tuned).frame["tuned_on"].unique().tolist() == ["no search"]
