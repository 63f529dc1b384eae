"""Published numbers, and when one may be shown next to a measured one.

``results/published/published_results.csv`` has one row for each printed cell. A published number is shown next to a
measured one only if data set, task, setup and the treatment of background agree, and only under a protocol that uses
the centre crop and leaves absent classes out of the mean. If there are several, ``choose`` says which one is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from contseg.benchmark.plan.protocol import Protocol
from contseg.benchmark.score.leaderboard import Leaderboard
from contseg.benchmark.score.records import Record, crop_of
from contseg.benchmark.score.scores import BOUND, CONTEST, plain_name, unmarked
from contseg.datasets.errors import UserError, unknown
from contseg.methods.external import ordered
from contseg.methods.grammar import with_recipe

HOME = Path(__file__).resolve().parents[2] / "results" / "published"
REQUIRED = ["method", "dataset", "task", "setup", "old", "new", "all", "includes_background", "source", "provenance"]
OPTIONAL = ["old_classes", "new_classes", "backbone", "external", "locator", "obtained_by", "check", "note"]
PROVENANCE = {
    "own": "the paper's own",
    "rerun": "run again by this source",
    "quoted": "quoted from another paper",
    "unknown": "the source does not say whether run again or quoted",
}
VALUES = {"includes_background": ("yes", "no", "unknown"), "provenance": tuple(PROVENANCE)}
RANK = list(PROVENANCE)
# published name -> our name; other methods with exemplars, image-level labels or other networks have no counterpart
NAMES = {
    **{name: name for name in ("FT", "Joint", "EWC", "PI", "RW", "LwF", "LwF-MC", "ILT", "CIL", "MiB", "SDR", "PLOP")},
    **{name: name for name in ("RCIL", "REMINDER", "SSUL", "DKD", "STAR", "MiB+UCD", "PLOP+UCD")},
    "SDR+MiB": "MiB+SDR",
    "EWF+MiB": "MiB+EWF",
    "CFSSeg": "CFSSeg[width=16384]",
    **{name: name for name in ("SSUL-M", "DKD-M", "STAR-M")},
    "AWT+MiB": "MiB+AWT[formulation=released]",
}
ON_ADE = {"SSUL-M": "SSUL-M[size=300]", "DKD-M": "DKD-M[size=300]"}  # 300 stored images there
OTHER_CLASS = "SegFormer|ViT|Swin"  # backbones other than a convolutional DeepLab
WEIGHTS = {"in1k", "in21k", "coco", "fm", "unknown"}  # codes of external data that weights have
TEST_IMAGES = {"voc": 1449, "ade": 2000}


def load_published(extra: Iterable[Path] = ()) -> pd.DataFrame:
    """The committed table and the user's own files with the same columns.

    ``old``, ``new``, ``all`` are numbers; ``all_printed`` is the printed text; ``ours`` is the suite's name of the
    method, or empty. Raises ``UserError`` for a missing column or a number that is not a percentage.
    """
    frames = [_read(HOME / "published_results.csv"), *(_read(Path(path)) for path in extra)]
    table = pd.concat(frames, ignore_index=True)
    own = table["method"].map(NAMES).fillna("")
    own = own.where(table["dataset"] != "ade", own.replace(ON_ADE))
    table["ours"] = own.where(~table["backbone"].str.contains(OTHER_CLASS), "")
    return table


def citations() -> dict[str, str]:
    """Source key -> citation."""
    table = pd.read_csv(HOME / "sources.csv", dtype=str)
    return dict(zip(table["source"], table["citation"], strict=True))


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"no table of published results at {path}") from None
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise UserError(f"{path} is not a CSV file: {' '.join(str(error).split())}") from None
    missing = [c for c in REQUIRED if c not in table]
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)}: published results need {', '.join(REQUIRED)}")
    for column, known in VALUES.items():
        for value in set(table[column]) - set(known):
            raise unknown(f"value of {column} in {path}", value, known)
    if "external" in table:
        table["external"] = [_codes(path, line, text) for line, text in enumerate(table["external"], 2)]
    table["all_printed"] = table["all"]
    for column in ("old", "new", "all"):
        numbers = pd.to_numeric(table[column].replace("", "nan"), errors="coerce")
        wrong = (numbers.isna() & ~table[column].isin(["", "nan"])) | (numbers < 0) | (numbers > 100)
        if wrong.any():
            line = int(wrong.to_numpy().argmax())
            raise UserError(f"{path} line {line + 2}: {column} = {table[column][line]!r} is not an mIoU in %")
        table[column] = numbers
    table = table.assign(**{c: "" for c in OPTIONAL if c not in table})
    return table[[*REQUIRED, "all_printed", *OPTIONAL]]


def _codes(path: Path, line: int, text: str) -> str:
    try:
        return " ".join(ordered(text.split()))
    except UserError as error:
        raise UserError(f"{path} line {line}: {error}") from None


def alike(here: Iterable[str], there: Iterable[str]) -> bool:
    """Whether two rows saw the same external data, as far as it is known.

    ``unknown`` stands for any weights; memory, saliency and the like have to be equal.
    """
    mine, theirs = {*here}, {*there} or {"unknown"}
    if "unknown" in mine | theirs:
        return mine - WEIGHTS == theirs - WEIGHTS
    return mine == theirs


def reading(protocol: Protocol, dataset: str) -> str:
    """Whether a protocol's means include background on this data set: ``yes`` or ``no``."""
    return "yes" if protocol.background_in_mean == "yes" and protocol.counts_class0(dataset) else "no"


