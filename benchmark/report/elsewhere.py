"""A leaderboard for other people's programs: BibTeX of its methods, and the ``.eval_results`` files of Hugging Face."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from contseg.benchmark.report.exports import records_of
from contseg.benchmark.report.tables import shortened
from contseg.benchmark.score.leaderboard import Leaderboard
from contseg.benchmark.score.published import HOME
from contseg.benchmark.score.scores import CELL, unmarked
from contseg.datasets.errors import UserError
from contseg.methods.grammar import parse
from contseg.methods.registry import addons, methods

ENTRIES = "methods.bib"
ENTRY = re.compile(r"^@\w+\{.*?^\}$", re.MULTILINE | re.DOTALL)
OF = re.compile(r"^  methods = \{(.*)\},\n", re.MULTILINE)
WITHOUT = ("FT", "Joint")  # they come from no paper
HUB = re.compile(r"[\w.-]+/[\w.-]+")


def entries() -> dict[str, str]:
    """The BibTeX entry of every method and add-on that has one, by name."""
    text = (HOME / ENTRIES).read_text(encoding="utf-8")
    found = {}
    for entry in ENTRY.findall(text):
        for name in OF.search(entry)[1].split(", "):  # type: ignore[index]  # under test
            found[name] = OF.sub("", entry)
    return found


def parts(text: str) -> list[str]:
    """The names of a method and its add-ons in a row of a table; the text itself where it cannot be read."""
    try:
        return [name for name, _ in parse(unmarked(text))]
    except UserError:
        return [text]


def as_bibtex(board: Leaderboard) -> str:
    """One BibTeX entry for each paper of the methods and add-ons in the tables, published rows included.

    A method without an entry is named in a comment, with what it says of its source.
    """
    rows = [*board.frame["method"], *board.literature.get("method", ())]
    names = list(dict.fromkeys(name for row in rows for name in parts(str(row))))
    known, registered = entries(), {**methods(), **addons()}
    cited: dict[str, list[str]] = {}
    comments = []
    for name in names:
        if name in known:
            cited.setdefault(known[name], []).append(name)
        elif name not in WITHOUT:
            paper = registered[name].paper if name in registered else ""
            comments.append(f"% {name}: no entry" + (f"; its source: {paper}" if paper else ""))
    texts = [f"% {', '.join(of)}\n{entry}" for entry, of in cited.items()]
    return "\n\n".join([*(["\n".join(comments)] if comments else []), *texts]) + "\n"


def hub_names(items: list[str]) -> dict[str, str]:
    """Data set -> its repository on the Hugging Face Hub, from words ``NAME=OWNER/REPOSITORY``. ``UserError``."""
    found = {}
    for item in items:
        name, _, hub = item.partition("=")
        if not name or not HUB.fullmatch(hub):
            raise UserError(f"--hub {item}: write NAME=OWNER/REPOSITORY, the data set's repository on the Hub")
        found[name] = hub
    return found


def eval_results(board: Leaderboard, hub: Mapping[str, str]) -> dict[Path, str]:
    """File below ``eval-results/METHOD`` -> its text, for ``.eval_results`` of that method's model repository.

    One file for each cell: mIoU over all classes after the last step, mean over seeds, in per cent. The Hub files a
    result under a data set's repository, which only the user can name. ``UserError`` if one is missing.
    """
    import yaml  # type: ignore[import-untyped]  # installed with accelerate
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    files = {}
    for row in records_of(board.frame):
        if row["dataset"] not in hub:
            raise UserError(
                f"--format eval-results: which repository on the Hugging Face Hub is {row['dataset']}? "
                f"--hub {row['dataset']}=OWNER/REPOSITORY"
            )
        if row["all"] is None:
            continue
        cell = tuple(row[k] for k in CELL)
        about = (
            f"mIoU in % over all classes after the last step, protocol {cell[3]}, mean over seeds, n = {row['seeds']}"
        )
        entry = EvalResultEntry(
            dataset_id=hub[row["dataset"]],
            task_id=_plain("_".join(cell[1:4])),
            value=round(row["all"], 2),
            date=max((s.run.last["provenance"].get("time", "") for s in board.of(cell)), default="") or None,
            notes=about,
        )
        text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True, width=120)
        files[Path("eval-results", _plain(row["method"]), f"{_plain('_'.join(cell[:4]))}.yaml")] = str(text)
    return files


def _plain(text: str) -> str:
    """A text as a file name; the tasks [1,3|2] and [1|3|2] stay two, and so do long texts of one beginning."""
    name = re.sub(r"[^\w.+=@-]+", "_", text.replace("|", "+")).strip("_")
    return shortened(name, text)
