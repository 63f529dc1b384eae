"""``tuned_on`` belongs to a row: files that map rows to runs, and tables that never rank over different searches."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contseg.benchmark.plan.config import TunedConfig, read_config
from contseg.benchmark.plan.protocol import PROTOCOLS
from contseg.benchmark.plan.search import make_tuning
from contseg.benchmark.report.reporter import leaderboard, render
from contseg.benchmark.score.leaderboard import NOT_TOGETHER, Leaderboard, paired_differences
from contseg.benchmark.score.rows import Search, Tuned, carry_rows, read_rows, write_rows, write_trials
from contseg.datasets.errors import UserError
from contseg.datasets.scenario import parse_scenario
from contseg.tests.records import Record, make_run

SDR = PROTOCOLS["sdr"]
FIRST = Search("first", "toy/[1|2]/overlapped", 16)
OTHER = Search("other:ccp/20-5/overlapped", "ccp/20-5/overlapped", 16)


class Ran:
    """What ``write_rows`` reads of a run."""

    def __init__(self, record: Record) -> None:
        self.method, self.key = record["method"], record["run"]


def run(method: str, level: float, seeds: int = 3) -> list[Record]:
    """Records of seeds whose 'all' mIoU is near a level, in a fixed order."""
    return [r for s in range(seeds) for r in make_run(method, s, hit=lambda t, k, s=s: level + 0.01 * s)]


def chosen(records: list[Record], *searches: Search, default: bool = False) -> dict[str, list[Tuned]]:
    return {r["run"]: [Tuned(search, default) for search in searches] for r in records}


def names(board: Leaderboard) -> list[str]:
    lines = render(board, "markdown").splitlines()
    table = [line for line in lines if line.startswith("| ")]
    return [re.split(r"(?<!\\)\|", line)[1].strip().replace(r"\|", "|") for line in table[1:]]


def test_the_first_trial_is_two_rows_of_one_run() -> None:
    ft, mib = run("FT", 0.2), run("MiB[kd=3]", 0.5)
    tuned = chosen(ft, FIRST, default=True) | chosen(mib, FIRST)
    board = leaderboard(ft + mib, SDR, tuned=tuned)
    assert names(board) == ["FT", "FT, tuned on first, 16 trials", "MiB, tuned on first, 16 trials"]
    frame = board.frame.set_index("method")
    assert frame["tuned_on"].tolist() == ["no search", *[f"{FIRST}"] * 2]
    assert frame["all"].iloc[0] == frame["all"].iloc[1] and frame["seeds"].tolist() == [3, 3, 3]
    text = render(board)
    assert "tuned on first (toy/[1|2]/overlapped), 16 trials, Sobol seed 0, best 'all' mIoU" in text
    assert NOT_TOGETHER in text and "rows that were tuned otherwise, saw other data besides the task" in text
    assert "MiB, tuned on first, 16 trials is MiB[kd=3], tuned on first (toy/[1|2]/overlapped), 16 trials" in text


def test_only_rows_tuned_alike_are_ranked_together() -> None:
    """MiB by another search is best of all; the best of each search and of the rows without one are bold."""
    ft, lwf, mib = run("FT", 0.2), run("LwF", 0.4), run("MiB", 0.6)
    two, three = run("LwF[kd=2]", 0.5), run("MiB[kd=3]", 0.7)
    alone = run("MiB[kd=4]", 0.9)
    records = ft + lwf + mib + two + three + alone
    board = leaderboard(records, SDR, tuned=chosen(two, FIRST) | chosen(three, FIRST) | chosen(alone, OTHER))
    best = {board.frame["method"][i] for i, column in board.leaders if column == "all"}
    assert best == {"MiB", f"MiB[kd=3], tuned on {FIRST}"}
    pairs = {tuple(sorted(p)) for p in paired_differences(board)[["a", "b"]].itertuples(index=False)}
    assert len(pairs) == 3 + 1  # of FT, LwF and MiB; of the two of one search
    # without the searches all six are rows of one kind
    assert len(paired_differences(leaderboard(records, SDR))) == 15


def test_differences_are_to_ft_of_the_same_search_else_to_the_default() -> None:
    ft, better, mib, ewc = (
        run("FT", 0.2),
        run("FT[train.lr=0.1]", 0.3),
        run("MiB[kd=3]", 0.7),
        run("EWC[weight=1]", 0.6),
    )
    tuned = chosen(better, FIRST) | chosen(mib, FIRST) | chosen(ewc, OTHER)
    frame = leaderboard(ft + better + mib + ewc, SDR, tuned=tuned).frame.set_index("method")
    default, own = (frame["all"][name] for name in ("FT", f"FT[train.lr=0.1], tuned on {FIRST}"))
    mine, other = (frame.loc[f"{name}, tuned on {s}"] for name, s in (("MiB[kd=3]", FIRST), ("EWC[weight=1]", OTHER)))
    assert mine["to_ft"] == pytest.approx(mine["all"] - own)
    assert other["to_ft"] == pytest.approx(other["all"] - default)


def test_a_row_is_compared_with_one_ft_not_with_two() -> None:
    """The search's FT has one seed, the default three: no seed of a tuned row is compared with the default."""
    ft, better, mib = run("FT", 0.2), run("FT[train.lr=0.1]", 0.3, seeds=1), run("MiB[kd=3]", 0.7)
    runs = leaderboard(ft + better + mib, SDR, tuned=chosen(better, FIRST) | chosen(mib, FIRST)).runs
    mine = runs[runs["method"].str.startswith("MiB")].set_index("seed")
    own = runs[runs["method"].str.startswith("FT[")]["all"].iloc[0]
    assert mine["to_ft"][0] == pytest.approx(mine["all"][0] - own)
    assert mine["to_ft"].isna().tolist() == [False, True, True]


