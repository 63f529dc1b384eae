"""What a tuning found: the best trial of each method, every trial written down, and a grid to go on with."""

import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from contseg.benchmark.cli.tune import _check_place
from contseg.benchmark.plan.config import TunedConfig, read_config
from contseg.benchmark.plan.protocol import PROTOCOLS
from contseg.benchmark.plan.search import Trial, Tuning, make_tuning
from contseg.benchmark.plan.toml import as_toml
from contseg.benchmark.report.tuning import budget_table, write_tuning
from contseg.benchmark.score.leaderboard import leaderboard
from contseg.benchmark.score.tuning import trial_frame
from contseg.datasets.errors import UserError
from contseg.datasets.scenario import parse_scenario
from contseg.tests.records import make_run

TRIALS = {
    "FT": [Trial("FT", {"train.lr": 0.001})],
    "MiB": [
        Trial("MiB", {"kd": 10.0, "train.lr": 0.001}),
        Trial("MiB[kd=30,train.lr=(0.01,0.1)]", {"kd": 30.0, "train.lr": 0.1}),
        Trial("MiB[kd=3,train.lr=(0.01,0.002)]", {"kd": 3.0, "train.lr": 0.002}),
        Trial("MiB[kd=2,train.lr=(0.01,0.003)]", {"kd": 2.0, "train.lr": 0.003}),
        Trial("MiB[kd=1,train.lr=(0.01,0.004)]", {"kd": 1.0, "train.lr": 0.004}),
    ],
}
# the share of pixels that is found, by name and seed; of the others nothing is known
FOUND = {
    ("FT", 0): 0.2,
    ("FT", 1): 0.3,
    ("MiB", 0): 0.5,
    ("MiB", 1): 0.5,
    ("MiB[kd=3,train.lr=(0.01,0.002)]", 0): 0.7,
    ("MiB[kd=3,train.lr=(0.01,0.002)]", 1): 0.6,
    ("MiB[kd=2,train.lr=(0.01,0.003)]", 0): 0.6,
    ("MiB[kd=2,train.lr=(0.01,0.003)]", 1): 0.5,
    ("MiB[kd=1,train.lr=(0.01,0.004)]", 0): 0.9,  # it diverged with seed 1
}


@pytest.fixture
def frame() -> pd.DataFrame:
    records = [
        record
        for (name, seed), share in FOUND.items()
        for record in make_run(name, seed, hit=lambda t, k, share=share: share)
    ]
    return trial_frame(TRIALS, leaderboard(records, PROTOCOLS["sdr"]))


def test_the_best_trial_with_every_seed_is_chosen(frame: pd.DataFrame) -> None:
    assert list(frame[frame["chosen"]]["name"]) == ["FT", "MiB[kd=3,train.lr=(0.01,0.002)]"]
    assert list(frame["seeds"]) == [2, 2, 0, 2, 2, 1]
    assert list(frame["trial"]) == [0, 0, 1, 2, 3, 4]


def test_a_trial_that_diverged_is_kept_without_numbers(frame: pd.DataFrame) -> None:
    lost = frame.set_index("name").loc["MiB[kd=30,train.lr=(0.01,0.1)]"]
    assert math.isnan(lost["all"]) and not lost["chosen"]
    assert (lost["kd"], lost["train.lr"]) == (30.0, 0.1)


def test_everything_is_written_down(frame: pd.DataFrame, tmp_path: Path) -> None:
    target = read_config(None, ["train.lr=0.01,0.001"], scenarios=("mini/3-1/overlapped",), methods=("FT", "MiB"))
    names = tuple(frame[frame["chosen"]]["name"])
    scenario = parse_scenario("mini/3-1/overlapped", 4)
    tuning = make_tuning(target, scenario, on="first", n=2, seed=0)
    tuning = replace(tuning, trials=TRIALS)
    written = write_tuning(tmp_path, frame, tuning)
    assert [p.name for p in written] == ["trials.csv", "tuned.toml", "tuning.md", "search.png", "search.pdf"]
    again = pd.read_csv(tmp_path / "trials.csv")
    assert list(again["name"]) == list(frame["name"])
    assert list(again.columns)[-2:] == ["train.lr", "kd"]
    assert (
        (tmp_path / "tuned.toml")
        .read_text()
        .startswith(
            "# tuned on first (mini/[1-2|3]/overlapped, a held-out fifth of the training images), 2 trials a method, "
        )
    )
    tuned = read_config(tmp_path / "tuned.toml")
    assert (tuned.methods, tuned.scenarios, tuned.eval.split) == (names, ("mini/3-1/overlapped",), "val")
    assert tuned.tuned == TunedConfig(
        "first",
        "mini/[1-2|3]/overlapped",
        trials=2,
        methods=names,
        numbers=(0, 2),
        record=hashlib.sha256((tmp_path / "trials.csv").read_bytes()).hexdigest(),
    )
    assert again["runs"].str.split().str.len().tolist()[0] == 2  # a key for each seed


