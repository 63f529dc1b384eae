"""The shorter subcommands: each is a function of the parsed arguments that gives the exit code."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from contseg.benchmark.cli.arguments import say
from contseg.benchmark.cli.grid import fetch_initial_weights, plan_grid, read_grid
from contseg.datasets.errors import UserError, unknown


def plan(args: argparse.Namespace) -> int:
    """What `run` would do and cost."""
    from contseg.benchmark.cli.plan_view import as_json, as_mermaid, as_table
    from contseg.benchmark.store.files import Store

    config, store = read_grid(args), Store(args.out, args.trust_cache)
    made = plan_grid(config, store.check())
    if args.json:
        print(json.dumps(as_json(made, store), indent=1))
    else:
        print(as_mermaid(made) if args.graph else as_table(made, store))
    try:
        if told := fetch_initial_weights(made, store):
            print(told, file=sys.stderr)
    except UserError as missing:
        print(f"before `run`: {missing}", file=sys.stderr)
    return 0


def check(args: argparse.Namespace) -> int:
    """The method contract: each report as soon as it is there."""
    from contseg.benchmark.cli import plugins

    plugins.load(args.plugin)
    if bool(args.methods) is args.all:
        raise UserError("check what? Name methods, for example `check MiB`, or give --all alone")
    from contseg.benchmark.contract.check import check_method, every_name
    from contseg.datasets.progress import progress
    from contseg.methods.grammar import recipe
    from contseg.methods.registry import build_method, expand_methods

    names = every_name() if args.all else [name for text in args.methods for name in expand_methods(text)]
    names = [build_method(name).name for name in dict.fromkeys(names)]  # a mistake is told before the work begins
    if own := next((name for name in names if recipe(name)), None):
        raise UserError(f"check {own}: the check has a recipe of its own; leave train.{next(iter(recipe(own)))} out")
    if args.set:
        _check_with(args.set)
    passed = True
    for name in progress(names, "check", unit="method", leave=False):
        report = check_method(name)
        say(str(report))
        passed = passed and report.passed
    return 0 if passed else 1


def _check_with(settings: Sequence[str]) -> None:
    """Let the check run on another network than the tiny one; its weights are drawn, unless they are asked for."""
    from dataclasses import replace

    from contseg.benchmark.contract import toy_run
    from contseg.benchmark.plan.config import read_config
    from contseg.benchmark.plan.model_config import check as checked

    if other := next((item for item in settings if not item.startswith("model.")), None):
        raise UserError(f"check --set {other}: the check has a recipe of its own; only model.KEY=VALUE can be set")
    model = read_config(None, settings).model
    weights = "none" if model.weights == "auto" else model.weights
    toy_run.NETWORK = checked(replace(model, weights=weights))


def cache(args: argparse.Namespace) -> int:
    """List or prune trained steps."""
    from contseg.benchmark.cli.cache import listing, prune
    from contseg.benchmark.store.files import Store

    store = Store(args.out).check()
    if not store.cache.is_dir():
        raise UserError(f"no trained steps: there is no folder {store.cache}")
    if args.action == "list":
        print(listing(store))
        return 0
    asked = any((args.config, args.scenarios, args.methods, args.seeds, args.protocol, args.set))
    made = plan_grid(read_grid(args), store) if asked else None
    print(prune(store, made, args.yes))
    return 0


def show_lists(args: argparse.Namespace) -> int:
    """What there is to choose from."""
    from contseg.benchmark.cli import plugins
    from contseg.benchmark.cli.listing import LISTS, published

    plugins.load(args.plugin)

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
