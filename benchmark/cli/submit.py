"""``contseg submit``, ``leaderboard`` and ``reproduce``: results that go from one group to another."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from contseg.benchmark.cli.arguments import folder, places, say, user_cache
from contseg.datasets.errors import UserError

if TYPE_CHECKING:
    from contseg.benchmark.score.networks import StoredNetworks
    from contseg.benchmark.submit.board import Board


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", nargs="+", default=[], action="extend", metavar="NAME=PATH", help="the folder of a data set"
    )


def _add_plugin(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--plugin", nargs="+", default=[], action="extend", type=Path, metavar="FILE.py", help=text)


def add_submit(parser: argparse.ArgumentParser) -> None:
    """The options of ``submit``."""
    add = parser.add_argument
    add("--records", type=Path, required=True, metavar="DIR", help="the results folder of your runs")
    add("--out", type=Path, required=True, metavar="DIR/NAME", help="the new folder, called like the submission")
    add("--replaces", default="", metavar="NAME", help="an accepted submission whose runs these stand in for")
    add("--reason", default="", metavar="TEXT", help="with --replaces: why; it is published")
    _add_data(parser)
    _add_plugin(parser, "the files of your own methods; they are packed, and published")


def add_leaderboard(parser: argparse.ArgumentParser) -> None:
    """The options of ``leaderboard``."""
    add = parser.add_argument
    add("action", choices=("check", "accept", "build"), help="a pull request; what was merged; the pages")
    add("repository", type=Path, metavar="DIR", help="a checkout of the leaderboard's branch, with submissions/")
    add("--request", type=Path, metavar="DIR", help="check: a checkout with the pull request merged")
    add("--comment", type=Path, metavar="FILE", help="check: write what is to be said under the request")
    add("--out", type=folder("--out"), default=Path("pages"), metavar="DIR", help="build: the pages (default: pages)")
    _add_data(parser)


def add_reproduce(parser: argparse.ArgumentParser) -> None:
    """The options of ``reproduce``."""
    add = parser.add_argument
    add("record", type=Path, metavar="RECORD", help="a step's record; the steps before it lie beside it")
    add("--out", type=folder("--out"), metavar="DIR", help="a fresh folder (default: runs/reproduced-RUN-seedN)")
    _add_data(parser)
    _add_plugin(parser, "the files that define its method or data set")


def submit(args: argparse.Namespace) -> int:
    """Check runs and pack them. The exit code: 0, or 2 if there is a fault, and then nothing is written."""
    from functools import partial

    from contseg.benchmark.score.recompute import PixelCounter, Rescorer, keys
    from contseg.benchmark.score.records import read_records, results_folders
    from contseg.benchmark.score.submissions import verify
    from contseg.benchmark.submit.pack import Replaces, check_name, pack
    from contseg.methods.registry import load_plugins

    check_name(args.out.name)
    if bool(args.replaces) is not bool(args.reason.strip()):
        raise UserError("--replaces NAME and --reason TEXT belong together")
    if other := next((p for p in args.plugin if p.suffix != ".py"), None):
        raise UserError(f"--plugin {other}: a submission takes files, FILE.py; an installed package cannot be sent")
    if args.out.exists():
        raise UserError(f"{args.out} already exists: a submission is a new folder, choose another name")
    load_plugins(*args.plugin)
    records, problems = read_records(args.records)
    if not records and not problems:
        raise UserError(f"no records below {args.records}: run `contseg run --out {args.records}` first")
    stored = _stored(args, args.records)
    rescore = Rescorer(stored, results_folders(args.records), foreign=True)
    verdicts = verify(records, (), PixelCounter(stored), partial(keys, stored), rescore)
    wrong = [*problems, *(str(v) for v in verdicts if v.faults)]
    if wrong:
        print("\n".join(wrong))
        print(f"not packed: {len(wrong)} faults, see above; nothing was written", file=sys.stderr)
        return 2
    replaces = Replaces(args.replaces, args.reason.strip()) if args.replaces else None
    packed = pack(args.records, verdicts, args.out, args.plugin, replaces)
    bare = [v for v in verdicts if v.unscored]
    print("\n".join(str(v) for v in bare), end="\n" if bare else "")
    n = sum(len(v.run.records) for v in verdicts)
    print(f"packed: {len(verdicts)} runs, {n} records, {packed.size / 2**20:,.1f} MiB of networks: {packed.folder}")
    for path in args.plugin:
        print(f"with the code {path.name}: it is run elsewhere only after a maintainer has read it")
    if packed.archive:
        print(f"the networks are too large for a repository: {packed.archive}; upload it, and link it in the request")
    if bare:
        print(f"{len(bare)} runs lack networks: they can be listed as consistent, and never as scored again")
    print(f"next: copy {packed.folder} into submissions/ of the leaderboard's repository, and open a pull request")
    return 0


def leaderboard(args: argparse.Namespace) -> int:
    """Check a pull request, accept what was merged, or build the pages.

    The exit code: 0; 1 if a maintainer has to look at the request; 2 if it, or something merged, is refused.
    """
    from contseg.benchmark.submit.board import HOME, append, judge, read_board, waiting
    from contseg.benchmark.submit.pages import write_pages

    if not args.repository.is_dir():
        raise UserError(f"no repository: {args.repository} is not a folder")
    board = read_board(args.repository / HOME)
    stored = _stored(args, user_cache())
    if args.action == "check":
        return _check(args, board, stored)
    if args.action == "build":
        written = write_pages(board, args.out)
        print(f"written: version {len(board.versions)}, {len(written)} files; open {args.out / 'index.html'}")
        return 0
    refused, merged = 0, waiting(board)
    for place in merged:
        judged = judge(place, board, stored)
        lines = [*judged.faults, *(judged.waits if judged.barred else ())]
        if lines:
            refused += 1
            print("\n".join(f"not accepted: {place.name}: {line}" for line in lines))
            continue
        board = append(board, judged)
        print(f"version {len(board.versions)}: {place.name}, {board.versions[-1].verdict}")
    if not merged:
        print(f"nothing to accept: version {len(board.versions)} has every submission")
    return 2 if refused else 0


def _check(args: argparse.Namespace, board: Board, stored: StoredNetworks) -> int:
    from contseg.benchmark.report.tables import write_text
    from contseg.benchmark.submit.board import HOME, Judged, consented, judge, new_submission
    from contseg.benchmark.submit.pages import comment

    if not args.request or not args.request.is_dir():
        raise UserError("check what? --request DIR, a checkout with the pull request merged")
    place, also = new_submission(args.repository, args.request)
    if place is None and not also:
        new = consented(args.request / HOME) - consented(board.home)
        if not new:
            print("no submission: the pull request changes other files only")
            return 0
        text = f"It lets code run that was not run before, if a maintainer has read it: {', '.join(sorted(new))}"
        print(text)
        if args.comment:
            write_text(args.comment, text + "\n")
        return 1
    judged = judge(place, board, stored) if place and not also else Judged(None, tuple(also))
    text = comment(judged, board)
    print(text)
    if args.comment:
        write_text(args.comment, text + "\n")
    return {"accepted": 0, "waits": 1, "refused": 2}[judged.word]


def _stored(args: argparse.Namespace, out: Path) -> StoredNetworks:
    from contseg.benchmark.score.networks import StoredNetworks

    return StoredNetworks(out, places(args.data))


def reproduce(args: argparse.Namespace) -> int:
    """Train a recorded run again, and print stored beside new.

    The exit code: 0 if it is reproduced, 1 if not, or if that cannot be told; 2 for a mistake.
    """
    from contseg.benchmark.cli import plugins
    from contseg.benchmark.cli.grid import fetch_initial_weights, plan_grid
    from contseg.benchmark.store.files import Store
    from contseg.benchmark.submit.reproduce import Comparison, chain_of, grid_of, other_seeds
    from contseg.benchmark.train.runner import Runner, make_accelerator

    run = chain_of(args.record)
    last = run.last
    out = args.out or Path("runs") / f"reproduced-{last['run'][:8]}-seed{run.seed}"
    home = next((p.parent for p in args.record.resolve().parents if p.name == "records"), None)
    if home is not None and out.resolve() == home:
        raise UserError(f"--out {out} holds the record itself: name a fresh folder, so that it is trained again")
    plugins.load(map(str, args.plugin))
    config = grid_of(run, places(args.data), [str(p) for p in args.plugin])
    store = Store(out)
    plan = plan_grid(config, store.check())
    cells = plan.runs[0].cells[: len(run.records)]
    nodes = [cell.node.key for cell in cells]
    todo = [node.key for node in plan.to_train(store) if node.key in nodes]
    print(f"{run}, step {last['step']} of {last['steps']}: {len(todo)} of {len(nodes)} steps are trained in {out}")
    agree = nodes == [r.get("step_key") for r in run.records]
    print(
        "the keys agree: the same configuration, data and method" if agree else "THE KEYS DIFFER, see below", flush=True
    )
    if told := fetch_initial_weights(plan, store.open()):
        say(told)
    accelerator = make_accelerator(config, out)
    outcome = Runner(plan, store, accelerator, say).run(nodes)
    accelerator.end_training()
    if outcome.interrupted:
        print("interrupted: what is done is kept; the same command goes on from there", file=sys.stderr)
        return 128 + outcome.interrupted
    if outcome.failed:
        print("\n".join(f"failed: {title}: {reason}" for title, reason in outcome.failed.items()), file=sys.stderr)
        return 1
    new = [store.record(cell.path) for cell in cells]
    if None in new:
        raise UserError(f"{out} has no record of step {new.index(None)}: run the same command again")
    seeds = other_seeds(args.record, last)
    compared = Comparison(run.records, tuple(r for r in new if r is not None), tuple(seeds))
    print(f"\n{compared.table()}\n")
    if files := compared.differing_code():
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        print(f"files of contseg that are not those that made the record: {', '.join(files[:3])}{more}")
    if len(todo) < len(nodes):
        print(f"{len(nodes) - len(todo)} steps were in {out} before; remove it to train them again")
    same, text = compared.verdict()
    print(text)
    return 0 if same else 1
