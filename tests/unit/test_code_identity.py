"""An edited plugin is another method, what a key cannot see is refused, and built-in methods keep their keys."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from contseg.benchmark.contract.check import check_method, every_name
from contseg.benchmark.plan.build import make_plan
from contseg.benchmark.plan.config import read_config
from contseg.datasets.errors import UserError
from contseg.datasets.registry import open_dataset
from contseg.methods import code, registry
from contseg.methods.base import Term, added_field, describe
from contseg.methods.registry import build_method, load_plugins
from contseg.methods.visible import check_visible
from contseg.tests import forked
from contseg.tests.material import search_path
from contseg.tests.unit.keys import KEYS
from contseg.tests.unit.probe import grid, print_keys

TERM = """
from dataclasses import dataclass, field, InitVar
from functools import partial
import torch
from contseg.methods.base import CrossEntropy, Method, Term, argmax, torch_init
from contseg.methods.registry import register_method

@dataclass(eq=False)
class Mine(Term):
    by: float = 1.0
    def __call__(self, batch):
        return batch.logits.mean() * self.by

def rule(out, size):
    return argmax(out, size)

@dataclass
class Rule:
    by: float = 1.0
    def __call__(self, out, size):
        return argmax(out, size)
"""
FACTORY = """
{before}
@register_method("Own")
def own(a: float = 1.0) -> Method:
    return Method("Own", terms={{"ce": CrossEntropy(), "mine": {term}}}, predict={predict})
"""


def write(path: Path, term: str = "Mine(a)", predict: str = "rule", before: str = "", top: str = "") -> Path:
    path.write_text(top + TERM + FACTORY.format(term=term, predict=predict, before=before))
    return path


def keys_of(plugin: Path, method: str = "Own", **environment: str) -> list[str]:
    """The keys of training, evaluation and observers that a program of its own gives the last step."""
    done = forked.run(print_keys, str(plugin), method, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture(autouse=True)
def forget_plugins() -> Iterator[None]:
    """Leave the registry as it was."""
    registry.methods()
    tables = registry._METHODS, registry._ADDONS
    before = [dict(table) for table in tables]
    yield
    for name in ("plugin_of_ours", "helper_of_ours"):
        sys.modules.pop(name, None)
    for table, saved in zip(tables, before, strict=True):
        table.clear()
        table.update(saved)
    code.forget()


def refusal(tmp_path: Path, method: str = "Own", **parts: str) -> str:
    """The one line with which a plan, the building by name, and the contract check refuse a plugin alike."""
    load_plugins(write(tmp_path / "plugin_of_ours.py", **parts))
    said = []
    for act in (lambda: grid(method=method), lambda: build_method(method), lambda: check_method(method)):
        with pytest.raises(UserError) as caught:
            act()
        said.append(str(caught.value))
    assert len({*said}) == 1
    assert "\n" not in said[0]
    return said[0]


# --- keys ----------------------------------------------------------------------------------------------------------


def names() -> list[str]:
    """Every method and add-on, the combinations of papers, and every choice that is not the default."""
    choices = [
        f"{front}{entry.name}[{p.name}={choice}]"
        for front, table in (("", registry.methods()), ("FT+", registry.addons()))
        for entry in table.values()
        for p in entry.parameters
        if get_origin(p.annotation) is Literal
        for choice in get_args(p.annotation)
        if choice != p.default
    ]
    return [*every_name(), *choices]


def keys_of_built_ins() -> dict[str, tuple[str, str]]:
    config = read_config(
        None,
        ["model.backbone=tiny", "train.updates=4", "train.batch=4", "train.crop=48"],
        scenarios=("shapes/3-3/overlapped",),
        methods=tuple(names()),
    )
    shapes = open_dataset("shapes", None, None)
    cells = {run.method: run.cells[-1] for run in make_plan(config, lambda name: shapes).runs}
    return {name: (c.node.key[:16], c.score[:16]) for name, c in cells.items()}


def committed() -> dict[str, tuple[str, str]]:
    return {name: (step, score) for name, step, score in (line.split() for line in KEYS.split("\n") if line)}


def test_built_in_methods_keep_their_keys() -> None:
    known, found = committed(), keys_of_built_ins()
    assert {name: found.get(name) for name in known} == known


def without_entry(found: dict[str, tuple[str, str]]) -> str:
    """The lines that KEYS lacks; "" if none."""
    lines = [" ".join((name, *keys)) for name, keys in found.items() if name not in committed()]
    return f"add to KEYS of keys.py: {'; '.join(lines)}" if lines else ""


def test_every_name_has_its_keys_here() -> None:
    assert not (missing := without_entry(keys_of_built_ins())), missing
    assert without_entry({"FT": ("", ""), "New": ("1a", "2b")}) == "add to KEYS of keys.py: New 1a 2b"


# --- a class that changes, and what it did before ------------------------------------------------------------------


@dataclass(eq=False)
class Before(Term):
    by: float = 1.0


@dataclass(eq=False)
class After(Term):
    """``Before`` with two fields more, in another place."""

    identity = f"{Before.__module__.removeprefix('contseg.')}.{Before.__qualname__}"

    by: float = 1.0
    steepness: float = added_field(2.0)
    shape: tuple[int, ...] = added_field((1, 2))


@dataclass(eq=False)
class Child(After):
    """Another class than its parent."""


@pytest.fixture
def as_built_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes of this file count as contseg's own: their code is in no key."""
    monkeypatch.setattr(code, "is_ours", lambda module: True)


