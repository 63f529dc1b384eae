"""The documents as tests read them."""

import re
import shlex
from collections.abc import Iterator

from contseg.tests.material import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def code(page: str, holding: str) -> str:
    """The Python block of a page that holds a text."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    (found,) = (block for block in blocks if holding in block)
    return str(found)


def commands(text: str) -> Iterator[tuple[list[str], bool]]:
    """The arguments of every ``run_benchmark.py`` in a text, and whether a launcher starts it; "..." stays."""
    text = re.sub(r"\\+\n#? *", "", text)
    for line in text.splitlines():
        if found := re.match(r"(?:# )?\s*(python|accelerate launch .*|torchrun .*) run_benchmark\.py (.*)", line):
            yield shlex.split(re.split(" {3,}", found[2])[0], comments=True), found[1] != "python"
