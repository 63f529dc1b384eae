"""What a page says of the method itself: papers, formulas, parameters and code, from the registry and the docs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from contseg.benchmark.score.scores import unmarked
from contseg.benchmark.site.catalogue import Row, slug
from contseg.datasets.errors import UserError
from contseg.methods.grammar import parse, value_text
from contseg.methods.registry import REQUIRED, Entry, parts_of

ROOT = Path(__file__).resolve().parents[2]
TEXT = ROOT / "docs" / "methods.md"
ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")


def about(plain: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A part for the method and for each add-on: ``MiB+SDR`` has two. None if it is not registered here."""
    try:
        entries = parts_of(plain)
    except UserError:
        return []
    given = [_given(row.cell["method"]) for row in rows]
    return [_part(entry, [names[n] for names in given if n < len(names)]) for n, entry in enumerate(entries)]


def _given(method: str) -> list[dict[str, str]]:
    try:
        return [values for _, values in parse(unmarked(method))]
    except UserError:
        return []


def _part(entry: Entry, given: Sequence[dict[str, str]]) -> dict[str, Any]:
    number = ARXIV.search(entry.paper)
    name = entry.name if entry.kind == "method" else f"+{entry.name}"
    written = _tables("| method | paper | formulas |").get(name, ())
    parameters = [
        {
            "name": p.name,
            "default": "none: must be given" if p.default is REQUIRED else value_text(p.default),
            "used": sorted({values[p.name] for values in given if p.name in values}),
            "source": p.source,
        }
        for p in entry.parameters
    ]
    formula = written[1] if len(written) > 1 else ""
    return {
        "name": name,
        "kind": entry.kind,
        "paper": entry.paper or (written[0] if written else ""),
        "arxiv": f"https://arxiv.org/abs/{number[1]}" if number else "",
        "summary": entry.summary,
        "formula": formula,
        "formulas": [(id_, *formulas()[id_]) for id_ in _ids(formula) if id_ in formulas()],
        "parameters": parameters,
        "code": code_page(Path(entry.origin)),
        "file": _inside(Path(entry.origin)),
    }


def _ids(formula: str) -> list[str]:
    """The ids of formulas in a line: ``"F-UNCE + 10 F-UNKD"`` has two. The two signs of F-DKD are one formula."""
    return list(dict.fromkeys(re.findall(r"F-[A-Z-]*[A-Z]±?", re.sub("[⁺⁻]", "±", formula))))


def code_page(path: Path) -> str:
    """The page that shows a file of contseg; empty for code from elsewhere, which the site does not copy."""
    inside = _inside(path)
    return f"code/{slug(inside.replace('/', '.'))}.html" if inside else ""


def _inside(path: Path) -> str:
    methods = ROOT / "methods"
    return path.resolve().relative_to(ROOT).as_posix() if path.resolve().is_relative_to(methods) else ""


def sources(parts: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Page -> text of every file that the parts of a method name."""
    return {part["code"]: (ROOT / part["file"]).read_text(encoding="utf-8") for part in parts if part["code"]}


# --- formulas, from docs/methods.md ---------------------------------------------------------------------------------


@cache
def _tables(head: str) -> dict[str, tuple[str, ...]]:
    """The rows of the page's tables with this head, by first column; none where the page is not installed."""
    if not TEXT.is_file():
        return {}
    blocks = re.findall(r"(?:^\|.*\n)+", TEXT.read_text(encoding="utf-8"), re.MULTILINE)
    lines = (line for block in blocks if block.startswith(head) for line in block.splitlines()[2:])
    rows = (re.split(r"(?<= )\|(?= |$)", line.strip()[1:].rstrip("|")) for line in lines)
    return {cells[0].strip().strip("`"): tuple(c.strip() for c in cells[1:]) for cells in rows}


@cache
def formulas() -> dict[str, tuple[str, str, str]]:
    """Id -> formula and remarks as HTML, and what the loss is a mean over."""
    found = {}
    for id_, cells in _tables("| id | formula |").items():
        formula, over, remarks = (*cells, "", "", "")[:3]
        found[id_] = (drawn(formula), drawn(over), drawn(remarks))
    return found


def drawn(text: str) -> str:
    """A line of Markdown as HTML: ``$...$`` as MathML, or as text without latex2mathml (``contseg[docs]``)."""
    parts = re.split(r"\$([^$]+)\$", text)
    return "".join(_mathml(p) if i % 2 else _plain(p) for i, p in enumerate(parts))


def _plain(text: str) -> str:
    from html import escape

    text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text)
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def _mathml(text: str) -> str:
    """A formula as MathML; bars keep the size of a letter, else the left one of a pair would grow alone."""
    from html import escape

    try:
        from latex2mathml.converter import convert
    except ImportError:
        return f"<code>{escape(text)}</code>"
    return re.sub(r"<mo>(&#x02016;|&#x0007C;)</mo>", r'<mo stretchy="false">\1</mo>', convert(text))
