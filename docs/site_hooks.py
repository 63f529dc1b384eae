"""What mkdocs does not do by itself: pages that lie beside `docs/`, links to them, and formulas without a script."""

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
BESIDE = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md", "results.md": "results/README.md"}
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
SESSION = re.compile(r"(?:<blockquote>\s*){3}<p>(.*?)</p>(?:\s*</blockquote>){3}", re.DOTALL)  # >>> in a docstring
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
