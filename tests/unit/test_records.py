"""A damaged record is left out and named; sound ones are gathered into runs."""

import copy
import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from contseg import __version__
from contseg.benchmark.report.reporter import load_records
from contseg.benchmark.score.records import (
    configurations,
    differing,
    fault,
    flat_config,
    gather_runs,
    identity,
    read_records,
)
from contseg.benchmark.store.provenance import versions
from contseg.datasets.errors import UserError
from contseg.tests.records import Record, make_run, write_records


def test_what_is_written_is_read(tmp_path: Path) -> None:
    records = make_run("FT") + make_run("MiB[kd=100]+SDR", 1)
    write_records(tmp_path, records)
    for folder in (tmp_path, tmp_path / "records"):
        found, problems = read_records(folder)
        assert sorted(r["key"] for r in found) == sorted(r["key"] for r in records)
        assert problems == []


def test_a_folder_of_results_folders_is_read_as_one(tmp_path: Path) -> None:
    write_records(tmp_path / "demo", make_run("FT"))
    write_records(tmp_path / "camvid", make_run("MiB"))
    (tmp_path / "demo" / "cache").mkdir()
    (tmp_path / "demo" / "cache" / "score.json").write_text("{}")
    found, problems = read_records(tmp_path)
    assert ({r["method"] for r in found}, problems) == ({"FT", "MiB"}, [])


def damaged(change: Callable[[Record], object]) -> Record:
    record = copy.deepcopy(make_run()[1])
    change(record)
    return record


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: r.pop("format"), "not a record of this suite"),
        (
            lambda r: r.update(format=1),
            "written in record format 1, this version reads format 2: make it again with the command that made it "
            "(`run`); steps in the cache are not trained again",
        ),
        (
            lambda r: r["versions"].pop("contseg"),
            "not a valid record: Object missing required field `contseg` - at `$.versions`",
        ),
        (lambda r: r.pop("key"), "not a valid record: Object missing required field `key`"),
        (lambda r: r.update(seed="0"), "not a valid record: Expected `int`, got `str` - at `$.seed`"),
        (lambda r: r.update(seed=True), "not a valid record: Expected `int`, got `bool` - at `$.seed`"),
        (lambda r: r.update(step=5), "step 5 of 2 does not fit 2 groups of classes"),
        (lambda r: r.update(groups=[1, 2]), "not a valid record: Expected `array`, got `int` - at `$.groups[0]`"),
        (lambda r: r.update(channels=[0, 2, 1, 3]), "channels are not background and the classes seen by step 1"),
        (
            lambda r: (r.update(groups=[[1, 2], [9]]), r.update(channels=[0, 1, 2, 9])),
            "a class is in two groups, or is not one of the data set's 3",
        ),
        (
            lambda r: r["matrix"].pop("unseen"),
            "not a valid record: Object missing required field `unseen` - at `$.matrix`",
        ),
        (lambda r: r["matrix"]["seen"].pop(), "matrix.seen must have 5 rows: 3 classes, background and void"),
        (lambda r: r["matrix"]["seen"][0].pop(), "matrix.seen must have 4 columns, one for each channel"),
        (
            lambda r: r["matrix"]["seen"].__setitem__(0, [1.5, 0, 0, 0]),
            "not a valid record: Expected `int`, got `float` - at `$.matrix.seen[0][0]`",
        ),
        (
            lambda r: r["matrix"]["seen"].__setitem__(0, [-1, 0, 0, 0]),
            "not a valid record: Expected `int` >= 0 - at `$.matrix.seen[0][0]`",
        ),
        (
            lambda r: r.update(losses={"ce": ["x"]}),
            "not a valid record: Expected `float | null`, got `str` - at `$.losses[...][0]`",
        ),
        (
            lambda r: r.update(gradient_norms={"updates": [0, 9], "weights": {"ce": 1.0}, "norms": {"ce": [0.5]}}),
            "not a valid record: Expected a norm of each of `weights` at each of `updates` - at `$.gradient_norms`",
        ),
        (
            lambda r: r.update(gradient_norms={"updates": [9], "weights": {"ce": 1.0}, "norms": {"kd": [0.5]}}),
            "not a valid record: Expected a norm of each of `weights` at each of `updates` - at `$.gradient_norms`",
        ),
        (lambda r: r.update(sees=None), "not a valid record: Expected `object`, got `null` - at `$.sees`"),
        (
            lambda r: r["cost"].update(images="x"),
            "not a valid record: Expected `int`, got `str` - at `$.cost.images`",
        ),
        (
            lambda r: r["cost"].update(updates=10**30),
            "not a valid record: Expected `int` <= 9007199254740992 - at `$.cost.updates`",
        ),
        (
            lambda r: r["config"]["train"].update(crop=[-1]),
            "not a valid record: Expected `int` >= 1 - at `$.config.train.crop[0]`",
        ),
        (
            lambda r: r["protocol"].update(version="x"),
            "the record's protocol has name = 'sdr', version = 'x': not a word and a number",
        ),
        (
            lambda r: r["protocol"].update(absent_classes=[]),
            "the record's protocol has absent_classes = []: not one of drop, zero",
        ),
        (lambda r: r["protocol"].update(name="later"), "unknown protocol 'later': Known: mib, plop, sdr, strict"),
        (lambda r: r["protocol"].pop("name"), "unknown protocol '': Known: mib, plop, sdr, strict"),
    ],
)
def test_why_a_record_cannot_be_scored(change: Callable[[Record], object], reason: str) -> None:
    assert fault(damaged(change)) == reason


