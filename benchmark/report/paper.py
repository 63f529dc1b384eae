"""A table for a paper: methods x tasks, to be read by ``\\input``; it needs booktabs only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from contseg.benchmark.report.caption import caption
from contseg.benchmark.report.exports import LATEX_COLUMNS, escape, latex_number
from contseg.benchmark.report.tables import TITLES, cell_text, foot, short_names, title
from contseg.benchmark.score.leaderboard import Contest, Leaderboard, ranked
from contseg.benchmark.score.scores import CONTEST, COST, METRICS, plain_name
from contseg.datasets.errors import UserError, unknown

COLUMNS = ("old", "new", "all")
QUOTED = r"\quad\textit"  # begins a row of published numbers
PUBLISHED = ("old", "new", "all")  # what the literature's table has


@dataclass(frozen=True)
class Choice:
    """What a table for a paper shows. Empty: all rows, all tasks.

    ``columns``: names of the CSV; ``rows``: methods, in this order, by full or short name; ``tasks``: ``15-1``,
    ``15-1/overlapped`` or ``voc/15-1/overlapped``; ``label``: what ``\\ref`` names.
    """

    columns: tuple[str, ...] = COLUMNS
    rows: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    label: str = "tab:contseg"

    def __post_init__(self) -> None:
        for column in self.columns:
            if column not in (*METRICS, *COST):
                raise unknown("column", column, [*METRICS, *COST])
        if not self.label or set(self.label) & set("\\{}%#~^&$ \n"):
            raise UserError(f"--label {self.label!r}: a label of LaTeX has no space and none of \\ {{ }} % # ~ ^ & $")


def as_paper(board: Leaderboard, choice: Choice | None = None) -> str:
    """A ``table`` with one ``tabular``: a row a method, a group of columns a task; published numbers below a method.

    The caption says what the numbers were made with. What is said below every table follows as comments.
    """
    choice = choice or Choice()
    keys = _keys(board, choice.tasks)
    if not keys:
        return "% no complete run yet\n"
    names = _names(board, keys)
    if choice.rows:
        names = {m: names[m] for m in _rows(names, choice.rows)}
    parts = {key: part for key, part in board.contests() if key in keys}
    lines = list[str]()
    for method, name in names.items():
        last = plain_name(method) == "Joint" and lines
        lines += [r"\midrule"] if last else []
        lines.append(_line(escape(name), [t for k in keys for t in _numbers(board, parts[k], method, choice.columns)]))
        lines += _published(board, keys, method, choice.columns)
    return _table(board, keys, choice, lines)


def _keys(board: Leaderboard, tasks: Sequence[str]) -> list[Contest]:
    """The contests that were asked for, in the order in which they were."""
    known = {key: (key[1], "/".join(key[1:3]), "/".join(key[:3])) for key, _ in board.contests()}
    if not tasks:
        return list(known)
    for task in tasks:
        if not any(task in names for names in known.values()):
            raise unknown("task", task, {name for names in known.values() for name in names})
    return list(dict.fromkeys(key for task in tasks for key, names in known.items() if task in names))


def _names(board: Leaderboard, keys: Sequence[Contest]) -> dict[str, str]:
    """Method -> printed name, FT first and Joint last; two methods of one short name have their full ones."""
    short: dict[str, str] = {}
    for key, part in board.contests():
        if key in keys:
            names = short_names(board, key[0])
            short |= {m: short.get(m, names[m]) for m in part["method"]}
    printed = list(short.values())
    order = sorted(short, key=lambda m: plain_name(m) == "Joint")
    return {m: short[m] if printed.count(short[m]) == 1 else m for m in order}


def _rows(names: dict[str, str], wanted: Sequence[str]) -> list[str]:
    for row in wanted:
        if not any(row in (m, short, plain_name(m)) for m, short in names.items()):
            raise unknown("method", row, {*names, *names.values()}, "the rows of this table")
    return list(dict.fromkeys(m for row in wanted for m, short in names.items() if row in (m, short, plain_name(m))))


def _numbers(board: Leaderboard, part: pd.DataFrame, method: str, columns: Sequence[str]) -> list[str]:
    here = part[part["method"] == method]
    if here.empty:
        return ["--"] * len(columns)
    index, row = int(here.index[0]), here.iloc[0]
    return [_number(cell_text(row, c), (index, c) in board.leaders) for c in columns]


def _number(text: str, bold: bool = False) -> str:
    """``61.2 ± 0.4`` with a small second half."""
    value, _, std = text.partition(" ± ")
    shown = latex_number(value)
    shown = rf"\textbf{{{shown}}}" if bold else shown
    return shown + (rf"{{\scriptsize$\,\pm\,${std}}}" if std else "")


def _published(board: Leaderboard, keys: Sequence[Contest], method: str, columns: Sequence[str]) -> list[str]:
    """A line for each source that has published numbers of a method on these tasks."""
    if board.literature.empty:
        return []
    here = board.literature[board.literature["method"] == method]
    found: dict[str, dict[Contest, dict[str, Any]]] = {}
    for row in here.to_dict("records"):
        found.setdefault(f"{row['source']} [{row['foot']}]", {})[tuple(row[c] for c in CONTEST)] = row  # type: ignore[index]

    def number(row: dict[str, Any] | None, column: str) -> str:
        value = row[f"published_{column}"] if row and column in PUBLISHED else float("nan")
        return "" if pd.isna(value) else rf"\textit{{{value:.1f}}}"

    lines = []
    for source, rows in found.items():
        cells = [number(rows.get(key), c) for key in keys for c in columns]
        lines += [_line(f"{QUOTED}{{{escape(source)}}}", cells)] if any(cells) else []
    return lines


def _line(head: str, cells: Sequence[str]) -> str:
    return " & ".join([head, *cells]) + r" \\"


def _table(board: Leaderboard, keys: Sequence[Contest], choice: Choice, lines: list[str]) -> str:
    n = len(choice.columns)
    own, common = _parts(keys)
    groups = [rf"\multicolumn{{{n}}}{{c}}{{{escape(title(parts))}}}" for parts in own]
    rules = " ".join(rf"\cmidrule(lr){{{2 + n * i}-{1 + n * (i + 1)}}}" for i in range(len(keys)))
    head = [LATEX_COLUMNS.get(c) or escape(TITLES.get(c, c.replace("_", " "))) for c in choice.columns] * len(keys)
    size = r"\small" if len(head) <= 6 else r"\footnotesize\setlength{\tabcolsep}{4pt}"
    size = size if len(head) <= 9 else r"\scriptsize\setlength{\tabcolsep}{2.5pt}"
    said = [f"% {line}" for line in foot(board)]
    star = "*" if len(head) > 4 else ""
    return "\n".join(
        [
            r"% \usepackage{booktabs}; \input{paper.tex}",
            rf"\begin{{table{star}}}[t]",
            rf"\centering{size}\setlength{{\belowcaptionskip}}{{4pt}}",
            rf"\caption{{{_caption(board, keys, (own, common), lines)}}}",
            rf"\label{{{choice.label}}}",
            rf"\begin{{tabular}}{{l{('r' * n) * len(keys)}}}",
            r"\toprule",
            *([_line("", groups), rules] if len(keys) > 1 else []),
            _line("Method", head),
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            *_citations(board, lines),
            rf"\end{{table{star}}}",
            *said,
            "",
        ]
    )


def _citations(board: Leaderboard, rows: Sequence[str]) -> list[str]:
    """The sources of the published numbers in these rows, in small print below the table."""
    heads = [row.partition(" & ")[0] for row in rows if row.startswith(QUOTED)]
    notes = [note for note in board.notes if note.startswith("[")]
    cited = [escape(note) for note in notes if any(f" {note.partition('] ')[0]}]" in head for head in heads)]
    lines = [r"\par\smallskip{\raggedright\scriptsize", *(f"{note}\\par" for note in cited), "}"]
    return lines if cited else []


def _parts(keys: Sequence[Contest]) -> tuple[list[list[str]], list[str]]:
    """Of data set, task, setup and protocol: what differs, for each task; and what all have in common, without the
    protocol, which the caption names."""
    varies = [len({key[i] for key in keys}) > 1 for i in range(4)]
    own = [[part for part, differs in zip(key, varies, strict=True) if differs] for key in keys]
    return own, [part for part, differs in zip(keys[0][:3], varies[:3], strict=True) if not differs]


def _caption(
    board: Leaderboard, keys: Sequence[Contest], parts: tuple[list[list[str]], list[str]], lines: Sequence[str]
) -> str:
    """What the numbers are, the facts that all tasks share, and those of single tasks with their names.

    ``parts``: as ``_parts`` gives them; ``lines``: the rows, which have bold numbers and published ones, or none.
    """
    own, common = parts
    facts = [caption(board, key).split("; ") for key in keys]
    shared = [fact for fact in facts[0] if all(fact in other for other in facts)]
    texts = ["; ".join(shared)]
    texts += [
        f"{title(parts)}: {'; '.join(rest)}"
        for parts, one in zip(own, facts, strict=True)
        for rest in ([fact for fact in one if fact not in shared],)
        if rest
    ]
    texts += ["mIoU in %, mean and sample standard deviation over seeds"]
    if any(r"\textbf{" in line for line in lines):
        kinds = max(len(ranked(part)) for key, part in board.contests() if key in keys)
        like = " that was tuned alike, saw the same external data and has the same configuration" if kinds > 1 else ""
        texts += [f"Bold: better than every other row{like}, by a paired 95 % confidence interval"]
    if any(line.startswith(QUOTED) for line in lines):
        texts += ["In italics: published numbers"]
    return ". ".join(map(escape, [title(common), *texts])) + "."
