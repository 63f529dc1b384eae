"""The subcommands of run_benchmark.py, each a function of the parsed arguments that gives the exit code."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from contseg.benchmark.cli.arguments import places
from contseg.benchmark.plan.config import Config, check_shares, read_config
from contseg.benchmark.store.files import Store
from contseg.datasets.errors import UserError, need, unknown

if TYPE_CHECKING:
    from accelerate import Accelerator

    from contseg.benchmark.plan.build import Plan
    from contseg.datasets.base import SegmentationDataset


def run(args: argparse.Namespace) -> int:
    """Train and score the grid, write the leaderboard, print its table."""
    config, store = _config(args), Store(args.out, args.trust_cache)
    if args.launcher == "slurm":
        need("submitit", "--launcher slurm")
    if args.launcher != "inline":
        return _launch(args, config, store)
    from contseg.benchmark.train.runner import Runner, make_accelerator

    accelerator = make_accelerator(config)
    main = accelerator.is_main_process
    if config.run.tracker != "none":
        accelerator.init_trackers("contseg", init_kwargs={})
    outcome, only = None, None
    while outcome is None or outcome.branched:
        plan = _plan_together(config, store, accelerator)
        only = _only(plan, args.only) if only is None else only
        if main:
            store.open()
            _print_summary(plan, store)
        outcome = Runner(plan, store, accelerator, _say).run(only)
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


def _plan_together(config: Config, store: Store, accelerator: Accelerator) -> Plan:
    """The plan of every process: the first one reads the label maps, the others its cache; a mistake is everyone's."""
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
    try:
        plan = _plan(config, store.check())
        check_shares(config.model.norm, plan.trains, accelerator.num_processes)
        return plan
    finally:
        if accelerator.is_main_process:
            accelerator.wait_for_everyone()


def _launch(args: argparse.Namespace, config: Config, store: Store) -> int:
    """Run the grid by other processes, watch them, print the table."""
    from contseg.benchmark.train.launch import LAUNCHERS

    plan = _plan(config, store.check())
    _only(plan, args.only)
    store.open()
    _print_summary(plan, store)
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


def plan(args: argparse.Namespace) -> int:
    """What `run` would do and cost."""
    from contseg.benchmark.cli.plan_view import as_json, as_mermaid, as_table

    config, store = _config(args), Store(args.out, args.trust_cache)
    made = _plan(config, store.check())
    if args.json:
        print(json.dumps(as_json(made, store), indent=1))
    else:
        print(as_mermaid(made) if args.graph else as_table(made, store))
    return 0


def report(args: argparse.Namespace) -> int:
    """Tables, figures and pages from the records."""
    from contseg.benchmark.cli import report as report_cli

    return report_cli.main(args)


def data(args: argparse.Namespace) -> int:
    """Data set tools."""
    from contseg.benchmark.cli import data as data_cli

    return data_cli.main(args)


def check(args: argparse.Namespace) -> int:
    """The method contract: each report as soon as it is there."""
    from contseg.benchmark.cli import plugins

    plugins.load(args.plugin)
    if bool(args.methods) is args.all:
        raise UserError("check what? Name methods, for example `check MiB`, or give --all alone")
    from tqdm import tqdm

    from contseg.benchmark.contract.check import check_method, every_name
    from contseg.methods.registry import build_method, expand_methods, recipe

    names = every_name() if args.all else [name for text in args.methods for name in expand_methods(text)]
    names = [build_method(name).name for name in dict.fromkeys(names)]  # a mistake is told before the work begins
    if own := next((name for name in names if recipe(name)), None):
        raise UserError(f"check {own}: the check has a recipe of its own; leave train.{next(iter(recipe(own)))} out")
    passed = True
    for name in tqdm(names, "check", unit="method", leave=False, disable=None):
        report = check_method(name)
        _say(str(report))
        passed = passed and report.passed
    return 0 if passed else 1


def cache(args: argparse.Namespace) -> int:
    """List or prune trained steps."""
    from contseg.benchmark.cli.cache import listing, prune

    store = Store(args.out).check()
    if not store.cache.is_dir():
        raise UserError(f"no trained steps: there is no folder {store.cache}")
    if args.action == "list":
        print(listing(store))
        return 0
    asked = any((args.config, args.scenarios, args.methods, args.seeds, args.protocol, args.set))
    made = _plan(_config(args), store) if asked else None
    print(prune(store, made, args.yes))
    return 0


def list(args: argparse.Namespace) -> int:
    """What there is to choose from."""
    from contseg.benchmark.cli import plugins

    plugins.load(args.plugin)
    from contseg.benchmark.cli.listing import LISTS, published

    wanted = {key: value for key in ("dataset", "task", "setup", "method") if (value := getattr(args, key))}
    if wanted and args.what != "published":
        raise UserError(f"--{', --'.join(wanted)} choose among published results: `list published --task 15-1`")
    if args.what == "published":
        print(published(args.dataset, args.task, args.setup, args.method))
        return 0
    if args.what not in ("all", *LISTS):
        raise unknown("list", args.what, [*LISTS, "published"])
    for name, show in LISTS.items():
        if args.what in (name, "all"):
            print(f"{name}\n{show(args.long)}\n")
    return 0


def _config(args: argparse.Namespace) -> Config:
    config = read_config(
        args.config,
        args.set,
        scenarios=tuple(args.scenarios) if args.scenarios else None,
        methods=tuple(args.methods) if args.methods else None,
        seeds=tuple(args.seeds) if args.seeds else None,
        protocol=args.protocol,
        plugins=tuple(args.plugin) if args.plugin else None,
    )
    from dataclasses import replace

    from contseg.benchmark.cli import plugins

    config = replace(config, data={**config.data, **places(args.data)})
    plugins.load(config.plugins)
    return config


def _plan(config: Config, store: Store) -> Plan:
    from contseg.benchmark.plan.build import make_plan
    from contseg.datasets.registry import open_dataset

    opened: dict[str, SegmentationDataset] = {}

    def open_data(name: str) -> SegmentationDataset:
        if name not in opened:
            opened[name] = open_dataset(name, config.data.get(name), store.cache / "presence")
        return opened[name]

    return make_plan(config, open_data, store.branches())


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
    """The leaderboard of what was scored; nothing where no cell was."""
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


def _say(line: str) -> None:
    from tqdm import tqdm

    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()
