"""The documents as tests read them."""

import re

from tests.material import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def code(page: str, holding: str) -> str:
    """The Python block of a page that holds a text."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    (found,) = (block for block in blocks if holding in block)
    return str(found)
