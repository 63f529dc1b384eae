"""The leaderboard as a site of static pages, from records alone: no server, nothing fetched from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from contseg.benchmark.plan.protocol import Protocol, parse_protocol
from contseg.benchmark.report.exports import as_json
from contseg.benchmark.report.html import TEMPLATES
from contseg.benchmark.report.tables import as_csv, write_text
from contseg.benchmark.score.leaderboard import Leaderboard, leaderboard
from contseg.benchmark.score.published import with_literature
from contseg.benchmark.score.records import Record
from contseg.benchmark.score.rows import Searches
from contseg.benchmark.score.submissions import CONSISTENT
from contseg.benchmark.site import methods, over, runs, scenarios
from contseg.benchmark.site.catalogue import (
    Catalogue,
    compare_page,
    method_page,
    run_page,
    scenario_page,
)
from contseg.benchmark.store.files import write_sealed
from contseg.datasets.errors import UserError

OWN = Path(__file__).resolve().parent / "templates"
MANIFEST = "files.json"  # what an earlier build wrote: it may be replaced and removed


@dataclass(frozen=True)
class Page:
    """A page of the site, as a search finds it. ``path`` is seen from the site's folder."""

    path: str
    title: str
    kind: str
    text: str


@dataclass(frozen=True)
class Section:
    """A part of the navigation of the documentation: its pages as (title, address seen from the site's folder)."""

    title: str
    links: tuple[tuple[str, str], ...]


def boards_of(
    records: Sequence[Record],
    protocols: Sequence[Protocol],
    published: pd.DataFrame,
    source: str = "",
    *,
    tuned: Searches | None = None,
) -> list[Leaderboard]:
    """A leaderboard for each protocol (none given: each of the records), beside published numbers.

    ``tuned``: the searches that chose rows (``rows.read_rows``).
    """
    own = map(parse_protocol, dict.fromkeys(r["protocol"]["name"] for r in records))
    boards = (leaderboard(records, protocol, tuned=tuned) for protocol in protocols or own)
    return [with_literature(board, published, records, source) for board in boards]


def write_site(
    boards: Sequence[Leaderboard],
    out: Path,
    docs: Sequence[Section] = (),
    found: Sequence[Page] = (),
    *,
    unscored: Collection[str] = (),
) -> list[Page]:
    """Write the pages of the leaderboards into a folder, and return them.

    ``docs``: the documentation that the site stands in, for its navigation; ``found``: pages of it that the search
    finds too. ``unscored``: the runs, by ``run_id``, that are marked as consistent and not scored again. Files of an
    earlier build that are not written again are removed. ``UserError`` if the folder holds anything else.
    """
    known = _earlier(out)
    catalogue = Catalogue(tuple(boards), frozenset(unscored))
    if not catalogue.rows:
        raise UserError("no complete run yet: a site needs one")
    written: dict[str, str] = {}
    pages = list[Page]()
    tell = _environment(catalogue, docs)
    for page, template, values in _pages(catalogue):
        pages.append(page)
        root = "../" * page.path.count("/")
        written[page.path] = tell.get_template(template).render(page=page, root=root, **values)
    for name in ("site.css", "site.js"):
        written[name] = tell.get_template(name).render()
    listed = [{"t": p.title, "k": p.kind, "h": p.path, "w": p.text} for p in [*pages, *found] if p.kind != "code"]
    written["search.js"] = f"const PAGES = {json.dumps(listed, ensure_ascii=False)};\n".replace("</", "<\\/")
    for board in boards:
        written[f"leaderboard-{board.protocol.name}.csv"] = as_csv(board)
        written[f"leaderboard-{board.protocol.name}.json"] = as_json(board)
    records = {
        runs.record_file(s.run, r): r
        for shown in catalogue.runs.values()
        for s in (shown[0][1],)
        for r in s.run.records
    }
    names = sorted([*written, *records])
    write_text(out / MANIFEST, json.dumps(sorted({*known, *names}), indent=0))  # killed from here on: still ours
    for name, text in written.items():
        write_text(out / name, text)
    for name, record in records.items():
        write_sealed(out / name, record)
    for name in known - set(names):
        (out / name).unlink(missing_ok=True)
    write_text(out / MANIFEST, json.dumps(names, indent=0))
    return pages


def _earlier(out: Path) -> set[str]:
    """The files of an earlier build in this folder."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return set()
    try:
        names = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        return {str(name) for name in names if (out / name).resolve().is_relative_to(out.resolve())}
    except (OSError, ValueError, TypeError):
        raise UserError(
            f"{out} holds files that are not of a leaderboard site: name a new or an empty folder"
        ) from None


def _environment(catalogue: Catalogue, docs: Sequence[Section]) -> Environment:
    environment = Environment(
        loader=FileSystemLoader([OWN, TEMPLATES]),
        autoescape=lambda name: not (name or "").endswith((".css", ".js")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["address"] = quote
    environment.filters["json"] = lambda value: Markup(json.dumps(value, ensure_ascii=False).replace("<", "\\u003c"))
    environment.globals["docs"] = docs
    environment.globals["consistent"] = CONSISTENT
    environment.globals["places"] = [(" · ".join(place), scenario_page(place)) for place in catalogue.scenarios]
    return environment


def _pages(catalogue: Catalogue) -> Iterator[tuple[Page, str, dict[str, Any]]]:
    """Every page with its template and what the template shows."""
    front = scenarios.front(catalogue)
    files = [f"leaderboard-{board.protocol.name}" for board in catalogue.boards]
    compared = over.about(catalogue)
    words = " ".join(q["question"] for q in front["questions"])
    values = {"front": front, "files": files, "over": compared}
    yield Page("index.html", "Leaderboard", "overview", words), "index.html.j2", values
    words = "normalised score, interquartile mean and ranks over tasks"
    yield Page("tasks.html", "Over tasks", "overview", words), "over.html.j2", {"over": compared}
    listed = list[dict[str, Any]]()
    for place, tables in catalogue.scenarios.items():
        shown = scenarios.about(place, catalogue)
        title, words = (
            shown["title"],
            f"{shown['question']} {' '.join(name for step in shown['steps'] for name in step)}",
        )
        yield Page(scenario_page(place), title, "scenario", words), "scenario.html.j2", {"s": shown}
        compare = scenarios.compared(place, tables)
        words = f"compare two methods class by class, {title}"
        yield Page(compare_page(place), f"Compare: {title}", "comparison", words), "compare.html.j2", {"c": compare}
    sources: dict[str, str] = {}
    for plain, rows in catalogue.methods.items():
        parts = methods.about(plain, rows)
        sources |= methods.sources(parts)
        results = scenarios.results(rows)
        words = " ".join(f"{part['paper']} {part['summary']}" for part in parts)
        listed.append({"name": plain, "page": method_page(plain), "parts": parts, "results": results})
        page = Page(method_page(plain), plain, "method", words)
        yield page, "method.html.j2", {"parts": parts, "results": results, "plain": plain}
    words = " ".join(catalogue.methods)
    yield Page("methods.html", "Methods with results", "overview", words), "methods.html.j2", {"methods": listed}
    for path, text in sources.items():
        yield Page(path, path.removeprefix("code/").removesuffix(".html"), "code", ""), "code.html.j2", {"text": text}
    for shown_in in catalogue.runs.values():
        run, about = shown_in[0][1].run, runs.about(shown_in)
        title = f"{about['title']}: {about['scenario']}"
        yield Page(run_page(run), title, "run", run.last["run"][:12]), "run.html.j2", {"r": about}