def choose(table: pd.DataFrame, cell: Sequence[str], background: str, source: str = "") -> pd.DataFrame:
    """One row for each method of the suite, for one cell (data set, task, setup) of the literature.

    In this order: the preferred ``source``; a known treatment of background before an unknown one (a different one is
    never taken); own > rerun > quoted > unknown; papers before repositories; complete triples before single numbers.
    """
    here = (table[["dataset", "task", "setup"]] == list(cell)).all(axis=1)
    found = table[here & (table["ours"] != "") & table["includes_background"].isin([background, "unknown"])]
    keys = pd.DataFrame(
        {
            "source": found["source"] != source,
            "reading": found["includes_background"] == "unknown",
            "provenance": found["provenance"].map(RANK.index),
            "repository": found["source"].str.endswith("_repo"),
            "single": found["old"].isna(),
        }
    )
    return found.loc[keys.sort_values(list(keys), kind="stable").index].drop_duplicates("ours").set_index("ours")


def with_literature(
    board: Leaderboard, table: pd.DataFrame, records: Sequence[Record] = (), source: str = ""
) -> Leaderboard:
    """The leaderboard with ``literature``: the published number and the difference to it, where there is one.

    ``records``: those of the table; a note says where their test images differ from the literature's.
    """
    if source and source not in set(table["source"]):
        raise unknown("source of published results", source, set(table["source"]))
    if board.protocol.eval_view != "crop" or board.protocol.absent_classes != "drop":
        return replace(
            board, notes=(*board.notes, f"no published number was made under protocol {board.protocol.name}")
        )
    rows, feet, cited = [], list[str](), citations()
    for key, part in board.contests():
        if key[3] != board.protocol.name:  # trained or evaluated under another protocol
            continue
        chosen = choose(table, key[:3], reading(board.protocol, key[0]), source)
        for cell in part.to_dict("records"):
            exact = _without_recipe(unmarked(cell["method"]))
            name = next((n for n in (exact, plain_name(exact)) if n in chosen.index), "")
            if not name or exact.startswith(BOUND):
                continue
            printed = chosen.loc[name]
            known = printed["includes_background"] != "unknown"
            same = alike(() if cell["external"] == "none" else cell["external"].split(), printed["external"].split())
            foot = _foot(printed, cited)
            if foot not in feet:
                feet.append(foot)
            rows.append(
                {
                    **{c: cell[c] for c in [*CONTEST, "method", "old", "new", "all"]},
                    **{f"published_{c}": printed[c] for c in ("old", "new", "all")},
                    "difference": cell["all"] - printed["all"] if known and same else float("nan"),
                    "foot": feet.index(foot) + 1,
                    "source": printed["source"],
                    "provenance": printed["provenance"],
                }
            )
    notes = [f"[{i}] {foot}" for i, foot in enumerate(feet, 1)]
    notes += other_test_sets(records) if rows else []
    return replace(board, literature=pd.DataFrame(rows), notes=(*board.notes, *notes))


