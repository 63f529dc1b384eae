"""``run_benchmark.py report``: every table and figure from the records alone, whenever they are wanted."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``report``; imports nothing heavy."""
    add = parser.add_argument
    add("--out", type=Path, default=Path("results"), metavar="DIR", help="where leaderboards are written (default: results)")
    add("--records", type=Path, nargs="+", metavar="DIR", help="records to read (default: DIR/records of --out)")
    add("--protocol", default="sdr", help='sdr, mib, plop, strict, or with fields of your own: "sdr[background_in_mean=no]"')
    add("--format", default="text", help="what is printed: text, markdown, csv (default: text)")


def main(args: argparse.Namespace) -> int:
    """Print and write what was asked for. 0, or 2 if some of the input had to be left out."""
    from benchmark.protocol import parse_protocol
    from benchmark.records import read_records
    from benchmark.reporter import render, write_leaderboard
    from datasets.errors import UserError

    protocol = parse_protocol(args.protocol)
    records, problems = [], []
    for folder in args.records or [args.out]:
        found, wrong = read_records(folder)
        records += found
        problems += wrong
    for line in problems:
        print(f"warning: {line}", file=sys.stderr)
    if not records:
        raise UserError(f"no records yet below {', '.join(map(str, args.records or [args.out]))}")
    board = write_leaderboard(args.out, records, protocol)
    print(render(board, args.format), end="")
    return 2 if problems else 0
