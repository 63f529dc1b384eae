"""``contseg report``: tables and figures from the records alone."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contseg.benchmark.plan.protocol import Protocol
    from contseg.benchmark.report.paper import Choice
    from contseg.benchmark.score.leaderboard import Leaderboard
    from contseg.benchmark.score.networks import StoredNetworks
    from contseg.benchmark.score.records import Record
    from contseg.benchmark.score.rows import Searches


EVAL_RESULTS = "eval-results"  # the format of several files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``report``; imports nothing heavy."""
    from contseg.benchmark.cli.arguments import folder, number

    add, out = parser.add_argument, Path("runs")
    add("--out", type=folder("--out"), default=out, metavar="DIR", help="where reports are written (default: runs)")
    add("--records", type=Path, nargs="+", metavar="DIR", help="records to read (default: those of --out)")
    add(
        "--protocol",
        nargs="+",
        help='sdr, mib, plop, strict; or "sdr[background_in_mean=no]" (default: the records\' own)',
    )
    add(
        "--format",
        nargs="+",
        default=["text", "markdown", "csv"],
        help="text (printed), markdown, csv, latex, paper, json, html, bibtex, model-index, eval-results "
        "(default: text markdown csv)",
    )
    hub = "with --format eval-results: the repository of a data set on the Hugging Face Hub"
    add("--hub", nargs="+", default=[], metavar="NAME=OWNER/REPOSITORY", help=hub)
    paper = "with --format paper: "
    add("--columns", nargs="+", metavar="NAME", help=f"{paper}the columns of each task (default: old new all)")
    add("--rows", nargs="+", metavar="METHOD", help=f"{paper}the methods, in this order (default: all)")
    add("--tasks", nargs="+", metavar="TASK", help=f"{paper}15-1, 15-1/disjoint or voc/15-1/disjoint (default: all)")
    add("--label", metavar="KEY", help=f"{paper}the label (default: tab:contseg)")
    add("--with-published", action="store_true", help="show published numbers next to the measured ones")
    add("--published-csv", type=Path, nargs="+", default=[], metavar="FILE", help="your own table of published results")
    add("--published-source", default="", metavar="KEY", help="prefer this source, for example sdr2021")
    add("--lint-published", action="store_true", help="only check the arithmetic of all published results")
    add(
        "--figures",
        type=folder("--figures"),
        metavar="DIR",
        help="write curves, classes, old against new, cost, confusion, losses and gradient norms as PNG and PDF",
    )
    add(
        "--predictions",
        type=number("--predictions"),
        default=0,
        metavar="N",
        help="with --figures: predictions of every step on N images",
    )
    add("--latent", action="store_true", help="with --figures: features and prototypes after every step")
    add("--re-evaluate", action="store_true", help="run the protocol's own evaluation pass on every stored network")
    add(
        "--verify",
        type=Path,
        metavar="DIR",
        help="check submitted records, score their networks, merge accepted runs into --out",
    )
    add(
        "--plugin",
        nargs="+",
        default=[],
        metavar="FILE.py",
        help="with --verify: load this code, which defines submitted methods",
    )
    add(
        "--data",
        nargs="+",
        default=[],
        metavar="NAME=PATH",
        help="the folder of a data set, for --predictions, --latent, --re-evaluate and --verify",
    )


