"""``contseg site``: the leaderboard as a folder of static pages."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``site``; imports nothing heavy."""
    from contseg.benchmark.cli.arguments import folder

    add = parser.add_argument
    add("records", type=Path, nargs="+", metavar="DIR", help="results folders, or a folder that contains several")
    add(
        "--out",
        type=folder("--out"),
        required=True,
        metavar="DIR",
        help="where the pages are written: a folder of its own",
    )
    add("--protocol", nargs="+", help="sdr, mib, plop, strict (default: the records' own)")
    add("--published-csv", type=Path, nargs="+", default=[], metavar="FILE", help="your own table of published results")
    add("--published-source", default="", metavar="KEY", help="prefer this source, for example sdr2021")
    add(
        "--plugin",
        nargs="+",
        default=[],
        metavar="FILE.py",
        help="code that defines methods of your own, for their pages",
    )


def main(args: argparse.Namespace) -> int:
    """Write the site. The exit code: 0, or 2 if some records were left out."""
    from contseg.benchmark.cli.report import read, read_searches
    from contseg.benchmark.plan.protocol import parse_protocol
    from contseg.benchmark.score.published import load_published
    from contseg.benchmark.site.build import boards_of, write_site
    from contseg.methods.registry import load_plugins

    protocols = [parse_protocol(text) for text in args.protocol or ()]  # a wrong name stops before any work
    published = load_published(args.published_csv)
    load_plugins(*args.plugin)
    records, problems = read(args.records)
    tuned, unread = read_searches(args.records)
    pages = write_site(boards_of(records, protocols, published, args.published_source, tuned=tuned), args.out)
    print(f"written: {len(pages)} pages; open {args.out / 'index.html'}")
    return 2 if problems or unread else 0