def test_damaged_files_are_left_out_with_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound = make_run()
    write_records(tmp_path, sound)
    (tmp_path / "records" / "cut.json").write_text(json.dumps(sound[0])[:200])
    (tmp_path / "records" / "list.json").write_text("[]")
    (tmp_path / "records" / "bytes.json").write_bytes(b"\xff\xfe\x00")
    assert len(load_records(tmp_path)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["warning"] * 3
    assert "cut.json: unreadable or cut short" in lines[1]
    assert lines[2].endswith("list.json: not a record of this suite")


def test_a_record_without_its_seal_or_with_that_of_another_is_left_out(tmp_path: Path) -> None:
    write_records(tmp_path, make_run())
    first, second = sorted(tmp_path.rglob("step*.json"))
    bare, other = (json.loads(p.read_text()) for p in (first, second))
    first.write_text(json.dumps({k: v for k, v in bare.items() if k != "sha256"}))
    second.write_text(json.dumps({**other, "sha256": bare["sha256"]}))
    assert read_records(tmp_path) == (
        [],
        [f"left out {first}: its seal (sha256) is missing", f"left out {second}: altered since it was written"],
    )


def test_the_version_is_that_of_the_project() -> None:
    home = Path(__file__).parents[2]
    project = tomllib.loads((home / "pyproject.toml").read_text())["project"]
    assert f"\nversion: {__version__}\n" in (home / "CITATION.cff").read_text()
    assert project["version"] == __version__ == versions()["contseg"]


def test_no_folder_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^no records: .*nowhere is not a folder; run `contseg run --out"):
        read_records(tmp_path / "nowhere")


def test_runs_are_gathered_in_the_order_of_their_steps() -> None:
    a, b = make_run("FT"), make_run("FT", seed=1)
    runs = gather_runs([a[1], b[1], a[0]])
    whole = next(r for r in runs if r.seed == 0)
    assert [r["step"] for r in whole.records] == [0, 1]
    assert (whole.complete, next(r for r in runs if r.seed == 1).complete) == (True, False)
    assert str(whole) == "toy/2-1/overlapped FT seed 0"


def test_a_step_recorded_twice_counts_once_and_the_later_stays() -> None:
    early = make_run()
    late = copy.deepcopy(early[1])
    late["provenance"]["time"] = "2026-02-01T00:00:00"
    late["cost"]["seconds"] = 99.0
    (run,) = gather_runs([late, *early])
    assert [r["cost"]["seconds"] for r in run.records] == [2.5, 99.0]


def test_configurations_are_compared_by_setting() -> None:
    a, b = make_run()[0], make_run(config={"model": {"backbone": "resnet18"}, "train": {"epochs": [1.0]}})[0]
    assert flat_config(a) == {"model.backbone": "tiny", "train.epochs": [1.0], "train.batch": [8], "eval.split": "val"}
    assert differing([flat_config(a), flat_config(b)]) == ["eval.split", "model.backbone", "train.batch"]
    assert differing([flat_config(a)]) == []


def test_a_setting_that_is_left_out_at_its_default_tells_configurations_apart() -> None:
    """Records do not name a setting that a class gained later while it has its default."""
    plain, jittered = (
        {"model": {}, "train": {"epochs": [1.0], **more}, "eval": {}} for more in ({}, {"jitter": [0.4]})
    )
    runs = gather_runs(
        [*make_run(seed=0, config=plain), *make_run(seed=1, config=jittered), *make_run(seed=2, config=plain)]
    )
    assert configurations(runs) == [1, 2, 1]
    assert differing([identity(runs[0]), identity(runs[1])]) == ["step 0 train.jitter", "step 1 train.jitter"]
    said = {"model": {"dilation": "rest"}, "train": {"epochs": [1.0]}, "eval": {}}
    assert configurations(gather_runs([*make_run(seed=0, config=plain), *make_run(seed=1, config=said)])) == [1, 1]
