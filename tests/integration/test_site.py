"""The documentation as a site: built without a warning, whole, and by itself."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from contseg.tests.browser import chromium, need_chromium
from contseg.tests.material import ROOT


class Html(HTMLParser):
    """What a page names, what it links to, and what it loads."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {name: value or "" for name, value in attrs}
        self.ids |= {names["id"]} if "id" in names else set()
        if tag == "a" and "href" in names:
            self.links.append(names["href"])
        elif tag == "link" and names.get("rel") not in ("canonical", "prev", "next"):
            self.loads.append(names.get("href", ""))
        self.loads += [names[name] for name in ("src", "srcset", "poster", "data") if name in names]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(module, reason="no mkdocs: pip install 'contseg[docs]'")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0 and "WARNING" not in built.stderr, built.stderr
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Html]:
    return {page: Html(page) for page in sorted(site.glob("*.html")) if page.name != "404.html"}


def test_every_link_leads_somewhere(site: Path, pages: dict[Path, Html]) -> None:
    lost = []
    for page, html in pages.items():
        for link in html.links:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https"):
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not target.is_file() or (parts.fragment and unquote(parts.fragment) not in pages[target].ids):
                lost.append(f"{page.name}: {link}")
    assert lost == []


def test_every_document_is_a_page(pages: dict[Path, Html]) -> None:
    expected = {p.stem for p in ROOT.glob("docs/*.md")} | {"changelog", "contributing", "results"}
    assert {p.stem for p in pages} == expected
    reached = {urlsplit(link).path for link in next(h for p, h in pages.items() if p.stem == "index").links}
    assert {f"{name}.html" for name in expected} <= reached


def outside(texts: dict[str, str]) -> Iterator[str]:
    """What style sheets load from elsewhere."""
    for name, text in texts.items():
        for found in re.findall(r"(?:@import\s+|url\()\s*['\"]?((?:https?:)?//[^'\")\s]+)", text):
            yield f"{name}: {found}"


def test_pages_fetch_nothing_from_elsewhere(site: Path, pages: dict[Path, Html]) -> None:
    loads = {f"{p.name}: {x}" for p, html in pages.items() for x in html.loads if re.match(r"(https?:)?//", x)}
    assert loads == set()
    assert all(html.loads for html in pages.values())
    assert list(outside({p.name: p.read_text(encoding="utf-8") for p in site.rglob("*.css")})) == []
    assert list(outside({p.name: p.read_text(encoding="utf-8") for p in pages})) == []
    assert list(outside({"bad.css": '@import "//fonts.example/x"'})) == ["bad.css: //fonts.example/x"]


def test_the_leaderboard_stands_in_the_same_site(site: Path, pages: dict[Path, Html]) -> None:
    """Its pages have the documentation's navigation, and each search finds the pages of both."""
    assert all("leaderboard/index.html" in html.links for html in pages.values())
    made = {page: Html(page) for page in sorted((site / "leaderboard").rglob("*.html"))}
    assert len(made) > 40
    lost = []
    for page, html in made.items():
        for link in (link for link in html.links if not link.startswith("https://arxiv.org/")):
            parts = urlsplit(link)
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            known = {**pages, **made}
            if not target.is_file() or (parts.fragment and parts.fragment not in known[target].ids):
                lost.append(f"{page.name}: {link}")
    assert lost == []
    (overview,) = (html for page, html in made.items() if page.parent.name == "leaderboard" and page.stem == "index")
    assert {f"../{page.name}" for page in pages} <= set(overview.links)
    found = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    assert "leaderboard/method/MiB.html" in {entry["location"] for entry in found}
    assert '"../concepts.html"' in (site / "leaderboard" / "search.js").read_text(encoding="utf-8")


def test_formulas_are_drawn_without_a_script(site: Path) -> None:
    html = (site / "methods.html").read_text(encoding="utf-8")
    assert html.count("<math") == html.count("</math>") >= 40
    assert "arithmatex" not in html and "\\frac" not in re.sub(r"<annotation.*?</annotation>", "", html)


def test_the_api_has_every_name_that_its_page_asks_for(site: Path, pages: dict[Path, Html]) -> None:
    (api,) = (html for page, html in pages.items() if page.stem == "api")
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    asked = re.findall(r"^::: (\S+)(?:\n    options:\n      members: \[(.*)\])?", text, re.M)
    names = [".".join(filter(None, (module, name))) for module, names in asked for name in names.split(", ")]
    assert len(names) > 40 and [name for name in names if name not in api.ids] == []
    html = (site / "api.html").read_text(encoding="utf-8")
    assert [mark for mark in ("::</p>", "=====", "<blockquote>", "<p>::") if mark in html] == []
    assert {"contseg.methods.base.Term.begin_step", "contseg.datasets.base.SegmentationDataset.ids"} <= api.ids


def test_the_two_drawings_differ_in_colours_only() -> None:
    light, dark = ((ROOT / f"docs/figures/concepts-{x}.svg").read_text(encoding="utf-8") for x in ("light", "dark"))
    assert light != dark
    assert re.sub(r"#[0-9a-f]{6}", "", light) == re.sub(r"#[0-9a-f]{6}", "", dark)


def test_pages_fit_a_phone_and_follow_the_colours_of_the_system(pages: dict[Path, Html]) -> None:
    need_chromium()
    with chromium() as browser:
        for page in (page for page in pages if page.stem in ("index", "concepts", "methods", "api")):
            for width, dark in ((1400, False), (390, True)):
                browser.size(width, 900)
                browser.dark(dark)
                browser.open(page)
                scheme, wide = browser.run(
                    "return [document.body.dataset.mdColorScheme, document.documentElement.scrollWidth]"
                )
                assert wide <= width, (page.name, width)
                assert scheme == ("slate" if dark else "default"), page.name
                assert browser.log() == [], page.name
