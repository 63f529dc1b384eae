"""``report`` on the records and networks of a small real grid: every option, and every way in which it can go wrong."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from contseg.benchmark.score.records import read_records
from contseg.benchmark.store.files import Store, write_json, write_sealed
from contseg.run_benchmark import main
from contseg.tests import forked
from contseg.tests.integration.grid import call, records, small
from contseg.tests.margins import assert_same_counts
from contseg.tests.records import make_run, write_records


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


def test_images_and_the_latent_space_of_stored_networks(finished: Path, tmp_path: Path) -> None:
    words = ["--figures", str(tmp_path), "--predictions", "2", "--latent", "--format", "csv"]
    assert main(["report", "--out", str(finished), *words]) == 0
    names = sorted(p.name for p in (tmp_path / "shapes-3-3-overlapped-sdr").iterdir())
    assert {
        "curves.png",
        "curves.pdf",
        "classes.png",
        "confusion-FT.pdf",
        "latent.png",
        "latent.pdf",
        "strip.png",
    } <= set(names)
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


@pytest.mark.numeric
def test_every_network_is_scored_again_and_whole_images_that_are_the_crop_change_no_count(
    finished: Path, tmp_path: Path
) -> None:
    """One loop: the counts of ``run``, but for pixels that are in doubt where the batch is another."""
    out = shutil.copytree(finished, tmp_path / "out")
    first = {(r["run"], r["step"]): r for r in records(finished).values()}
    for protocol, view, name in (("strict", "full", "sdr[eval_view=full]"), ("sdr", "crop", "sdr")):
        assert main(["report", "--out", str(out), "--protocol", protocol, "--re-evaluate", "--format", "csv"]) == 0
        again = read_records(out / "reevaluated" / view)[0]
        assert len(again) == len(first) == 5
        for r in again:
            assert (r["protocol"]["eval_view"], r["protocol"]["name"]) == (view, name)
            assert_same_counts(finished, first[r["run"], r["step"]], r)  # drawn images are 48x48, and so was the crop
        if protocol == "strict":
            table = pd.read_csv(out / "leaderboard.csv")
            assert set(table["protocol"]) == {"strict scoring, trained with void as background"}


def test_what_cannot_be_scored_again_is_said(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    words = ["report", "--out", str(out), "--re-evaluate", "--format", "csv"]
    assert main(words) == 0
    lost = next(r for r in records(out).values() if r["method"] == "Joint")
    shutil.rmtree(Store(out).step(lost["step_key"]))
    forge(out, "FT")
    assert main(words) == 2  # what an earlier call counted is not taken over
    first, second = sorted(re.findall("warning: .*", capsys.readouterr().err))
    assert first.startswith("warning: FT, 3-3 step 1: its network does not give these counts (")
    assert second.startswith("warning: Joint, offline step 0: not re-evaluated, its network is not in the cache of ")
    table = pd.read_csv(out / "leaderboard.csv").set_index("method")["all"]
    assert table.to_dict() == {
        k: v for k, v in pd.read_csv(finished / "leaderboard.csv").set_index("method")["all"].items() if k != "Joint"
    }


def submission(finished: Path, folder: Path, networks: bool = True) -> Path:
    shutil.copytree(finished / "records", folder / "records")
    if networks:
        shutil.copytree(finished / "cache", folder / "cache")
    return folder


def forge(folder: Path, method: str, seal: bool = True) -> None:
    """Move all pixels of the classes seen at step 1 onto the diagonal; no sum of a row changes."""
    (path,) = (folder / "records").rglob(f"{method}/**/step1.json")
    record = json.loads(path.read_text())
    for column, label in enumerate(record["channels"]):
        row = record["matrix"]["seen"][label]
        row[:] = [sum(row) if k == column else 0 for k in range(len(row))]
    del record["sha256"]
    (write_sealed if seal else write_json)(path, record)


def verified(out: Path, theirs: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str]]:
    code = main(["report", "--out", str(out), "--verify", str(theirs), "--format", "csv", *words])
    return code, [line for line in capsys.readouterr().out.splitlines() if not line.startswith("written: ")]


def test_an_honest_submission_with_its_networks_is_accepted_and_merged(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, out = submission(finished, tmp_path / "theirs"), tmp_path / "out"
    code, lines = verified(out, theirs, capsys)
    assert (code, sum(line.startswith("accepted: ") for line in lines), len(lines)) == (0, 3, 3)
    assert records(out) == records(theirs)
    assert (out / "leaderboard.csv").read_text() == (finished / "leaderboard.csv").read_text()


@pytest.mark.parametrize("forged", [False, True])
def test_records_alone_are_never_accepted(
    finished: Path, tmp_path: Path, forged: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, out = submission(finished, tmp_path / "theirs", networks=False), tmp_path / "out"
    if forged:
        forge(theirs, "FT")
    code, lines = verified(out, theirs, capsys)
    assert code == 2
    assert [line.partition(": ")[0] for line in lines] == ["consistent, not re-scored"] * 3
    assert lines[0].endswith("shapes/3-3/overlapped FT seed 0: no weights of step 0, 1 beside its records")
    assert not out.exists() or not records(out)


def test_forged_counts_with_a_seal_are_refused_by_the_weights_beside_them(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, out = submission(finished, tmp_path / "theirs"), tmp_path / "out"
    forge(theirs, "FT")
    code, lines = verified(out, theirs, capsys)
    assert code == 2
    assert lines[0].startswith(
        "refused: shapes/3-3/overlapped FT seed 0: step 1: its network does not give these counts ("
    )
    assert {r["method"] for r in records(out).values()} == {"MiB+SDR", "Joint"}


def test_forged_counts_without_a_seal_and_records_of_format_1_are_refused_in_a_line(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, out = submission(finished, tmp_path / "theirs"), tmp_path / "out"
    forge(theirs, "FT", seal=False)
    (old,) = (theirs / "records").rglob("Joint/**/step0.json")
    record = json.loads(old.read_text())
    del record["sha256"]
    write_sealed(old, {**record, "format": 1})
    code, lines = verified(out, theirs, capsys)
    assert code == 2
    (bare,) = (theirs / "records").rglob("FT/**/step1.json")
    assert lines[:2] == [
        f"refused {bare}: its seal (sha256) is missing",
        f"refused {old}: written in record format 1, this version reads format 2: make it again with the command that "
        "made it (`run`); steps in the cache are not trained again",
    ]
    assert "refused: shapes/3-3/overlapped FT seed 0: incomplete: steps [0] of 2" in lines
    assert {r["method"] for r in records(out).values()} == {"MiB+SDR"}


def test_networks_of_another_step_are_no_witness(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, out = submission(finished, tmp_path / "theirs"), tmp_path / "out"
    last = {r["method"]: r["step_key"] for r in records(theirs).values() if r["step"] == r["steps"] - 1}
    first = next(r["step_key"] for r in records(theirs).values() if r["steps"] == 2 and r["step"] == 0)
    shutil.copy(Store(theirs).model(first), Store(theirs).model(last["FT"]))
    Store(theirs).model(last["MiB+SDR"]).write_bytes(b"cut short")
    code, lines = verified(out, theirs, capsys)
    assert code == 2
    told = "\n".join(lines)
    assert "FT seed 0: step 1: the network stored in" in told and "(it knows other classes)" in told
    assert "MiB+SDR seed 0: step 1: cache" not in told and "is missing or corrupt" in told
    assert {r["method"] for r in records(out).values()} == {"Joint"}


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
        "refused: shapes/3-3/overlapped FT seed 0: step 1: its matrix does not have the data set's pixel counts (disk: "
    )
    assert refused in printed
    assert "MiB+SDR seed 0: step 1: its key is not that of its configuration, data and code" in printed
    assert printed.count("accepted: ") == 1  # Joint
    assert {r["method"] for r in records(out).values()} == {"Joint"}


def test_names_that_are_not_the_suites_are_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, out = submission(finished, tmp_path / "theirs"), tmp_path / "out"
    for path in (theirs / "records").rglob("*.json"):
        record = json.loads(path.read_text())
        del record["sha256"]
        if record["method"] == "FT":
            record["task"] = "[1-3|4-6]"
        record["class_names"][1] = "dish" if record["method"] == "Joint" else record["class_names"][1]
        write_sealed(path, record)
    code, lines = verified(out, theirs, capsys)
    assert code == 2
    told = "\n".join(lines)
    assert "FT seed 0: its keys cannot be recomputed here: [1-3|4-6] is [1-3:4-6] here" in told
    assert "Joint seed 0: its keys cannot be recomputed here: ['background', 'dish'" in told
    assert {r["method"] for r in records(out).values()} == {"MiB+SDR"}


PLUGIN = """\
from contseg.methods.base import CrossEntropy, Method
from contseg.methods.registry import register_method


