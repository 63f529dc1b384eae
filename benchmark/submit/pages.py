"""What people read of a leaderboard: the comment under a pull request, and the pages of all versions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from contseg.benchmark.plan.protocol import parse_protocol
from contseg.benchmark.report.reporter import FORMATS, render
from contseg.benchmark.report.tables import number, write_text
from contseg.benchmark.score.leaderboard import Leaderboard, leaderboard
from contseg.benchmark.score.published import load_published
from contseg.benchmark.score.records import Record
from contseg.benchmark.score.rows import Searches
from contseg.benchmark.score.scores import CELL
from contseg.benchmark.score.submissions import CONSISTENT, SCORED
from contseg.benchmark.site.build import boards_of, write_site
from contseg.benchmark.submit.board import HOME, Board, Judged, following

SHOWN = ("old", "new", "all")
LONGEST = 60_000  # characters; GitHub takes 65,536 in a comment
WORDS = {
    "accepted": "**Accepted**: every run was scored again by its networks, with the same counts.",
    "waits": "**Nothing speaks against it, but it is not accepted yet**: a maintainer has to look.",
    "refused": "**Refused.** Nothing of it enters the leaderboard.",
}


def boards(records: Sequence[Record], tuned: Searches) -> list[Leaderboard]:
    """A leaderboard for each protocol of the records; ``tuned``: the searches that chose rows."""
    names = dict.fromkeys(r["protocol"]["name"] for r in records)
    return [leaderboard(records, parse_protocol(name), tuned=tuned) for name in names]


def comment(judged: Judged, board: Board, also: Sequence[str] = ()) -> str:
    """What is said under a pull request, as Markdown. ``also``: faults of the request itself.

    Texts of the submission stand in code, so that nothing in them is a link, a mention or a heading.
    """
    name = judged.submission.name if judged.submission else "the submission"
    faults = [*also, *judged.faults]
    lines = [f"## Submission {_code(name)}", "", WORDS["refused" if faults else judged.word]]
    lines += ["", *(f"- {_code(fault)}" for fault in faults)] if faults else []
    lines += ["", "What is to be done:", "", *(f"- {_code(w)}" for w in judged.waits)] if judged.waits else []
    if judged.submission and not faults:
        replaces = judged.submission.manifest.replaces
        if replaces:
            lines += ["", f"It replaces runs of {_code(replaces.submission)}, because: {_code(replaces.reason)}"]
        scored = sum(v.accepted for v in judged.verdicts)
        lines += ["", f"{len(judged.verdicts)} runs, {scored} of them scored again by their networks.", ""]
        lines += ["### Difference to the table", "", difference(board, judged)]
    text = "\n".join(lines)
    return text if len(text) <= LONGEST else f"{text[:LONGEST].rsplit(chr(10), 1)[0]}\n\n(cut: it is too long)"


def _code(text: str) -> str:
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"


def difference(board: Board, judged: Judged) -> str:
    """The rows that a submission adds, changes or removes, old, new and all in per cent, as a Markdown table."""
    then = following(board, judged)
    before, after = (_rows(one.records(), one.searches()) for one in (board, then))
    lines = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        (seeds, *numbers), change = new or old or (), "new" if old is None else "changed" if new else "removed"
        if old and new:
            seeds, *numbers = (b if a == b else f"{a} -> {b}" for a, b in zip(old, new, strict=True))
        texts = [_code(text).replace("|", r"\|") for text in ("/".join(key[:3]), *key[3:])]  # a bar would end the cell
        lines.append([change, *texts, seeds, *numbers])
    if not lines:
        return "No row of the table changes."
    return str(
        tabulate(lines, ["", "scenario", "protocol", "method", "n", *SHOWN], tablefmt="github", disable_numparse=True)
    )


def _rows(records: Sequence[Record], tuned: Searches) -> dict[tuple[str, ...], tuple[str, ...]]:
    """The cell of every row of these records' tables -> n and ``SHOWN``, as printed."""
    frames = [board.frame for board in boards(records, tuned)]
    rows = [row for frame in frames for row in frame.to_dict("records")]
    return {
        tuple(str(row[k]) for k in CELL): (str(row["seeds"]), *(number(row[c], row[f"{c}_std"]) for c in SHOWN))
        for row in rows
    }


def write_pages(board: Board, out: Path) -> list[Path]:
    """The list of all versions, ``index.html``; the newest one as a site below ``leaderboard/``; and each as Markdown,
    CSV and JSON below ``versions/N/``."""
    written = []
    for entry in board.versions:
        for i, part in enumerate(boards(board.records(entry.version), board.searches(entry.version))):
            for form in ("markdown", "csv", "json"):
                name = Path(FORMATS[form][1])
                file = f"{name.stem}-{part.protocol.name}{name.suffix}" if i else name.name
                written.append(out / "versions" / str(entry.version) / file)
                write_text(written[-1], render(part, form))
    if board.versions:
        shown = boards_of(board.records(), (), load_published(), tuned=board.searches())
        pages = write_site(shown, out / "leaderboard", unscored=board.unscored())
        written += [out / "leaderboard" / page.path for page in pages]
    write_text(out / "index.html", index(board))
    return [*written, out / "index.html"]


INDEX = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Versions of the leaderboard</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
body {{ max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }}
div {{ overflow-x: auto; }}
th, td {{ text-align: left; vertical-align: top; padding: .3rem 1rem .3rem 0; border-bottom: 1px solid #8888; }}
</style>
</head>
<body>
<h1>Versions of the leaderboard</h1>
<p>{newest}</p>
<div>{table}</div>
<p>The records of each version lie in {home}/NAME/records, as they were sent. {SCORED}: the networks gave the same
counts. {CONSISTENT}: the records agree with each other, and nobody has seen the networks give these numbers.</p>
</body>
</html>
"""


def index(board: Board) -> str:
    """The page that lists all versions, the newest first."""
    head = ["version", "accepted", "submission", "runs", "verdict", "replaces", "because", "table"]
    rows = [
        [
            *(v.version, v.time[:10], v.submission, len(board.submissions[v.submission].runs)),
            *(v.verdict, v.replaces, v.reason),
            f"versions/{v.version}/leaderboard.md versions/{v.version}/leaderboard.csv",
        ]
        for v in reversed(board.versions)
    ]
    table = str(tabulate(rows, head, tablefmt="html", disable_numparse=True)) if rows else ""
    for kind in ("md", "csv"):
        table = re.sub(rf"(versions/\d+/leaderboard\.{kind})", rf'<a href="\1">{kind}</a>', table)
    newest = '<a href="leaderboard/index.html">The newest version</a>' if rows else "There is none yet."
    return INDEX.format(
        newest=newest, table=table, home=HOME, SCORED=SCORED.capitalize(), CONSISTENT=CONSISTENT.capitalize()
    )