def test_the_scenario_of_a_search_is_in_the_name_only_if_it_tells_two_apart() -> None:
    one, two = run("MiB[kd=3]", 0.5), run("MiB[kd=4]", 0.6)
    apart = replace_search(FIRST, scenario="toy/[1|3]/overlapped")
    board = leaderboard(one + two, SDR, tuned=chosen(one, FIRST) | chosen(two, apart))
    assert names(board) == [f"MiB, tuned on {FIRST}", f"MiB, tuned on {apart}"]
    assert str(OTHER) == "other:ccp/20-5/overlapped, 16 trials"  # which names it anyway


def replace_search(search: Search, **changes: Any) -> Search:
    return Search(**{**{f: getattr(search, f) for f in search.__struct_fields__}, **changes})


# --- the files -----------------------------------------------------------------------------------------------------


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """A grid as ``contseg tune`` writes it, its trials beside it."""
    folder = tmp_path / "search"
    folder.mkdir()
    (folder / "trials.csv").write_text("method,trial\nMiB,1\n")
    (folder / "tuned.toml").write_text(
        'scenarios = ["toy/2-1/overlapped"]\nmethods = ["FT", "MiB[kd=3]"]\n\n[tuned]\non = "first"\n'
        'scenario = "toy/[1|2]/overlapped"\ntrials = 16\nmethods = ["FT", "MiB[kd=3]"]\nnumbers = [0, 5]\n'
        'record = "0af3faab8d7a9f76a2ca2a9b2f9ef05be4ff3c4a5cbbd38ac1c35b3a3e7ba2b3"\n'
    )
    return folder / "tuned.toml"


def with_true_record(grid: Path) -> None:
    import hashlib

    digest = hashlib.sha256(grid.with_name("trials.csv").read_bytes()).hexdigest()
    lines = [f'record = "{digest}"' if x.startswith("record") else x for x in grid.read_text().splitlines()]
    grid.write_text("\n".join(lines))


def test_rows_are_written_beside_the_records_and_read_again(grid: Path, tmp_path: Path) -> None:
    with_true_record(grid)
    config, out = read_config(grid), tmp_path / "out"
    ft, mib, other = run("FT", 0.2), run("MiB[kd=3]", 0.5), run("LwF", 0.4)
    ran = [Ran(r) for r in (ft + mib + other) if r["step"] == 0]
    path = write_rows(out, config, ran, grid)
    assert path is not None and path.parent == out / "tuned"
    tuned, problems = read_rows([out])
    assert problems == [] and set(tuned) == {r["run"] for r in ft + mib}
    (search,) = {one.search for those in tuned.values() for one in those}
    assert (search.on, search.scenario, search.trials) == ("first", "toy/[1|2]/overlapped", 16)
    assert (out / "tuned" / search.record).read_bytes() == grid.with_name("trials.csv").read_bytes()
    assert [tuned[records[0]["run"]][0].default for records in (ft, mib)] == [True, False]
    # again, and from elsewhere: the same file, the trials that were copied earlier serve
    assert write_rows(out, config, ran, None) == path
    assert len([*(out / "tuned").iterdir()]) == 2
    # merged by copying: another machine's seeds are a file of their own
    assert write_rows(out, config, ran[:1], grid) != path
    assert read_rows([out])[0] == tuned


