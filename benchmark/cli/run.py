"""``contseg run``: train and score a grid, in this process or by others, and print its table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from contseg.benchmark.cli.arguments import say
from contseg.benchmark.cli.grid import fetch_initial_weights, plan_grid, read_grid
from contseg.datasets.errors import UserError, need

if TYPE_CHECKING:
    from accelerate import Accelerator

    from contseg.benchmark.plan.build import Plan, Run
    from contseg.benchmark.plan.config import Config
    from contseg.benchmark.plan.search import Tuning
    from contseg.benchmark.store.files import Store


def main(args: argparse.Namespace) -> int:
    """Train and score the grid, write the leaderboard, print its table."""
    from contseg.benchmark.store.files import Store

    return run_grid(read_grid(args), Store(args.out, args.trust_cache), args)


def run_grid(config: Config, store: Store, args: argparse.Namespace, tuning: Tuning | None = None) -> int:
    """The same for a configuration, or the trials of a tuning; of the options those are read that say where and what
    of it."""
    if args.launcher == "slurm":
        need("submitit", "--launcher slurm")
    if args.launcher != "inline":
        return _launch(args, config, store, tuning)
    from contseg.benchmark.store import tracker
    from contseg.benchmark.train.runner import Runner, make_accelerator

    accelerator = make_accelerator(config, store.out)
    main = accelerator.is_main_process
    outcome, only = None, None
    while outcome is None or outcome.branched:
        plan = _plan_together(config, store, accelerator)
        only = _only(plan, args.only) if only is None else only
        if main:
            _open(plan, store, args, tuning)
        tracker.start(accelerator)
        outcome = Runner(plan, store, accelerator, say, tell=partial(_log, accelerator, plan)).run(only)
    accelerator.end_training()
    if outcome.interrupted:
        if main:
            print("interrupted: what is done is kept; the same command goes on from there", file=sys.stderr)
        return 128 + outcome.interrupted
    if not main:
        return 0
    if not args.only:
        _print_table(plan, store)
    for title, reason in outcome.failed.items():
        print(f"failed: {title}: {reason}", file=sys.stderr)
    return 1 if outcome.failed else 0


def _log(accelerator: Accelerator, plan: Plan, run: Run, record: dict[str, Any]) -> None:
    """mIoU after a step, in per cent under the grid's protocol, to the tracker: one curve over steps for every run."""
    from contseg.benchmark.score.metrics import step_miou

    if accelerator.trackers:
        values = step_miou(record, plan.protocol)
        accelerator.log({f"mIoU {part}/{run.title}": v for part, v in values.items()}, step=record["step"])


def _plan_together(config: Config, store: Store, accelerator: Accelerator) -> Plan:
    """The plan of every process: the first one reads the label maps, the others its cache; a mistake stops all."""
    from contseg.benchmark.plan.config import check_shares

    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
    try:
        plan = plan_grid(config, store.check())
        check_shares(config.model.norm, plan.trains, accelerator.num_processes)
        if accelerator.is_main_process and (told := fetch_initial_weights(plan, store)):
            say(told)
        return plan
    finally:
        if accelerator.is_main_process:
            accelerator.wait_for_everyone()


def _open(plan: Plan, store: Store, args: argparse.Namespace, tuning: Tuning | None) -> None:
    """Make the results folder, note in it what a search chose or tries, and say what is to be done."""
    from contseg.benchmark.score.rows import write_rows, write_trials

    store.open()
    write_rows(store.out, plan.config, plan.runs, args.config)
    if tuning:
        write_trials(store.out, tuning, plan.runs)
    _print_summary(plan, store)


def _launch(args: argparse.Namespace, config: Config, store: Store, tuning: Tuning | None) -> int:
    """Run the grid by other processes, watch them, print the table."""
    from contseg.benchmark.train.launch import LAUNCHERS

    plan = plan_grid(config, store.check())
    _only(plan, args.only)
    if told := fetch_initial_weights(plan, store):
        say(told)
    _open(plan, store, args, tuning)
    code, wrong = LAUNCHERS[args.launcher](plan, store, _inline_words())
    _print_table(plan, store)
    for line in wrong:
        print(line, file=sys.stderr)
    return code


def _inline_words() -> tuple[str, ...]:
    """The words of this program's own command line without ``--launcher``."""
    words = iter(sys.argv[1:])
    kept = []
    for word in words:
        if word == "--launcher":
            next(words, None)
        elif not word.startswith("--launcher="):
            kept.append(word)
    return tuple(kept)


def _print_summary(plan: Plan, store: Store) -> None:
    from contseg.benchmark.cli.plan_view import other_code

    print(_summary(plan, store), flush=True)
    if told := other_code(plan, store):
        print(told, flush=True)


def _summary(plan: Plan, store: Store) -> str:
    todo = plan.to_train(store)
    images = sum(n.images for n in todo)
    return (
        f"{len(plan.runs)} runs, {sum(len(r.cells) for r in plan.runs)} cells, {len(plan.nodes)} distinct steps; "
        f"to train now: {len(todo)} steps, {images:,} images"
    )


def _only(plan: Plan, wanted: Sequence[str]) -> tuple[str, ...]:
    """The whole keys of the steps that ``--only`` names, by key or its first digits."""
    keys = []
    for text in wanted:
        found = [key for key in plan.nodes if key.startswith(text)]
        if len(found) != 1:
            how = f"{len(found)} steps have keys that begin" if found else "no step has a key that begins"
            raise UserError(f"--only {text!r}: {how} with it; `plan --json` prints the keys")
        keys += found
    return tuple(keys)


def _print_table(plan: Plan, store: Store) -> None:
    """The leaderboard of what was scored; nothing if no cell was."""
    from contseg.benchmark.report.reporter import leaderboard, load_records, render, write_leaderboard

    tune = plan.config.eval.split == "tune"
    found = load_records(store.records) if store.records.is_dir() else []
    records = [r for r in found if (r.get("split") == "tune") is tune]
    if not records:
        return
    order = [r.method for r in plan.runs]
    if tune:
        print(f"\n{render(leaderboard(records, plan.protocol, order))}")
        print("\nscored on the held-out fifth of the training images: such records enter no leaderboard")
        return
    print(f"\n{render(write_leaderboard(store.out, records, plan.protocol, order))}")
    print(f"\nwritten: {store.out / 'leaderboard.md'}, {store.out / 'leaderboard.csv'}")