def test_what_more_trials_buy(frame: pd.DataFrame) -> None:
    """The best of the first 1, 4 and all trials; FT has one trial, MiB five: the second has no score, and the
    last one, the highest, lacks a seed and would not be chosen."""
    mib = frame[frame["method"] == "MiB"]["all"].tolist()
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in budget_table(frame, "github").split("\n")
    ]
    assert lines[0] == ["method", "best of 1", "best of 4", "best of 5", "old", "new", "chosen"]
    ft = f"{frame['all'][0]:.1f}"
    old_new = [[f"{value:.1f}" for value in row] for row in frame[frame["chosen"]][["old", "new"]].values.tolist()]
    assert lines[2] == ["FT", ft, "-", "-", *old_new[0], "FT"]
    assert lines[3][1:4] == [f"{mib[0]:.1f}", f"{mib[2]:.1f}", f"{mib[2]:.1f}"] and mib[4] > mib[2]
    assert lines[3][4:] == [*old_new[1], "MiB[kd=3,train.lr=(0.01,0.002)]"]


def test_a_search_without_any_score_chooses_nothing() -> None:
    frame = trial_frame(TRIALS, leaderboard([], PROTOCOLS["sdr"]))
    assert not frame["chosen"].any() and len(frame) == 6


def test_a_value_drawn_again_keeps_the_number_of_its_first_trial() -> None:
    """Values have three digits, so a long search draws one twice, or the default itself: that is trial 0."""
    config = read_config(None, scenarios=("mini/3-1/overlapped",), methods=("FT",))
    tuning = make_tuning(config, parse_scenario("mini/3-1/overlapped", 4), on="first", n=2, seed=0)
    again = replace(tuning, trials={"FT": [TRIALS["FT"][0], Trial("FT[train.lr=1]", {}), TRIALS["FT"][0]]})
    assert again.chosen(["FT"]).tuned.numbers == (0,)


def test_a_parameter_called_like_a_column_hides_no_score() -> None:
    """A plugin's method may have a parameter ``all``: what is chosen is the best score, not the largest value."""
    trials = {"My": [Trial("My", {"all": 99.0, "new": 1.0}), Trial("My[all=1]", {"all": 1.0, "new": 1.0})]}
    records = make_run("My", hit=lambda t, k: 0.3) + make_run("My[all=1]", hit=lambda t, k: 0.6)
    found = trial_frame(trials, leaderboard(records, PROTOCOLS["mib"]))
    assert found["all"].tolist() == pytest.approx([30, 60]) and found["chosen"].tolist() == [False, True]
    assert found["My.all"].tolist() == [99, 1] and found["My.new"].tolist() == [1, 1]


def test_the_grid_of_a_tuning() -> None:
    config = read_config(None, scenarios=("mini/3-1/overlapped",), methods=("MiB+SDR", "FT", "Joint"))
    tuning = make_tuning(config, parse_scenario("mini/3-1/overlapped", 4), on="first", n=4, seed=0)
    assert (tuning.config.scenarios, tuning.config.eval.split) == (("mini/[1-2|3]/overlapped",), "tune")
    assert {name: len(drawn) for name, drawn in tuning.trials.items()} == {"MiB+SDR": 4, "FT": 4, "Joint": 4}
    assert len({*tuning.config.methods}) == 12
    first, second = tuning.trials["MiB+SDR"][:2]
    assert first.values == {
        "kd": 10.0,
        "SDR.matching": 0.01,
        "SDR.attraction": 0.001,
        "SDR.repulsion": 0.001,
        "SDR.sparsity": 0.001,
        "train.lr": 0.001,
    }
    assert f"MiB[kd={second.values['kd']:g},train.lr=(0.01,{second.values['train.lr']:g})]+SDR[" in second.name
    assert tuning.trials["Joint"][0].values == {"train.lr": 0.01}  # of its only step


@pytest.mark.parametrize(
    "sets",
    [
        [],
        ["train.scale=", "run.compile=true", "train.lr=0.5", "train.flip=hv", "launch.options=a=1", "model.norm=group"],
    ],
)
def test_a_configuration_is_the_same_after_toml(sets: list[str], tmp_path: Path) -> None:
    chosen: dict[str, Any] = {
        "scenarios": ("a/1-1/overlapped",),
        "methods": ('FT[train.lr="x"]', "MiB"),
        "seeds": (1, 2),
    }
    config = read_config(None, sets, **(chosen if sets else {}))
    path = tmp_path / "grid.toml"
    path.write_text(as_toml(config))
    assert read_config(path) == config


def test_the_same_search_with_other_settings_is_refused(tmp_path: Path) -> None:
    """It would overwrite the trials of the first; where and how it runs, more seeds and more trials do not matter."""

    def search(*sets: str, n: int = 2, **chosen: Any) -> Tuning:
        given = {"scenarios": ("mini/3-1/overlapped",), "methods": ("MiB",), "seeds": (1,)} | chosen
        config = read_config(None, ["train.epochs=3", *sets], **given)
        return make_tuning(config, parse_scenario("mini/3-1/overlapped", 4), on="first", n=n, seed=0)

    held = search()
    (tmp_path / "tuned.toml").write_text(as_toml(held.chosen([held.trials["MiB"][1].name])))
    for same in (search(), search("run.workers=3", n=4), search(seeds=(0, 1)), search(methods=("MiB", "FT"))):
        _check_place(tmp_path, same)
    for other, named in (
        (search("train.epochs=4"), "train.epochs"),
        (search("train.epochs=30"), "train.epochs"),  # the default, which a grid leaves out
        (search("model.backbone=tiny"), "model.backbone"),
        (search("eval.crop=32"), "eval.crop"),
        (search(protocol="plop"), "protocol"),
        (search(seeds=(0,)), "seeds"),
    ):
        with pytest.raises(UserError, match=rf"tuned.toml is of a search that differs in {named}, which"):
            _check_place(tmp_path, other)
