"""What mkdocs does not do by itself: pages that lie beside `docs/`, links to them, formulas without a script, and the
leaderboard of the records under `results/`, which stands in the same site."""

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File
from mkdocs.structure.nav import Link, Section

ROOT = Path(__file__).resolve().parents[1]
BESIDE = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md", "results.md": "results/README.md"}
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
SESSION = re.compile(r"(?:<blockquote>\s*){3}<p>(.*?)</p>(?:\s*</blockquote>){3}", re.DOTALL)  # >>> in a docstring
LEADERBOARD = "leaderboard"  # the folder of the site that it stands in
ESCAPES = {"&lt;": "<", "&gt;": ">", "&amp;": "&"}


@event_priority(100)  # before the plugin reads its paths
def on_config(config: Any) -> Any:
    """The package as the API page reads it: links to its three folders, under the name by which it is imported."""
    package = Path(tempfile.mkdtemp()) / "contseg"
    package.mkdir()
    for name in ("__init__.py", "benchmark", "datasets", "methods"):
        (package / name).symlink_to(ROOT / name)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(package.parent)]
    return config


def on_files(files: Any, config: Any) -> Any:
    for uri, path in BESIDE.items():
        files.append(File.generated(config, uri, content=(ROOT / path).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links are those of the repository; a file that is no page of the site keeps its name and loses its link."""
    uri = page.file.src_uri
    folder = (ROOT / BESIDE.get(uri, f"docs/{uri}")).parent
    pages = {(ROOT / path).resolve(): name for name, path in BESIDE.items()}

    def moved(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if re.match(r"https?://", target) or not target:
            return match[0]
        path = (folder / target).resolve()
        if path.is_relative_to(ROOT / "docs"):
            return f"[{text}]({os.path.relpath(path, ROOT / 'docs')}{anchor})"
        return f"[{text}]({pages[path]}{anchor})" if path in pages else text

    return re.sub(r"(?<!!)\[([^\]\n]+)\]\(([^)#\s]*)(#[^)\s]*)?\)", moved, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Formulas as MathML, which browsers draw themselves; examples of docstrings as code."""

    def drawn(match: re.Match[str]) -> str:
        text = re.sub("|".join(ESCAPES), lambda m: ESCAPES[m[0]], match[2])
        return convert(text, display="block" if match[1] == "div" else "inline")

    html = SESSION.sub(r"<pre><code>&gt;&gt;&gt; \1</code></pre>", FORMULA.sub(drawn, html))
    return html.replace("<p>::</p>", "").replace("::</p>", ":</p>")  # docstrings announce code by two colons


# --- the leaderboard ------------------------------------------------------------------------------------------------

navigation: list[Any] = []  # of the documentation, for the leaderboard's pages


def on_nav(nav: Any, **_: Any) -> Any:
    """The leaderboard is a section of the navigation; its pages are no Markdown and are written at the end."""
    navigation[:] = nav.items
    links = (("Overview", "index"), ("Over tasks", "tasks"), ("Methods with results", "methods"))
    nav.items.append(Section("Leaderboard", [Link(title, f"{LEADERBOARD}/{name}.html") for title, name in links]))
    return nav


@event_priority(-100)  # after the documentation's search has written what it finds
def on_post_build(config: Any) -> None:
    """Write the leaderboard's pages, with the navigation of the documentation; each search finds the pages of both."""
    from contseg.benchmark.report.reporter import load_records, load_rows
    from contseg.benchmark.score.published import load_published
    from contseg.benchmark.score.records import results_folders
    from contseg.benchmark.site.build import Page, Section, boards_of, write_site

    index = Path(config.site_dir) / "search" / "search_index.json"
    found = json.loads(index.read_text(encoding="utf-8"))
    parts = {"Documentation": [item for item in navigation if item.is_page]}
    parts |= {item.title: item.children for item in navigation if item.is_section}
    docs = [Section(title, tuple((p.title, f"../{p.file.url}") for p in pages)) for title, pages in parts.items()]
    texts = [Page(f"../{entry['location']}", entry["title"], "documentation", "") for entry in found["docs"]]
    results = ROOT / "results"
    tuned = load_rows(results_folders(results))
    boards = boards_of(load_records(results), (), load_published(), tuned=tuned)
    pages = write_site(boards, Path(config.site_dir) / LEADERBOARD, docs, texts)
    found["docs"] += [
        {"location": f"{LEADERBOARD}/{page.path}", "title": page.title, "text": page.text}
        for page in pages
        if page.kind not in ("run", "code")  # many, and alike
    ]
    index.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