def test_a_record_that_is_not_beside_the_grid_is_said(grid: Path, tmp_path: Path) -> None:
    records = run("MiB[kd=3]", 0.5)
    write_rows(tmp_path / "out", read_config(grid), [Ran(r) for r in records], grid)  # trials.csv of another search
    tuned, _ = read_rows([tmp_path / "out"])
    assert "the record of its trials is not here" in render(leaderboard(records, SDR, tuned=tuned))


def test_a_grid_without_a_search_writes_nothing(grid: Path, tmp_path: Path) -> None:
    ran = [Ran(r) for r in run("MiB", 0.5)]
    assert write_rows(tmp_path / "out", read_config(None), ran, None) is None
    assert write_rows(tmp_path / "out", read_config(grid), ran, grid) is None  # MiB with kd=10 was not chosen
    assert not (tmp_path / "out").exists()


def test_trials_on_the_test_images_are_no_rows_until_they_are_chosen(tmp_path: Path) -> None:
    """The best of many trials by the test would be bold as a row without a search."""
    config = read_config(None, scenarios=("toy/2-1/overlapped",), methods=("MiB",))
    tuning = make_tuning(config, parse_scenario("toy/2-1/overlapped", 3), on="test", n=3, seed=0)
    default, one, two = (run(trial.name, 0.3 + 0.2 * i) for i, trial in enumerate(tuning.trials["MiB"]))
    ft, trials = run("FT", 0.2), default + one + two
    path = write_trials(tmp_path, tuning, [Ran(r) for r in trials])
    assert path is not None and path.parent == tmp_path / "tuned"
    tuned, problems = read_rows([tmp_path])
    assert problems == [] and set(tuned) == {r["run"] for r in one + two}
    board = leaderboard(ft + trials, SDR, tuned=tuned)
    assert names(board) == ["FT", "MiB"]
    assert "6 trials of a search on the test images, as `tuned/` says" in render(board)
    assert "where another run has their place" not in render(board)
    # in a submission too
    carry_rows([tmp_path], {one[0]["run"]}, tmp_path / "sent")
    assert read_rows([tmp_path / "sent"])[0] == {one[0]["run"]: tuned[one[0]["run"]]}
    # the run of its grid makes the best a row
    grid = tuning.chosen([tuning.trials["MiB"][2].name])
    write_rows(tmp_path, grid, [Ran(r) for r in two], None)
    assert names(leaderboard(ft + trials, SDR, tuned=read_rows([tmp_path])[0])) == [
        "FT",
        "MiB",
        "MiB, tuned on test, 3 trials",
    ]


def test_trials_on_held_out_images_are_not_noted(tmp_path: Path) -> None:
    """Their records enter no leaderboard anyway."""
    config = read_config(None, scenarios=("toy/2-1/overlapped",), methods=("MiB",))
    tuning = make_tuning(config, parse_scenario("toy/2-1/overlapped", 3), on="stream", n=2, seed=0)
    assert write_trials(tmp_path, tuning, [Ran(r) for r in run(tuning.trials["MiB"][1].name, 0.5)]) is None


@pytest.mark.parametrize(
    "text",
    ["x = ", "[search]\non = 3", '[search]\non = "first"\nscenario = "a"\ntrials = 0', "\xff", "[[row]]\ntrial = 1"],
)
def test_a_damaged_file_is_left_out_and_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "a.toml").write_bytes(text.encode("latin-1"))
    found, (line,) = read_rows([tmp_path])
    assert found == {} and "a.toml" in line and "\n" not in line


def test_trials_that_are_gone_are_named(grid: Path, tmp_path: Path) -> None:
    with_true_record(grid)
    write_rows(tmp_path, read_config(grid), [Ran(r) for r in run("FT", 0.2)], grid)
    (csv,) = (tmp_path / "tuned").glob("*.csv")
    csv.unlink()
    found, (line,) = read_rows([tmp_path])
    assert found and csv.name in line


def test_a_section_that_tune_did_not_write_is_one_line(grid: Path) -> None:
    good = read_config(grid).tuned
    assert good == replace(TunedConfig(**{k: getattr(good, k) for k in good.__dataclass_fields__}))
    grid.write_text(grid.read_text().replace("numbers = [0, 5]", "numbers = [0]"))
    with pytest.raises(UserError, match="is not as `contseg tune` wrote it"):
        read_config(grid)


def test_an_unknown_selection_is_one_line(grid: Path) -> None:
    grid.write_text(grid.read_text().replace('on = "', 'on = "x'))
    with pytest.raises(UserError, match=r"^unknown selection in tuned.on '.*'.* Known: first, "):
        read_config(grid)