def main(args: argparse.Namespace) -> int:
    """Print and write the reports. The exit code: 0, or 2 if some input was left out."""
    if args.lint_published:
        return _lint(args)
    from contseg.benchmark.cli.arguments import places
    from contseg.benchmark.plan.protocol import parse_protocol
    from contseg.benchmark.report.elsewhere import hub_names
    from contseg.benchmark.report.reporter import FORMATS
    from contseg.datasets.errors import UserError, unknown
    from contseg.methods.registry import load_plugins

    for form in args.format:
        if form not in FORMATS and form != EVAL_RESULTS:
            raise unknown("format", form, [*FORMATS, EVAL_RESULTS])
    hub_names(args.hub)
    _choice(args)
    if (args.predictions or args.latent) and not args.figures:
        raise UserError("--predictions and --latent need --figures DIR, the folder that they are written to")
    places(args.data)
    asked = [parse_protocol(text) for text in args.protocol or ()]  # a wrong name stops before any work
    if args.plugin:  # else no method is built, and torch not imported, for a table of records
        load_plugins(*args.plugin)
    problems = _verify(args) if args.verify else []
    if args.verify and not args.records and not (args.out / "records").is_dir():
        return 2  # nothing was accepted, and there are no earlier records
    records, unread = read(args.records or [args.out])
    problems += unread
    tuned, unread = read_searches(args.records or [args.out])
    problems += unread
    boards = []
    if args.re_evaluate:
        from contseg.benchmark.score.recompute import Rescorer, reevaluate

        rescore = Rescorer(_stored(args))
    for protocol in asked or map(parse_protocol, dict.fromkeys(r["protocol"]["name"] for r in records)):
        pool = records
        if args.re_evaluate:
            pool, missing = reevaluate(records, protocol, rescore)
            problems += _warn(missing)
        boards.append(_board(args, pool, protocol, tuned))
    _write(args, boards)
    if args.figures:
        problems += _warn(_draw(args, boards[0]))
    return 2 if problems else 0


def _choice(args: argparse.Namespace) -> Choice:
    """What the table for a paper shows, checked before any work."""
    from contseg.benchmark.report.paper import Choice
    from contseg.datasets.errors import UserError

    given = {key: getattr(args, key) for key in ("columns", "rows", "tasks", "label") if getattr(args, key) is not None}
    if given and "paper" not in args.format:
        raise UserError(f"--{next(iter(given))} is of the table for papers: add --format paper")
    chosen: dict[str, Any] = {key: value if key == "label" else tuple(value) for key, value in given.items()}
    return Choice(**chosen)


def _board(args: argparse.Namespace, records: list[Record], protocol: Protocol, tuned: Searches) -> Leaderboard:
    from contseg.benchmark.report.reporter import leaderboard

    board = leaderboard(records, protocol, tuned=tuned)
    if args.with_published:
        from contseg.benchmark.score.published import load_published, with_literature

        board = with_literature(board, load_published(args.published_csv), records, args.published_source)
    return board


def _write(args: argparse.Namespace, boards: list[Leaderboard]) -> None:
    """Text is printed, other formats are written to files; one HTML page holds all protocols."""
    from contseg.benchmark.report.elsewhere import eval_results, hub_names
    from contseg.benchmark.report.paper import as_paper
    from contseg.benchmark.report.reporter import FORMATS, render
    from contseg.benchmark.report.tables import write_text

    printed, files = list[str](), dict[Path, str]()
    for form in dict.fromkeys(args.format):
        if form == "text":
            printed.append("\n\n".join(render(board) for board in boards))
        elif form == "html":
            from contseg.benchmark.report.html import as_html

            files[args.out / FORMATS[form][1]] = as_html(*boards)
        elif form == EVAL_RESULTS:
            for board in boards:
                texts = eval_results(board, hub_names(args.hub))
                files |= {args.out / path: text for path, text in texts.items()}
        else:
            for i, board in enumerate(boards):
                name = Path(FORMATS[form][1])
                path = args.out / (f"{name.stem}-{board.protocol.name}{name.suffix}" if i else name)
                files[path] = as_paper(board, _choice(args)) if form == "paper" else render(board, form)
    for path, text in files.items():  # after all are made: a wrong row of the paper's table writes nothing
        write_text(path, text)
    if files:
        shown = dict.fromkeys(p.parents[1] if p.parents[1].name == EVAL_RESULTS else p for p in files)
        printed.append(f"written: {', '.join(map(str, shown))}")
    print("\n".join(printed))


