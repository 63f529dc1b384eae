"""``contseg tune``: the same number of trials for every method, and the best of each as a grid."""

from __future__ import annotations

import argparse
import csv
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contseg.benchmark.cli import run as run_cli
from contseg.benchmark.cli.arguments import number
from contseg.benchmark.cli.grid import open_data_of, plan_grid, read_grid
from contseg.datasets.errors import UserError

if TYPE_CHECKING:
    from contseg.benchmark.plan.config import Config
    from contseg.benchmark.plan.search import Tuning
    from contseg.benchmark.store.files import Store

MOST = 4096  # trials of a method: a mistyped number would be planned for hours


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options beside those of ``run``."""
    add = parser.add_argument
    add(
        "--trials",
        type=number("--trials", 1, MOST),
        default=16,
        metavar="N",
        help="of every method; the first is its default (default: 16)",
    )
    add(
        "--on",
        default="first",
        metavar="SELECTION",
        help="where trials are compared: first (a stream inside step 0, the default), other:DATA/TASK/SETUP, stream "
        "(a held-out fifth of the training images), test (the test images: an oracle)",
    )
    add("--draw", type=number("--draw"), default=0, metavar="SEED", help="seed of the drawn values (default: 0)")


def main(args: argparse.Namespace) -> int:
    """Run the trials as a grid, then write ``trials.csv``, ``tuned.toml`` and ``search.png``."""
    from contseg.benchmark.plan.search import make_tuning
    from contseg.benchmark.store.files import Store
    from contseg.datasets.view import scenario_of

    config, store = read_grid(args), Store(args.out, args.trust_cache)
    if len(config.scenarios) != 1 or not config.methods:
        raise UserError(
            "tune what? Give one scenario and the methods: --scenarios voc/15-1/overlapped --methods MiB PLOP"
        )
    data = open_data_of(config, store.check())(config.scenarios[0].partition("/")[0])
    scenario = scenario_of(data, config.scenarios[0], config.seeds[0])
    tuning = make_tuning(config, scenario, on=args.on, n=args.trials, seed=args.draw)
    _check_place(store.out, tuning)
    code = run_cli.run_grid(tuning.config, store, args, tuning)
    if code < 2 and not args.only and os.environ.get("RANK", "0") == "0":
        _write(tuning, store)
    return code


def _check_place(out: Path, tuning: Tuning) -> None:
    """Raise ``UserError`` if the folder holds another search, or trials of a method that this one leaves out."""
    grid, trials = out / "tuned.toml", out / "trials.csv"
    if grid.is_file():
        try:
            held = tomllib.loads(grid.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # not text, or not TOML
            held = {}
        tuned, own = held.get("tuned") or {}, tuning.search
        mine = ([*tuning.target.scenarios], own.on, own.scenario, own.draw)
        if (held.get("scenarios"), tuned.get("on"), tuned.get("scenario"), tuned.get("draw", 0)) != mine:
            raise UserError(f"{grid} is of another search, which this one would overwrite: choose a new --out")
        if other := _other_settings(held, tuning.target):
            raise UserError(
                f"{grid} is of a search that differs in {other}, which this one would overwrite: choose a new --out"
            )
    if trials.is_file():
        with trials.open(encoding="utf-8", errors="replace", newline="") as file:
            lost = {str(row.get("method")) for row in csv.DictReader(file)} - tuning.trials.keys()
        if lost:
            raise UserError(
                f"{trials} holds trials of {', '.join(sorted(lost))}, which this search would overwrite: name all of "
                "its methods, or choose a new --out"
            )


def _other_settings(held: dict[str, Any], target: Config) -> str:
    """The first setting in which two grids differ, other than in how and where work is done; "" if there is none.

    ``held``: a grid's TOML. With more seeds, a search goes on.
    """
    from contseg.benchmark.plan.toml import as_toml

    mine = tomllib.loads(as_toml(target))
    if not set(held.get("seeds", [0])) <= set(target.seeds):
        return "seeds"
    ours, theirs = (
        {"protocol": table.get("protocol")}
        | {f"{part}.{key}": value for part in ("model", "train", "eval") for key, value in table.get(part, {}).items()}
        for table in (mine, held)
    )
    return next((key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)), "")


def _write(tuning: Tuning, store: Store) -> None:
    from contseg.benchmark.report.tuning import budget_table, write_tuning
    from contseg.benchmark.score.leaderboard import leaderboard
    from contseg.benchmark.score.records import read_records
    from contseg.benchmark.score.tuning import trial_frame

    plan = plan_grid(tuning.config, store)
    wanted = {run.key for run in plan.runs}
    records = [r for r in read_records(store.records)[0] if r["run"] in wanted] if store.records.is_dir() else []
    frame = trial_frame(tuning.trials, leaderboard(records, plan.protocol))
    print(f"\n{tuning.said}\n\n{budget_table(frame)}\n")
    written = write_tuning(store.out, frame, tuning)
    print(f"written: {', '.join(map(str, written))}")
