#!/usr/bin/env python3
"""contseg: compare class-incremental continual semantic segmentation methods on one footing.

Parses arguments, then plan -> runner -> reporter. No logic of its own.
"""

from __future__ import annotations

import argparse
import errno
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parent


def _as_script() -> None:
    """``python run_benchmark.py``: take this folder off the path, and make sure that ``contseg`` is this checkout.

    Left on the path, its ``datasets`` would hide Hugging Face's, which Accelerate looks for.
    """
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != HOME]
    found = importlib.util.find_spec("contseg")
    where = Path(found.origin).resolve().parent if found and found.origin else None
    if where != HOME:
        what = f"contseg is the one in {where}" if where else "contseg is not installed"
        print(
            f"error: {what}, not this checkout: `pip install -e {HOME}`, or `make install` and .venv/bin/python",
            file=sys.stderr,
        )
        sys.exit(2)


if __name__ == "__main__":
    _as_script()

EXAMPLES = """\
examples:
  python run_benchmark.py --config benchmark/configs/demo.toml              the demo: drawn data, no download
  python run_benchmark.py plan --config benchmark/configs/sdr_paper.toml --data voc=/data/VOCdevkit
  python run_benchmark.py --scenarios voc/15-1/overlapped voc/19-1/disjoint --methods FT LwF "MiB[kd=100]+SDR" Joint \\
      --seeds 0 1 2 --data voc=/data/VOCdevkit --set train.batch=24 train.precision=bf16 --out runs/voc
  accelerate launch --multi_gpu --num_processes 4 run_benchmark.py --config benchmark/configs/voc.toml --data voc=/data
  python run_benchmark.py --plugin my_method.py --methods FT MyMethod --scenarios shapes/3-1/overlapped
  python run_benchmark.py report --out runs/voc --protocol plop

A grid can be killed and run again at any time: finished steps are kept, a step under way goes on from its checkpoint.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; the exit code is 0, 1 if a cell failed or a check found something, 2 for a user's mistake."""
    from contseg.datasets.errors import UserError

    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch: large pages for large tensors on a CPU
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["run", *arguments]
    try:
        args = parser().parse_args(arguments)
        from contseg.benchmark.cli import commands

        code: int = getattr(commands, args.command)(args)
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            print(f"error: the disk is full: {error}; nothing earlier was harmed", file=sys.stderr)
        elif error.filename is not None:  # a file of the user's: which one, and why not
            print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        else:
            raise
        return 2


def parser() -> argparse.ArgumentParser:
    """All subcommands and their options; imports nothing heavy."""
    from contseg.benchmark.cli import data as data_cli
    from contseg.benchmark.cli import report as report_cli

    top = argparse.ArgumentParser(
        prog="run_benchmark.py",
        description="Compare class-incremental continual semantic segmentation methods.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=text, description=text, epilog=EXAMPLES, formatter_class=top.formatter_class
        )

    run = add("run", "train and score a grid of (scenario x method x seed), then print its table (the default command)")
    _grid(run)
    run.add_argument(
        "--launcher",
        choices=("inline", "local", "slurm"),
        default="inline",
        help="where steps run: in this process, in local processes side by side, or as Slurm jobs",
    )
    run.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="KEY",
        help="only the steps with these keys, whole or first digits",
    )
    plan = add("plan", "show what `run` would do and cost: runs, steps to train, shared, done, images to be seen")
    _grid(plan)
    for command in (run, plan):
        command.add_argument(
            "--trust-cache", action="store_true", help="take over stored steps and records that other code made"
        )
    form = plan.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the plan as JSON")
    form.add_argument("--graph", action="store_true", help="print the graph of steps as Mermaid text")
    listing = add("list", "methods, data sets, scenarios, backbones, protocols, published")
    listing.add_argument("what", nargs="?", default="all", help="one of them (default: all but published)")
    listing.add_argument("--long", action="store_true", help="with parameters, defaults and sources")
    for key, value in {"dataset": "voc", "task": "15-1", "setup": "overlapped", "method": "MiB"}.items():
        listing.add_argument(f"--{key}", default="", help=f"of published results, for example {value}")
    _plugins(listing)
    check = add("check", "run the method contract: does a method behave, and which rule does it break first")
    check.add_argument("methods", nargs="*", metavar="METHOD", help='for example MiB or "MiB[kd=100]+SDR"')
    check.add_argument(
        "--all", action="store_true", help="every registered method, and the composed ones that are listed"
    )
    _plugins(check)
    report_cli.add_arguments(add("report", "tables, figures and pages from the records alone"))
    data_cli.add_arguments(add("data", "prepare, verify, look at and export data sets"))
    cache = add("cache", "list or prune trained steps")
    cache.add_argument("action", choices=("list", "prune"))
    cache.add_argument("--yes", action="store_true", help="really remove")
    _grid(cache)
    return top


def _grid(parser: argparse.ArgumentParser) -> None:
    from contseg.benchmark.cli.arguments import folder

    add = parser.add_argument
    add("--config", type=Path, metavar="FILE.toml", help="a grid; the options below replace what it says")
    add("--scenarios", nargs="+", metavar="DATA/TASK/SETUP", help="such as voc/15-1/overlapped (`list scenarios`)")
    add("--methods", nargs="+", metavar="METHOD", help='such as FT "MiB[kd=1|10|100]+SDR" (`list methods --long`)')
    add("--seeds", nargs="+", type=int, metavar="N", help="default: 0")
    add("--protocol", help="sdr (default), mib, plop, strict; printed under every table")
    many: dict[str, Any] = {"nargs": "+", "default": [], "action": "extend"}
    add("--data", metavar="NAME=PATH", help="where a data set lies; a name of your own for your own folder", **many)
    add("--set", metavar="KEY=VALUE", help="for example train.epochs=1 model.backbone=tiny", **many)
    out = Path("runs")
    add("--out", type=folder("--out"), default=out, metavar="DIR", help="records and cache (default: runs)")
    _plugins(parser)


def _plugins(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plugin",
        nargs="+",
        default=[],
        action="extend",
        metavar="FILE.py",
        help="methods or data sets of your own",
    )


if __name__ == "__main__":
    sys.exit(main())