def _without_recipe(method: str) -> str:
    """The method without its recipe; as it is if the name cannot be parsed: it may come from elsewhere."""
    try:
        return with_recipe(method, {})
    except UserError:
        return method


def _foot(row: pd.Series, cited: dict[str, str]) -> str:
    parts = [cited.get(row["source"], row["source"]), PROVENANCE[row["provenance"]]]
    parts += [row["backbone"]] if row["backbone"] not in ("", "unknown") else []
    parts += [f"external data {row['external']}"] if row["external"] else []
    parts += ["unknown whether the mean includes background"] if row["includes_background"] == "unknown" else []
    return " ".join("; ".join([*parts, *filter(None, [row["note"]])]).split())  # one line: a note may have several


def other_test_sets(records: Sequence[Record]) -> list[str]:
    """A line for each data set with another number of test images than the literature, by its centre crops' pixels."""
    notes = set()
    for r in records:
        crop = crop_of(r)
        if r["dataset"] not in TEST_IMAGES or r["protocol"]["eval_view"] != "crop" or not crop:
            continue
        pixels = sum(sum(map(sum, r["matrix"][part])) for part in ("seen", "unseen"))
        count = pixels / (crop[0] * crop[1])
        if count != TEST_IMAGES[r["dataset"]]:
            notes.add(
                f"{r['dataset']}: tested on {count:.0f} images, the literature on {TEST_IMAGES[r['dataset']]}: "
                "differences to published numbers say nothing about a method"
            )
    return sorted(notes)


def listing(table: pd.DataFrame, dataset: str = "", task: str = "", setup: str = "", method: str = "") -> str:
    """The published results of a cell, and where sources disagree. Raises ``UserError`` for an unknown name."""
    for column, wanted in (("dataset", dataset), ("task", task), ("setup", setup), ("method", method)):
        if not wanted:
            continue
        if wanted not in set(table[column]):
            raise unknown(f"{column} in the published results", wanted, set(table[column]))
        table = table[table[column] == wanted]
    parts = []
    for key, cell in table.groupby(["dataset", "task", "setup"], sort=False):
        rows = [
            [r["method"], *map(_printed, (r["old"], r["new"], r["all"])), *(r[c] for c in _LISTED)]
            for _, group in cell.groupby("method", sort=False)
            for r in group.sort_values("includes_background", kind="stable").to_dict("records")
        ]
        head = ["method", "old", "new", "all", "background", "provenance", "source", "backbone", "external data"]
        body = tabulate(
            rows, head, tablefmt="simple", disable_numparse=True, colalign=("left", *["right"] * 3, *["left"] * 5)
        )
        parts.append("\n".join([" · ".join(key), "", body, *_disagreements(cell)]))
    return "\n\n".join(parts) if parts else "no published result matches"


_LISTED = ("includes_background", "provenance", "source", "backbone", "external")


def _printed(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:g}"


def _disagreements(cell: pd.DataFrame, margin: float = 0.1) -> list[str]:
    """Where sources print different 'all' for the same method, treatment of background and kind of network."""
    lines = []
    kind = cell["backbone"].str.extract(f"({OTHER_CLASS})", expand=False).fillna("")
    for (method, background, other), group in cell.groupby(["method", "includes_background", kind], sort=False):
        low, high = group["all"].min(), group["all"].max()
        if background != "unknown" and high - low > margin:
            where = "in" if background == "yes" else "out of"
            lines.append(
                f"disagree: {method}{f' ({other})' if other else ''}, background {where} the mean: "
                f"{low:g} to {high:g} in {group['source'].nunique()} sources"
            )
    return ["", *lines] if lines else []
