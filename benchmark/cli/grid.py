"""The grid that a command works on: its options, its configuration, its plan. The options import nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contseg.benchmark.cli.arguments import folder, grid_file, places

if TYPE_CHECKING:
    from collections.abc import Callable

    from contseg.benchmark.plan.build import Plan
    from contseg.benchmark.plan.config import Config
    from contseg.benchmark.store.files import Store
    from contseg.datasets.base import SegmentationDataset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that name a grid, where its data lie and where its results stay."""
    add = parser.add_argument
    add(
        "--config",
        type=grid_file,
        metavar="NAME|FILE.toml",
        help="a grid: one of `list configs`, or your own file; the options below replace its values",
    )
    add("--scenarios", nargs="+", metavar="DATA/TASK/SETUP", help="such as voc/15-1/overlapped (`list scenarios`)")
    add("--methods", nargs="+", metavar="METHOD", help='such as FT "MiB[kd=1|10|100]+SDR" (`list methods --long`)')
    add("--seeds", nargs="+", type=int, metavar="N", help="default: 0")
    add("--protocol", help="sdr (default), mib, plop, strict; printed under every table")
    many: dict[str, Any] = {"nargs": "+", "default": [], "action": "extend"}
    add("--data", metavar="NAME=PATH", help="the folder of a data set; choose a new name for your own folder", **many)
    add("--set", metavar="KEY=VALUE", help="for example train.epochs=1 model.backbone=tiny", **many)
    out = Path("runs")
    add("--out", type=folder("--out"), default=out, metavar="DIR", help="records and cache (default: runs)")
    add_plugins(parser)


def add_plugins(parser: argparse.ArgumentParser) -> None:
    """The option ``--plugin``."""
    parser.add_argument(
        "--plugin",
        nargs="+",
        default=[],
        action="extend",
        metavar="FILE.py",
        help="your own methods or data sets",
    )


def read_grid(args: argparse.Namespace) -> Config:
    """The configuration that the options name; its plugins are loaded. Raises ``UserError``."""
    from dataclasses import replace

    from contseg.benchmark.cli import plugins
    from contseg.benchmark.plan.config import read_config

    config = read_config(
        args.config,
        args.set,
        scenarios=tuple(args.scenarios) if args.scenarios else None,
        methods=tuple(args.methods) if args.methods else None,
        seeds=tuple(args.seeds) if args.seeds else None,
        protocol=args.protocol,
        plugins=tuple(args.plugin) if args.plugin else None,
    )
    config = replace(config, data={**config.data, **places(args.data)})
    plugins.load(config.plugins)
    return config


def fetch_initial_weights(plan: Plan, store: Store) -> str:
    """Fetch the weights in which step 0 begins, once, before workers or jobs need them; a file is tried on its network.

    Nothing is done where no step 0 is to be trained. Gives a line to tell of a file of released names, or "".
    Raises ``UserError`` where the weights cannot be had.
    """
    from contseg.benchmark.models.weights import fetch_weights, told_of
    from contseg.benchmark.plan.model_config import local_weights
    from contseg.benchmark.plan.timm_networks import PREFIX

    model = plan.config.model
    first = [node for node in plan.to_train(store) if node.parent is None]
    if not first:
        return ""
    file = fetch_weights(model)
    if file is not None and (local_weights(model) or model.backbone.startswith(PREFIX)):
        from contseg.benchmark.models.segmenter import build_model

        build_model(model, [1])
    return told_of(model, [node.step.n_new for node in first])


def plan_grid(config: Config, store: Store) -> Plan:
    """The plan of a configuration. Raises ``UserError`` too where a method refuses the network."""
    from contseg.benchmark.plan.build import make_plan

    plan = make_plan(config, open_data_of(config, store), store.branches())
    _try_networks(plan)
    return plan


def _try_networks(plan: Plan) -> None:
    """Let every method that changes the network do so, on torch's device "meta": ``UserError`` if it refuses it, or
    breaks the contract.

    Anything else that goes wrong there is told when the step is trained, as it may be of this device.
    """
    from dataclasses import replace

    from contseg.datasets.errors import UserError
    from contseg.methods.base import HOOKS, describe
    from contseg.methods.faults import MethodError
    from contseg.methods.registry import build_method

    first = {run.method: run.scenario.steps[0] for run in plan.runs}
    built = {name: build_method(name) for name in first}
    tried: list[tuple[Any, Any]] = []
    for name, method in built.items():
        hook = method.hook("build", first[name])
        what = describe(hook), first[name]
        if hook is HOOKS["build"] or what in tried:
            continue
        tried.append(what)
        import torch

        from contseg.benchmark.models.load import fresh

        try:
            with torch.device("meta"):
                fresh(replace(plan.config.model, weights="none"), first[name], method, 0)
        except (MethodError, UserError) as refused:
            raise UserError(f"{name}: {refused}") from None
        except Exception:
            continue


def open_data_of(config: Config, store: Store) -> Callable[[str], SegmentationDataset]:
    """A function that opens a configuration's data sets by name, each once."""
    from contseg.datasets.registry import open_dataset

    opened: dict[str, SegmentationDataset] = {}

    def open_data(name: str) -> SegmentationDataset:
        if name not in opened:
            opened[name] = open_dataset(name, config.data.get(name), store.cache / "presence")
        return opened[name]

    return open_data