def _draw(args: argparse.Namespace, board: Leaderboard) -> list[str]:
    """Draw the requested figures. Returns what could not be drawn, and why."""
    from contseg.benchmark.report.figures import unwatched, write_figures
    from contseg.benchmark.report.profiles import write_over_tasks

    written, missing = write_figures(board, args.figures), list[str]()
    more, refused = write_over_tasks(board, args.figures)
    written += more
    if args.predictions:
        from contseg.benchmark.report.predictions import write_predictions

        more, missing = write_predictions(board, _stored(args), args.predictions, args.figures)
        written += more
    if args.latent:
        from contseg.benchmark.report.latent import write_latent

        more, without = write_latent(board, _stored(args), args.figures)
        written, missing = written + more, missing + without
    print("\n".join([*refused, *unwatched(board), f"drawn: {len(written)} files in {args.figures}"]))
    return missing


def _verify(args: argparse.Namespace) -> list[str]:
    """Check the records of ``--verify`` and merge accepted runs into ``--out``. Returns the refusals."""
    from functools import partial

    from contseg.benchmark.score.recompute import PixelCounter, Rescorer, keys
    from contseg.benchmark.score.records import read_records, results_folders
    from contseg.benchmark.score.rows import carry_rows
    from contseg.benchmark.score.submissions import merge, verify
    from contseg.datasets.errors import UserError

    submitted, problems = read_records(args.verify)
    problems = [line.replace("left out", "refused", 1) for line in problems]
    print("\n".join(problems), end="\n" if problems else "")
    if not submitted and not problems:
        raise UserError(f"no records to verify below {args.verify}")
    known = read_records(args.out)[0] if (args.out / "records").is_dir() else []
    stored = _stored(args)
    rescore = Rescorer(stored, results_folders(args.verify), foreign=True)
    for verdict in verify(submitted, known, PixelCounter(stored), partial(keys, stored), rescore):
        clash = merge(verdict.run, args.out / "records") if verdict.accepted else []
        if verdict.accepted and not clash:
            carry_rows(results_folders(args.verify), {verdict.run.last["run"]}, args.out)
        line = f"refused: {verdict.run}: {clash[0]}" if clash else str(verdict)
        print(line)
        problems += [line] if clash or not verdict.accepted else []
    return problems


def _stored(args: argparse.Namespace) -> StoredNetworks:
    from contseg.benchmark.cli.arguments import places
    from contseg.benchmark.score.networks import StoredNetworks

    return StoredNetworks(args.out, places(args.data))


def _warn(lines: list[str]) -> list[str]:
    for line in lines:
        print(f"warning: {line}", file=sys.stderr)
    return lines


def read(folders: list[Path]) -> tuple[list[Record], list[str]]:
    """All records of the test set below the folders; stderr names each file that was left out.

    Records of ``eval.split=tune`` serve to choose a configuration. They enter no leaderboard, which is not a fault.
    """
    from contseg.benchmark.score.records import read_records
    from contseg.datasets.errors import UserError

    records, problems = [], []
    for folder in folders:
        found, wrong = read_records(folder)
        records += found
        problems += wrong
    _warn(problems)
    where = ", ".join(map(str, folders))
    if not records:
        raise UserError(f"no records yet below {where}: run `contseg run --out {folders[0]}` first")
    tested = [r for r in records if r.get("split", "val") == "val"]
    if not tested:
        raise UserError(
            f"all records below {where} are scored on held-out training images (eval.split=tune): they enter no "
            "leaderboard; `run` prints their table"
        )
    if len(tested) < len(records):
        print(
            f"left out: {len(records) - len(tested)} records scored on held-out training images (eval.split=tune)",
            file=sys.stderr,
        )
    return tested, problems


def read_searches(folders: list[Path]) -> tuple[Searches, list[str]]:
    """Which rows a search chose, as the files beside the records say; stderr names each file that was left out."""
    from contseg.benchmark.score.records import results_folders
    from contseg.benchmark.score.rows import read_rows

    tuned, problems = read_rows(place for folder in folders for place in results_folders(folder))
    return tuned, _warn(problems)


def _lint(args: argparse.Namespace) -> int:
    from contseg.benchmark.score.published import load_published
    from contseg.benchmark.score.published_lint import lint

    print("\n".join(lint(load_published(args.published_csv))))
    return 0
