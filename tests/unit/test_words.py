"""Words that were given up stay out of code and documents: one idea has one name, the one that the field uses."""

import re
from collections.abc import Iterator
from pathlib import Path

from contseg.tests.material import ROOT

# pattern -> what is said instead
RETIRED = {
    r"pictures?": "image",
    r"doors?": "hook",
    r"guests?|riders?|rides?|riding|rode": "shared observer",
    r"course|lockstep": "toy_run, two_processes",
    r"strangers?": "user-defined",
    r"makes? no sense": "what is allowed",
    r"seeds carry|carried by the seeds": "significantly best",
    r"told apart": "significant difference",
    r"true difference lies": "95 % confidence interval",
    r"(PLOP|MiB|SDR) and its line": "and its follow-ups",
    r"of one's own|for ever": "your own, a user's own; forever",
}
# file -> the words that it may use, and why
ALLOWED = {
    "CHANGELOG.md": (".*", "it tells of earlier names"),
    "tests/unit/test_words.py": (".*", "this list"),
    "datasets/formats/ade20k.py": ("door", "a class of ADE20K"),
    "datasets/formats/cityscapes.py": ("rider", "a class of Cityscapes"),
    "tests/unit/test_cityscapes.py": ("rider", "a class of Cityscapes"),
    "tests/golden/op_awt.py": ("pictures", "a field of its reference files"),
    "benchmark/plan/build.py": ("doors", "stands in the keys of steps, which do not change"),
    "tests/unit/test_registry.py": ("lockstep", "a module of before the package, as old plugins import it"),
}
WORD = re.compile("|".join(rf"\b(?:{pattern})\b" for pattern in RETIRED), re.IGNORECASE)


def found_in(text: str) -> list[tuple[int, str]]:
    """Line and word of every retired word; a line break counts as a space, an underscore ends a word."""
    flat = text.replace("\n", " ").replace("_", " ")
    return [(text.count("\n", 0, m.start()) + 1, m[0].lower()) for m in WORD.finditer(flat)]


def files() -> Iterator[Path]:
    """Python files, documents and the Makefile; folders with a dot (environment, caches) are left out."""
    for path in sorted(ROOT.rglob("*")):
        inside = path.relative_to(ROOT)
        hidden = any(part.startswith(".") or part in ("build", "runs", "site", "shared") for part in inside.parts)
        if (path.suffix in (".py", ".md", ".j2") or path.name == "Makefile") and not hidden:
            yield path


def test_retired_words_stay_out() -> None:
    found, used = [], set()
    for path in files():
        name = path.relative_to(ROOT).as_posix()
        allowed = ALLOWED.get(name, ("(?!)",))[0]
        for line, word in found_in(path.read_text(encoding="utf-8")):
            if re.fullmatch(allowed, word):
                used.add(name)
            else:
                found.append(f"{name}:{line} {word}")
    assert found == []
    assert used == set(ALLOWED), "an exception that nothing needs"


def test_the_reader_sees_words_and_no_parts_of_them() -> None:
    text = "class Door:\n    my_pictures = overrides\n# it makes no\n# sense; it makes no\nsense. Discourse, indoor."
    assert found_in(text) == [(1, "door"), (2, "pictures"), (4, "makes no sense")]
