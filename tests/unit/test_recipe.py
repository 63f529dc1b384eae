"""A method may have its own values of ``[train]``: in its name, in its keys, in its records, and in the table."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from contseg.benchmark.cli.commands import check
from contseg.benchmark.plan.build import Plan
from contseg.benchmark.plan.config import check_shares, identity, read_config
from contseg.benchmark.plan.protocol import PROTOCOLS
from contseg.benchmark.report.tables import as_markdown
from contseg.benchmark.score import recompute
from contseg.benchmark.score.leaderboard import leaderboard
from contseg.benchmark.score.records import Run, configurations
from contseg.benchmark.train.step_record import make_record
from contseg.datasets.errors import UserError
from contseg.methods.grammar import method_text, recipe, with_recipe
from contseg.methods.registry import build_method, expand_methods
from contseg.tests.records import make_run
from contseg.tests.unit.probe import grid, keys, mini

LR = "train.lr=0.01,0.001"


def names(*methods: str, sets: tuple[str, ...] = (LR,)) -> list[str]:
    return [run.method for run in grid(*sets, method=methods).runs]


def refused(method: str, *sets: str) -> str:
    with pytest.raises(UserError) as caught:
        grid(*sets, method=method)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the name ------------------------------------------------------------------------------------------------------


def test_a_recipe_stands_in_the_brackets_of_any_part() -> None:
    assert recipe("MiB[kd=3,train.lr=(0.01,0.001)]+SDR[train.epochs=60]") == {"lr": "(0.01,0.001)", "epochs": "60"}
    assert build_method("MiB+SDR[train.lr=0.1]").name == "MiB[train.lr=0.1]+SDR"
    assert with_recipe("MiB[train.lr=1]+SDR[matching=2,train.epochs=3]", {}) == "MiB+SDR[matching=2]"


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("MiB[train.lr=(0.01,0.0001)]", "MiB[train.lr=(0.01,0.0001)]"),
        ("MiB[train.lr=(1e-2,1e-4,1e-4)]", "MiB[train.lr=(0.01,0.0001)]"),
        ("MiB[train.lr=(0.01,0.001)]", "MiB"),
        ("MiB[train.lr=(0.01,0.001,0.001)]+SDR", "MiB+SDR"),
        ("MiB[train.lr=(0.02)]", "MiB[train.lr=0.02]"),
        ("MiB[train.flip=HV,kd=10]", "MiB[train.flip=hv]"),
        ("MiB[train.power=0,kd=3,train.epochs=60.0]", "MiB[kd=3,train.epochs=60,train.power=0]"),
        ("MiB[train.nesterov=false,train.scale=()]", "MiB[train.nesterov=false,train.scale=()]"),
    ],
)
def test_a_name_keeps_what_differs_from_the_grid(written: str, canonical: str) -> None:
    assert names(written) == [canonical]
    assert names(canonical) == [canonical]


def test_a_list_sweeps_what_takes_no_list() -> None:
    assert expand_methods("MiB[kd=(1,10),train.lr=(0.01,0.001)]") == [
        "MiB[kd=1,train.lr=(0.01,0.001)]",
        "MiB[kd=10,train.lr=(0.01,0.001)]",
    ]


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("FT[train.lrr=1]", "unknown key of [train] 'lrr': did you mean 'lr'?"),
        ("FT[train.identity=1]", "unknown key of [train] 'identity'"),
        ("FT[train.lr=-1]", "FT[train.lr=-1]: train.lr must be > 0, not -1"),
        ("FT[train.lr=fast]", "train.lr must be 1 or more numbers > 0, not fast"),
        ("FT[train.scale=1]", "train.scale must be empty or two ascending numbers"),
        ("FT[train.precision=bf16]", "train.precision is one for a whole grid; set it in [train]"),
        ("MiB[train.lr=1]+SDR[train.lr=2]", "train.lr is given twice, and there is one recipe for the whole method"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(method: str, said: str) -> None:
    assert said in refused(method)


def test_epochs_that_updates_would_hide_are_refused() -> None:
    said = refused("FT[train.epochs=60]", "train.updates=4")
    assert said == "FT[train.epochs=60]: train.updates goes before train.epochs; write train.updates=() beside it"
    assert names("FT[train.epochs=60,train.updates=()]", sets=("train.updates=4",))


def test_the_contract_check_has_a_recipe_of_its_own() -> None:
    arguments = SimpleNamespace(plugin=[], methods=["FT[train.lr=1]"], all=False)
    with pytest.raises(UserError, match=r"leave train\.lr out"):
        check(arguments)


# --- the configuration ---------------------------------------------------------------------------------------------


def test_a_table_of_toml_is_the_same_method(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(
        'methods = ["FT", { method = "DKD", train.lr = [0.01, 0.001], train.epochs = 60 },\n'
        '{ method = "MiB+SDR[matching=1]", kd = [1, 10], train.lr = [[0.01, 0.001], [0.01, 0.0001]] }]\n'
    )
    assert read_config(path).methods == (
        "FT",
        "DKD[train.lr=(0.01,0.001),train.epochs=60]",
        "MiB[kd=(1,10),train.lr=(0.01,0.001)|(0.01,0.0001)]+SDR[matching=1]",
    )


@pytest.mark.parametrize("table", [{}, {"kd": 1}, {"method": "MiB", "train": 3}])
def test_a_table_that_is_no_method(table: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="is no method; write"):
        method_text(table)


def test_a_key_of_train_is_swept_for_all_methods(tmp_path: Path) -> None:
    sets, methods = ["train.lr=0.01,0.001|0.05", "train.batch=4"], ("FT", "MiB[train.lr=0.1]")
    swept = ("FT[train.lr=(0.01,0.001)|0.05]", "MiB[train.lr=0.1]")
    config = read_config(None, sets, methods=methods)
    assert (config.methods, config.train.batch) == (swept, (4,))
    path = tmp_path / "grid.toml"
    path.write_text('[train]\nlr = "0.01,0.001|0.05"\n')
    assert read_config(path, methods=methods).methods == swept
    assert names(*config.methods) == ["FT", "FT[train.lr=0.05]", "MiB[train.lr=0.1]"]


# --- the keys ------------------------------------------------------------------------------------------------------


def test_step_0_is_shared_where_its_own_values_are_equal() -> None:
    plan = grid(LR, method=("MiB", "MiB[train.lr=(0.01,0.0001)]", "MiB[train.lr=0.02]", "MiB[train.epochs=(30,60)]"))
    plain, later, other, longer = ([c.node.key for c in run.cells] for run in plan.runs)
    assert plain[0] == later[0] == longer[0] != other[0]
    assert len({plain[1], later[1], other[1], longer[1]}) == 4
    assert [c.node.train.lr for c in plan.runs[1].cells] == [(0.01,), (0.0001,), (0.0001,)]


def test_a_recipe_has_the_keys_of_a_grid_with_its_values() -> None:
    own = grid(LR, method="MiB[train.lr=(0.02,0.0001),train.momentum=0.5]")
    all_of_it = grid("train.lr=0.02,0.0001", "train.momentum=0.5", method="MiB")
    assert keys(own) == keys(all_of_it)


def test_batches_of_every_recipe_have_to_be_shared_out() -> None:
    plan = grid("train.batch=4", method=("FT", "FT[train.batch=(4,6)]"))
    check_shares(plan.config.model.norm, plan.trains, 2)
    with pytest.raises(UserError, match="a batch of 6 cannot be split over 4 processes"):
        check_shares("group", plan.trains, 4)


# --- records and tables --------------------------------------------------------------------------------------------


def records_of(plan: Plan) -> list[list[dict[str, Any]]]:
    """The records that the runs of a plan would have."""
    runs = []
    for run in plan.runs:
        runs.append([])
        for t, cell in enumerate(run.cells):
            told = {"model": identity(plan.config.model), "train": identity(cell.node.train), "versions": {}}
            told |= {"sees": {}, "provenance": {"time": str(t)}, "cost": {}, "losses": {}}
            runs[-1].append(make_record(plan, run, t, {"matrix": {}, "seconds": 1.0}, told))
    return runs


WARM = "FT[train.jitter=(0.5,0.5,0.5,0),train.optimizer=adamw,train.warmup=(0,1)]"  # fields that records may lack


def test_records_give_their_keys_again_and_a_lie_in_the_name_is_found() -> None:
    data = mini()
    stored: Any = SimpleNamespace(dataset=lambda name: data)
    plan = grid(
        LR, method=("FT", "FT[train.lr=(0.01,0.0001),train.crop=64]", WARM, "Joint[train.lr=(0.02,0.1)]"), data=data
    )
    for run, records in zip(plan.runs, records_of(plan), strict=True):
        assert recompute.keys(stored, Run(tuple(records))) == [(c.node.key, c.score) for c in run.cells]
    for record in records:
        record["method"] = "Joint[train.lr=0.05]"
    with pytest.raises(UserError, match="its name and its configuration give different values of train"):
        recompute.keys(stored, Run(tuple(records)))


def test_every_row_of_a_grid_is_scored_on_one_crop() -> None:
    plan = grid("train.crop=48", method=("FT", "FT[train.crop=32]"))
    plain, own = records_of(plan)
    assert [r["config"]["eval"]["crop"] for r in plain + own] == [[]] * 3 + [[48]] * 3
    assert [r["config"]["train"]["crop"] for r in own] == [[32]] * 3
    assert configurations([Run(tuple(plain)), Run(tuple(own))]) == [1, 1]


def test_the_table_shows_the_recipe_and_no_mark_of_another_configuration() -> None:
    def config(**train: Any) -> dict[str, Any]:
        return {"model": {}, "train": {"epochs": [1.0], "batch": [8], **train}, "eval": {"split": "val"}}

    rows = ["MiB[train.lr=(0.01,0.0001)]+SDR", "FT[train.lr=0.1]", "FT"]
    found = [(0.0001, 0.5), (0.1, 0.75), (0.01, 1.0)]
    records = [
        r
        for name, (lr, hit) in zip(rows, found, strict=True)
        for r in make_run(name, config=config(lr=[lr]), hit=lambda t, k, hit=hit: hit)
    ]
    board = leaderboard(records, PROTOCOLS["sdr"])
    assert set(board.frame["method"]) == {*rows}
    text = as_markdown(board)
    assert "MiB[train.lr=(0.01,0.0001)]+SDR" in text and "(2)" not in text
    ours = board.frame.set_index("method")
    assert ours.loc["FT", "to_ft"] == 0.0  # not FT with another rate
    assert ours.loc["FT[train.lr=0.1]", "to_ft"] < 0.0
