"""From records on disk to a table: what ``run`` prints at its end and ``report`` whenever it is asked."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmark.board import Leaderboard, leaderboard
from benchmark.protocol import Protocol
from benchmark.records import Record, read_records
from benchmark.tables import as_csv, as_markdown, render, write_text

__all__ = ["Leaderboard", "leaderboard", "load_records", "render", "write_leaderboard", "write_tables"]


def load_records(folder: Path | str) -> list[Record]:
    """All sound records below a folder; a damaged one is left out, with one line on stderr."""
    records, problems = read_records(folder)
    for line in problems:
        print(f"warning: {line}", file=sys.stderr)
    return records


def write_leaderboard(
    out: Path | str, records: Sequence[Record], protocol: Protocol, order: Sequence[str] = ()
) -> Leaderboard:
    """Write ``leaderboard.md`` and ``leaderboard.csv`` into a folder, and give the leaderboard back for printing.

    ``order``: the methods as the grid names them; FT comes first and Joint last in any case.
    """
    board = leaderboard(records, protocol, order)
    write_tables(out, board)
    return board


def write_tables(out: Path | str, board: Leaderboard) -> None:
    """Write a leaderboard's two files."""
    write_text(Path(out) / "leaderboard.md", as_markdown(board))
    write_text(Path(out) / "leaderboard.csv", as_csv(board))