@register_method("Theirs")
def theirs() -> Method:
    \"\"\"Cross entropy, halved.\"\"\"
    return Method("Theirs", {"ce": CrossEntropy(weight=0.5)})
"""


def test_a_method_of_their_own_runs_only_where_it_is_asked_for(tmp_path: Path) -> None:
    code, theirs, out = tmp_path / "their_method.py", tmp_path / "theirs", tmp_path / "out"
    code.write_text(PLUGIN)
    done, said = forked.call(tmp_path / "run.log", "run", *small(theirs, "Theirs"), "--plugin", code)
    assert done == 0, said
    words = ("report", "--out", out, "--format", "csv", "--verify", theirs)
    done, said = forked.call(tmp_path / "without.log", *words)
    assert done == 2
    assert "Theirs seed 0: its keys cannot be recomputed here: unknown method 'Theirs'" in said
    assert "; --plugin FILE.py runs their code" in said
    done, said = forked.call(tmp_path / "with.log", *words, "--plugin", code)
    assert done == 0, said
    assert "accepted: shapes/3-3/overlapped Theirs seed 0" in said
    assert {r["method"] for r in records(out).values()} == {"Theirs"}


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
    assert capsys.readouterr().out.endswith("723 printed results, 487 complete triples, 39 that do not fit\n")
    assert main(["list", "published", "--task", "15-1", "--setup", "overlapped"]) == 0
    assert "disagree: MiB, background in the mean: 29.29 to 36.7 in 5 sources" in capsys.readouterr().out
