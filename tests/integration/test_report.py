"""``report`` on the records and networks of a small real grid: every option, and every way in which it can go wrong."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from benchmark.records import read_records
from benchmark.store import write_sealed
from run_benchmark import main
from tests.integration.grid import call, records, small
from tests.records import make_run, write_records


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("grid")
    done = call("run", *small(out, "FT", "MiB+SDR", "Joint"))
    assert done.returncode == 0, done.stderr[-2000:]
    return out


@pytest.fixture
def synthetic(tmp_path: Path) -> Path:
    return write_records(tmp_path / "out", make_run("FT") + make_run("MiB"))


def test_the_table_of_report_is_that_of_run(finished: Path, tmp_path: Path) -> None:
    assert main(["report", "--records", str(finished), "--out", str(tmp_path)]) == 0
    for name in ("leaderboard.csv", "leaderboard.md"):
        assert (tmp_path / name).read_text() == (finished / name).read_text()


def test_tuning_records_enter_no_leaderboard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = write_records(tmp_path / "both", make_run("FT") + make_run("MiB", split="tune"))
    assert main(["report", "--out", str(both)]) == 0
    assert pd.read_csv(both / "leaderboard.csv")["method"].tolist() == ["FT"]
    line = "left out: 2 records scored on held-out training images (eval.split=tune)\n"
    assert capsys.readouterr().err == line
    tune = write_records(tmp_path / "tune", make_run("MiB", split="tune"))
    assert main(["report", "--out", str(tune)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: all records below ") and "they enter no leaderboard" in error
    assert [p.name for p in tune.iterdir()] == ["records"]


def test_every_format_is_written(synthetic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forms = ["text", "markdown", "csv", "latex", "json", "model-index", "html"]
    assert main(["report", "--out", str(synthetic), "--format", *forms, "--protocol", "sdr", "plop"]) == 0
    names = {p.name for p in synthetic.iterdir() if p.is_file()}
    once = {"leaderboard.md", "leaderboard.csv", "leaderboard.tex", "leaderboard.json", "model-index.yaml"}
    again = {f"{Path(n).stem}-plop{Path(n).suffix}" for n in once}
    assert names == {*once, *again, "leaderboard.html"}
    page = (synthetic / "leaderboard.html").read_text()
    printed = capsys.readouterr().out
    for text in (page, printed):
        assert "plop scoring, trained with void as background" in text


def test_pictures_and_the_latent_space_of_stored_networks(finished: Path, tmp_path: Path) -> None:
    words = ["--figures", str(tmp_path), "--predictions", "2", "--latent", "--format", "csv"]
    assert main(["report", "--out", str(finished), *words]) == 0
    names = sorted(p.name for p in (tmp_path / "shapes-3-3-overlapped-sdr").iterdir())
    assert {"curves.png", "curves.pdf", "classes.png", "confusion-FT.pdf", "latent.png", "latent.pdf"} <= set(names)
    assert sum(name.startswith("prediction-") for name in names) == 2


def test_networks_that_are_gone_are_named_and_the_rest_is_drawn(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished / "records", out / "records")
    assert main(["report", "--out", str(out), "--figures", str(tmp_path / "f"), "--predictions", "1"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5  # two steps of two methods, and Joint's
    assert all(line.startswith("warning: ") and "no trained step" in line for line in lines)
    assert (tmp_path / "f" / "shapes-3-3-overlapped-sdr" / "curves.png").exists()


def test_an_evaluation_of_whole_pictures_that_are_the_crop_changes_no_count(finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    words = ["--protocol", "strict", "--re-evaluate", "--format", "csv"]
    assert main(["report", "--out", str(out), *words]) == 0
    again = read_records(out / "reevaluated" / "full")[0]
    first = {(r["run"], r["step"]): r for r in records(finished).values()}
    assert len(again) == len(first) == 5
    for r in again:
        assert r["protocol"]["eval_view"] == "full"
        assert r["protocol"]["name"] == "sdr[eval_view=full]"
        assert r["matrix"] == first[r["run"], r["step"]]["matrix"]  # drawn pictures are 48x48, and so was the crop
    table = pd.read_csv(out / "leaderboard.csv")
    assert set(table["protocol"]) == {"strict scoring, trained with void as background"}


def submission(finished: Path, folder: Path) -> Path:
    shutil.copytree(finished / "records", folder / "records")
    return folder


def test_an_honest_submission_is_accepted_and_merged(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, out = submission(finished, tmp_path / "theirs"), tmp_path / "out"
    assert main(["report", "--out", str(out), "--verify", str(theirs)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("accepted: ") == 3
    assert records(out) == records(theirs)
    assert (out / "leaderboard.csv").read_text() == (finished / "leaderboard.csv").read_text()


def test_a_tampered_submission_is_refused_with_the_reason(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, out = submission(finished, tmp_path / "theirs"), tmp_path / "out"
    for path in (theirs / "records").rglob("step1.json"):
        record = json.loads(path.read_text())
        if record["method"] == "FT":  # more pixels of class 1 are right
            row = record["matrix"]["seen"][1]
            row[1] += 100
        else:  # longer than it says
            record["config"]["train"]["lr"] = [0.2]
        del record["sha256"]
        write_sealed(path, record)  # as a forger would
    assert main(["report", "--out", str(out), "--verify", str(theirs)]) == 2
    printed = capsys.readouterr().out
    refused = (
        "refused: shapes/3-3/overlapped FT seed 0: step 1: its matrix does not count the data set's pixels (disk: "
    )
    assert refused in printed
    assert "MiB+SDR seed 0: step 1: its key is not that of its configuration, data and code" in printed
    assert printed.count("accepted: ") == 1  # Joint
    assert {r["method"] for r in records(out).values()} == {"Joint"}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--protocol", "sdrr"], "error: unknown protocol 'sdrr': did you mean 'sdr'? Known: mib, plop, sdr, strict"),
        (["--format", "htm"], "error: unknown format 'htm': did you mean 'html'?"),
        (["--with-published", "--published-csv", "none.csv"], "error: no table of published results at none.csv"),
        (["--with-published", "--published-source", "sdr2012"], "error: unknown source of published results 'sdr2012'"),
        (["--predictions", "2"], "error: --predictions and --latent need --figures DIR"),
        (["--records", "nowhere"], "error: no records: nowhere is not a folder"),
    ],
)
def test_wrong_words_are_one_line(
    synthetic: Path, words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "--out", str(synthetic), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(line)
    assert error.count("\n") == 1
    assert {p.name for p in synthetic.iterdir()} == {"records"}


def test_no_records_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "records").mkdir()
    assert main(["report", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: no records yet below ")


def test_records_cut_short_and_of_other_versions_are_named_and_the_rest_is_reported(
    synthetic: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut, old = sorted((synthetic / "records").rglob("MiB/**/step*.json"))
    cut.write_text(cut.read_text()[:300])
    old.write_text(json.dumps({**json.loads(old.read_text()), "format": 1}))
    assert main(["report", "--out", str(synthetic)]) == 2
    named = capsys.readouterr().err.splitlines()
    assert len(named) == 2
    assert f"left out {cut}: unreadable or cut short" in named[0]
    assert f"left out {old}: written in record format 1, this version reads format 2: make it again" in named[1]
    assert "FT" in (synthetic / "leaderboard.csv").read_text()


def test_lint_and_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--lint-published"]) == 0
    assert capsys.readouterr().out.endswith("723 printed results, 487 whole triples, 39 that do not fit\n")
    assert main(["list", "published", "--task", "15-1", "--setup", "overlapped"]) == 0
    assert "disagree: MiB, background in the mean: 29.29 to 36.7 in 5 sources" in capsys.readouterr().out