@pytest.mark.usefixtures("as_built_ins")
def test_a_field_that_is_added_moves_a_key_only_where_it_is_not_the_default() -> None:
    assert describe(After(3)) == describe(Before(3))
    assert describe(After(3, 2, (1, 2))) == describe(Before(3))  # 2 is 2.0, as in every field of type float
    others = [describe(x) for x in (Before(3), After(3, 2.5), After(3, shape=(1,)), After(3, 2.5, (1,)), Before(4))]
    assert all(a != b for a, b in combinations(others, 2))


@pytest.mark.usefixtures("as_built_ins")
def test_only_the_class_itself_keeps_its_former_name() -> None:
    assert describe(Child(3)) != describe(After(3))


def test_an_edit_of_a_plugin_or_of_what_it_imports_moves_its_keys(tmp_path: Path) -> None:
    """Of training and of evaluation; what it does not import, and the folder, move nothing."""
    here = tmp_path / "here"
    package = here / "parts"
    package.mkdir(parents=True)
    plugin = write(here / "plugin_of_ours.py", top="from parts.losses import half\n")
    (package / "__init__.py").write_text("from .more import third\n")
    (package / "losses.py").write_text("def half(x):\n    return x / 2\n")
    (package / "more.py").write_text("third = 1 / 3\n")
    before = keys_of(plugin, PYTHONPATH=search_path(here))
    (package / "unrelated.py").write_text("x = 1\n")
    elsewhere = here.rename(tmp_path / "elsewhere")
    known = [before]
    for name, old, new in (
        ("plugin_of_ours.py", "unchanged", ""),
        ("plugin_of_ours.py", "mean()", "sum()"),
        ("parts/losses.py", "x / 2", "x / 2.5"),
        ("parts/more.py", "1 / 3", "1 / 3.5"),
    ):
        file = elsewhere / name
        file.write_text(file.read_text().replace(old, new))
        known.append(keys_of(elsewhere / plugin.name, PYTHONPATH=search_path(elsewhere)))
    assert known[1] == known[0]
    for which in zip(*known[1:], strict=True):
        assert len({*which}) == 4  # training and evaluation, each another with every edit


def test_an_edited_observer_moves_its_key_and_not_that_of_the_weights(tmp_path: Path) -> None:
    observer = (
        "class Mine(Term):\n    observes = True\n    state = ('seen',)\n"
        "    seen: object = field(default=None, init=False)"
    )
    before = "@dataclass\nclass Reads(Rule):\n    mine: Mine | None = None\n"
    path = write(tmp_path / "plugin_of_ours.py", term="(kept := Mine(a))", predict="Reads(a, kept)", before=before)
    path.write_text(path.read_text().replace("class Mine(Term):", observer))
    weights, score, watched = keys_of(path)
    path.write_text(path.read_text().replace("mean()", "sum()"))
    assert [a == b for a, b in zip((weights, score, watched), keys_of(path), strict=True)] == [True, False, False]


def test_an_installed_plugin_is_known_by_the_files_of_its_distribution(tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    package = site / "their_method"
    package.mkdir(parents=True)
    write(package / "__init__.py")
    (package / "table.json").write_text("1")
    info = site / "their_method-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-method\nVersion: 1.0\n")
    (info / "RECORD").write_text("their_method/__init__.py,,\ntheir_method/table.json,,\n")
    (info / "top_level.txt").write_text("their_method\n")
    (info / "entry_points.txt").write_text("[contseg.plugins]\nown = their_method\n")
    here = {"PYTHONPATH": search_path(site)}
    before = keys_of(Path("their_method"), **here)
    assert keys_of(Path("their_method"), **here) == before
    (package / "table.json").write_text("2")
    assert keys_of(Path("their_method"), **here) != before


