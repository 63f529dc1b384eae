"""The documents as tests read them."""

import re
import shlex
from collections.abc import Iterator

from contseg.tests.material import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def code(page: str, holding: str, language: str = "python") -> str:
    """The block of a page that holds a text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    (found,) = (block for block in blocks if holding in block)
    return str(found)


COMMAND = re.compile(
    r"(?:# )?\s*(?:(?P<by>python|accelerate launch .*|torchrun .*) run_benchmark\.py"
    r"|contseg(?= (?:run|plan|tune|list|check|report|site|data|cache|predict|export|submit|leaderboard|reproduce"
    r"|-\S+)\b)) (?P<arguments>.*)"
)


def commands(text: str) -> Iterator[tuple[list[str], bool]]:
    """The arguments of every ``contseg`` and ``run_benchmark.py``, and whether a launcher starts it; "..." stays."""
    text = re.sub(r"\\+\n#? *", "", text)
    for line in text.splitlines():
        if found := COMMAND.match(line):
            words = shlex.split(re.split(" {3,}", found["arguments"])[0], comments=True)
            yield words, found["by"] not in (None, "python")


def shell(text: str) -> Iterator[str]:
    """The lines of a page's shell blocks, without their comments."""
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        yield from (line.partition(" #")[0].strip() for line in re.sub(r"\\+\n *", "", block).splitlines())
