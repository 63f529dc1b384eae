"""``run_benchmark.py report``: every table and figure from the records alone, whenever they are wanted."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmark.board import Leaderboard
    from benchmark.protocol import Protocol
    from benchmark.records import Record


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``report``; imports nothing heavy."""
    add = parser.add_argument
    add("--out", type=Path, default=Path("results"), metavar="DIR", help="where reports are written (default: results)")
    add("--records", type=Path, nargs="+", metavar="DIR", help="records to read (default: those of --out)")
    add("--protocol", nargs="+", default=["sdr"], help='sdr, mib, plop, strict; or "sdr[background_in_mean=no]"')
    add(
        "--format",
        nargs="+",
        default=["text", "markdown", "csv"],
        help="text (printed), markdown, csv, latex, json, model-index, html (default: text markdown csv)",
    )
    add("--with-published", action="store_true", help="set the literature's numbers beside the measured ones")
    add("--published-csv", type=Path, nargs="+", default=[], metavar="FILE", help="published results of your own")
    add("--published-source", default="", metavar="KEY", help="prefer this source, for example sdr2021")
    add("--lint-published", action="store_true", help="check the arithmetic of all published results, and nothing else")


def main(args: argparse.Namespace) -> int:
    """Print and write what was asked for. 0, or 2 if some of the input had to be left out."""
    if args.lint_published:
        return _lint(args)
    from benchmark.protocol import parse_protocol
    from benchmark.reporter import FORMATS
    from datasets.errors import unknown

    for form in args.format:
        if form not in FORMATS:
            raise unknown("format", form, FORMATS)
    protocols = [parse_protocol(text) for text in args.protocol]
    records, problems = _read(args.records or [args.out])
    boards = [_board(args, records, protocol) for protocol in protocols]
    _write(args, boards)
    return 2 if problems else 0


def _board(args: argparse.Namespace, records: list[Record], protocol: Protocol) -> Leaderboard:
    from benchmark.reporter import leaderboard

    board = leaderboard(records, protocol)
    if args.with_published:
        from benchmark.published import load_published, with_literature

        board = with_literature(board, load_published(args.published_csv), records, args.published_source)
    return board


def _write(args: argparse.Namespace, boards: list[Leaderboard]) -> None:
    """Text goes to the screen, everything else to a file; one page holds all protocols."""
    from benchmark.reporter import FORMATS, render
    from benchmark.tables import write_text

    written = []
    for form in dict.fromkeys(args.format):
        if form == "text":
            print("\n\n".join(render(board) for board in boards))
        elif form == "html":
            from benchmark.page import as_html

            written.append(args.out / FORMATS[form][1])
            write_text(written[-1], as_html(*boards))
        else:
            for i, board in enumerate(boards):
                name = Path(FORMATS[form][1])
                written.append(args.out / (f"{name.stem}-{board.protocol.name}{name.suffix}" if i else name))
                write_text(written[-1], render(board, form))
    if written:
        print(f"written: {', '.join(map(str, written))}")


def _read(folders: list[Path]) -> tuple[list[Record], list[str]]:
    """All records below the folders; what had to be left out is named on stderr."""
    from benchmark.records import read_records
    from datasets.errors import UserError

    records, problems = [], []
    for folder in folders:
        found, wrong = read_records(folder)
        records += found
        problems += wrong
    for line in problems:
        print(f"warning: {line}", file=sys.stderr)
    if not records:
        where = ", ".join(map(str, folders))
        raise UserError(f"no records yet below {where}: run `run_benchmark.py run --out {folders[0]}` first")
    return records, problems


def _lint(args: argparse.Namespace) -> int:
    from benchmark.lint import lint
    from benchmark.published import load_published

    print("\n".join(lint(load_published(args.published_csv))))
    return 0
