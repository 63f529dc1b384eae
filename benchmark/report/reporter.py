"""From records on disk to a table: used by ``run`` at its end and by ``report``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from contseg.benchmark.plan.protocol import Protocol
from contseg.benchmark.report.elsewhere import as_bibtex
from contseg.benchmark.report.exports import as_json, as_latex, as_model_index
from contseg.benchmark.report.html import as_html
from contseg.benchmark.report.paper import as_paper
from contseg.benchmark.report.tables import as_csv, as_markdown, as_text, write_text
from contseg.benchmark.score.leaderboard import Leaderboard, leaderboard
from contseg.benchmark.score.records import Record, read_records
from contseg.benchmark.score.rows import Searches, read_rows
from contseg.datasets.errors import unknown

# name -> the function that renders it, and its file
FORMATS: dict[str, tuple[Callable[[Leaderboard], str], str]] = {
    "text": (as_text, "leaderboard.txt"),
    "markdown": (as_markdown, "leaderboard.md"),
    "csv": (as_csv, "leaderboard.csv"),
    "latex": (as_latex, "leaderboard.tex"),
    "paper": (as_paper, "paper.tex"),
    "json": (as_json, "leaderboard.json"),
    "model-index": (as_model_index, "model-index.yaml"),
    "bibtex": (as_bibtex, "methods.bib"),
    "html": (as_html, "leaderboard.html"),
}

__all__ = ["Leaderboard", "leaderboard", "load_records", "load_rows", "render", "write_leaderboard"]


def load_records(folder: Path | str) -> list[Record]:
    """All valid records below a folder; a damaged one is left out, with one line on stderr."""
    records, problems = read_records(folder)
    for line in problems:
        print(f"warning: {line}", file=sys.stderr)
    return records


def load_rows(folders: Sequence[Path]) -> Searches:
    """The searches that chose rows of these results folders; a damaged file is left out, with one line on stderr."""
    found, problems = read_rows(folders)
    for line in problems:
        print(f"warning: {line}", file=sys.stderr)
    return found


def write_leaderboard(
    out: Path | str, records: Sequence[Record], protocol: Protocol, order: Sequence[str] = ()
) -> Leaderboard:
    """Write ``leaderboard.md`` and ``leaderboard.csv`` into a folder, and return the leaderboard.

    ``order``: the methods in the order of the grid; FT always comes first and Joint last. Which rows a search chose is
    read from the folder.
    """
    board = leaderboard(records, protocol, order, load_rows([Path(out)]))
    for form in ("markdown", "csv"):
        write_text(Path(out) / FORMATS[form][1], render(board, form))
    return board


def render(board: Leaderboard, form: str = "text") -> str:
    """A leaderboard as text in one of ``FORMATS``. Raises ``UserError`` for an unknown format."""
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    return FORMATS[form][0](board)