# --- what no key would see -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"predict": "lambda out, size: argmax(out, size)"}, ["<lambda> (plugin_of_ours.py, line", "top level"]),
        ({"before": "def make(a):\n    def inner(out, size):\n        return rule(out, size)\n    return inner\n",
          "predict": "make(a)"}, ["make.<locals>.inner (plugin_of_ours.py, line 24)", "function of the module"]),
        ({"predict": "partial(rule, size=a)"}, ["partial", "predict", "dataclass with __call__"]),
        ({"predict": "partial(lambda out, size: out, size=a)"}, ["partial", "plugin_of_ours.py, line"]),
        ({"predict": "Rule(a).__call__"}, ["Rule.__call__ (plugin_of_ours.py, line"]),
        ({"before": "class Hidden(Mine):\n    def __init__(self, a):\n        super().__init__()\n        self.a = a\n",
          "term": "Hidden(a)"}, ["Hidden (plugin_of_ours.py, line 23)", "term 'mine'", "__init__", "fields"]),
        ({"before": "@dataclass(eq=False)\nclass Late(Mine):\n    a: InitVar[float] = 1.0\n"
                    "    def __post_init__(self, a):\n        self.factor = a\n",
          "term": "Late(a=a)"}, ["Late (plugin_of_ours.py, line", "'factor'"]),
        ({"before": "def odd(a):\n    term = Mine()\n    term.a = a\n    return term\n", "term": "odd(a)"},
         ["Mine (plugin_of_ours.py, line", "'a'", "make it a field"]),
        ({"term": "Mine(torch.tensor(a))"}, ["Mine.by (plugin_of_ours.py, line", "Tensor", "begin_step"]),
        ({"before": "class Thing:\n    def __init__(self, a):\n        self.a = a\n    def __call__(self, out, size):\n"
                    "        return argmax(out, size)\n", "predict": "Thing(a)"},
         ["Thing (plugin_of_ours.py, line 23)", "no dataclass"]),
        ({"before": "class Special(Method):\n    def losses(self, batch):\n        return {}\n",
          "term": 'Mine()}) and Special("Own", {"ce": CrossEntropy()', "predict": "rule"},
         ["plugin_of_ours.py", "gave Special, not a Method"]),
    ],
    ids=lambda x: "" if isinstance(x, list) else "-".join(x),
)  # fmt: skip
def test_what_no_key_would_see_is_refused(tmp_path: Path, parts: dict[str, str], words: list[str]) -> None:
    said = refusal(tmp_path, "Own[a=50]", **parts)
    assert [w for w in words if w not in said] == [], said


@pytest.mark.parametrize(
    "parts",
    [
        {"before": "STATE = []\ndef note(a):\n    STATE[:] = [a]\n    return Mine()\n", "term": "note(a)"},
        {"before": "def note(a):\n    Mine.scale = a\n    return Mine()\n", "term": "note(a)"},
        {"before": "def note(a):\n    rule.a = a\n    return rule\n", "predict": "note(a)", "term": "Mine()"},
    ],
    ids=["global", "class", "function"],
)
def test_a_parameter_that_reaches_no_field_is_refused(tmp_path: Path, parts: dict[str, str]) -> None:
    assert "Own and Own[a=50] would share one training" in refusal(tmp_path, "Own[a=50]", **parts)


def test_two_values_that_become_one_are_refused_in_one_plan(tmp_path: Path) -> None:
    load_plugins(write(tmp_path / "plugin_of_ours.py", term="Mine(min(a, 2.0))"))
    with pytest.raises(UserError, match=r"Own\[a=2\] and Own\[a=50\] would share one training"):
        grid(method="Own[a=2|50]")


def test_what_fields_give_is_seen(tmp_path: Path) -> None:
    """Decorated functions of a module, values that __post_init__ derives from fields, hooks that are dataclasses."""
    before = (
        "@torch.no_grad()\ndef still(out, size):\n    return argmax(out, size)\n"
        "@dataclass(eq=False)\nclass Derived(Mine):\n    def __post_init__(self):\n"
        "        self.table = torch.arange(3) * self.by\n"
    )
    load_plugins(write(tmp_path / "plugin_of_ours.py", before=before, term="Derived(a)", predict="still"))
    check_visible(build_method("Own[a=3]"))
    assert len({run.cells[-1].node.key for run in grid(method="Own[a=1|3]").runs}) == 2
