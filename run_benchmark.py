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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

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

FIRST = """\
examples:
  contseg run --config demo                                   the demo: drawn data, no download
  contseg plan --config sdr_paper --data voc=/data/VOC2012
  contseg run --scenarios voc/15-1/overlapped voc/19-1/disjoint --methods FT LwF "MiB[kd=100]+SDR" Joint \\
      --seeds 0 1 2 --data voc=/data/VOC2012 --set train.batch=24 train.precision=bf16 --out runs/voc
  accelerate launch --multi_gpu --num_processes 4 run_benchmark.py run --config voc --data voc=/data/VOC2012
  contseg run --plugin my_method.py --methods FT MyMethod --scenarios shapes/3-1/overlapped
  contseg report --out runs/voc --protocol plop
  contseg predict runs/voc/records/.../step5.json street.jpg photos/ --out seen

In a checkout, `python run_benchmark.py` is the same program. A grid can be killed and run again at any time: finished
steps are kept, an unfinished step goes on from its checkpoint.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; the exit code: 0, 1 if a cell failed or a check found something, 2 for a user's mistake,
    128 and the signal's number if it was interrupted."""
    from contseg.datasets.errors import UserError

    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch: large pages for large tensors on a CPU
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version")):
        arguments = ["run", *arguments]
    try:
        args = _parse(parser(), arguments)
        run: Callable[[argparse.Namespace], int] = args.run
        return run(args)
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


class _Version(argparse.Action):
    """``--version``; nothing is looked up before it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *given: Any) -> None:
        from contseg import __version__

        print(f"contseg {__version__}")
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """A mistake is one line, without the list of all options."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see `{self.prog} --help`\n")


def _parse(top: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments; of words that the command does not take: the nearest option, or whose option they are."""
    args, left = top.parse_known_args([*map(_expanded, arguments)])
    if not left:
        return args
    import difflib

    commands = _commands(top)
    command, word = commands[args.command], left[0].partition("=")[0]
    near = difflib.get_close_matches(word, sorted(_options(command)), 1)
    others = [f"`{name}`" for name, other in commands.items() if word.startswith("--") and word in _options(other)]
    hint = f" (did you mean {near[0]}?)" if near else ""
    if others and word not in _options(command):
        hint = f" ({word} belongs to {', '.join(others)})"
    command.error(f"unrecognized arguments: {' '.join(left)}{hint}")


def _expanded(word: str) -> str:
    """A word with the folder of a user in place of ~, which a shell leaves in ``--out=~/x``."""
    name, equals, value = word.partition("=")
    if equals and name.startswith("--"):
        return f"{name}={os.path.expanduser(value)}"
    return os.path.expanduser(word)


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The subcommands of a parser by name."""
    found = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {name: command for choices in found for name, command in choices.items()}


def _options(parser: argparse.ArgumentParser) -> set[str]:
    """The options of a parser and of its subcommands."""
    below = (_options(command) for command in _commands(parser).values())
    return set(parser._option_string_actions).union(*below)


def parser() -> argparse.ArgumentParser:
    """All subcommands and their options; imports nothing heavy."""
    from contseg.benchmark.cli import commands, data, grid, ports, report, site, submit, tune
    from contseg.benchmark.cli import run as run_cli
    from contseg.benchmark.cli.examples import EXAMPLES

    top = _Parser(
        prog="contseg",
        description="Compare class-incremental continual semantic segmentation methods.",
        epilog=FIRST,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action=_Version, help="print the version and exit")
    subcommands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, does: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        below = f"examples:{EXAMPLES.get(name, '')}"
        command = subcommands.add_parser(
            name, help=text, description=text, epilog=below, formatter_class=top.formatter_class
        )
        command.set_defaults(run=does)
        return command

    run = add(
        "run",
        run_cli.main,
        "train and score a grid (scenario x method x seed), then print its table (the default)",
    )
    grid.add_arguments(run)
    tuning = add("tune", tune.main, "try the same number of drawn values for every method; write the best as a grid")
    grid.add_arguments(tuning)
    tune.add_arguments(tuning)
    for command in (run, tuning):
        command.add_argument(
            "--launcher",
            choices=("inline", "local", "slurm"),
            default="inline",
            help="where steps run: in this process, in local processes side by side, or as Slurm jobs",
        )
        command.add_argument(
            "--only",
            nargs="+",
            default=[],
            metavar="KEY",
            help="only the steps with these keys, whole or first digits",
        )
    plan = add(
        "plan",
        commands.plan,
        "show what `run` would do and cost: runs, steps to train, shared and done, images",
    )
    grid.add_arguments(plan)
    for command in (run, plan, tuning):
        command.add_argument(
            "--trust-cache", action="store_true", help="take over stored steps and records that other code made"
        )
    form = plan.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the plan as JSON")
    form.add_argument("--graph", action="store_true", help="print the graph of steps as Mermaid text")
    listing = add("list", commands.show_lists, "methods, datasets, scenarios, backbones, protocols, configs, published")
    listing.add_argument("what", nargs="?", default="all", help="one of them (default: all but published)")
    listing.add_argument("--long", action="store_true", help="with parameters, defaults and sources")
    for key, value in {"dataset": "voc", "task": "15-1", "setup": "overlapped", "method": "MiB"}.items():
        listing.add_argument(f"--{key}", default="", help=f"of published results, for example {value}")
    grid.add_plugins(listing)
    check = add("check", commands.check, "run the contract check of a method: which rule does it break first")
    check.add_argument("methods", nargs="*", metavar="METHOD", help='for example MiB or "MiB[kd=100]+SDR"')
    check.add_argument(
        "--all", action="store_true", help="every registered method, and the composed ones that are listed"
    )
    check.add_argument(
        "--set",
        nargs="+",
        default=[],
        action="extend",
        metavar="model.KEY=VALUE",
        help="another network than the tiny one, for example model.backbone=resnet18: minutes a method",
    )
    grid.add_plugins(check)
    report.add_arguments(add("report", report.main, "tables, figures and pages from the records alone"))
    site.add_arguments(add("site", site.main, "the leaderboard as a folder of static pages, from the records alone"))
    data.add_arguments(add("data", data.main, "prepare, verify, look at and export data sets"))
    ports.add_predict(add("predict", ports.predict, "labels and overlays of your own images by a trained step"))
    ports.add_export(add("export", ports.export, "a trained step as a file that runs without contseg"))
    submit.add_submit(add("submit", submit.submit, "check your runs and pack them for somebody's leaderboard"))
    submit.add_leaderboard(add("leaderboard", submit.leaderboard, "check, accept and show what others submitted"))
    submit.add_reproduce(add("reproduce", submit.reproduce, "train a recorded run again: stored beside new, by class"))
    cache = add("cache", commands.cache, "list or prune trained steps")
    of_prune = "prune removes what the grid of the options no longer needs; without a grid, all that is not in training"
    cache.add_argument("action", choices=("list", "prune"), help=of_prune)
    cache.add_argument("--yes", action="store_true", help="remove them; without it, only say what would be removed")
    grid.add_arguments(cache)
    return top


if __name__ == "__main__":
    sys.exit(main())
