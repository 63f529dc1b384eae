"""An edited plugin is another method, what a key cannot see is refused, and built-in methods keep their keys."""

import os
import subprocess
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
from contseg.tests.material import ROOT, search_path
from contseg.tests.unit.probe import grid

# the last step of shapes/3-3: the first digits of the keys of its training and of its evaluation.
# A method whose numbers moved has a new `revision`, and a new line here; no other line changes.
KEYS = """
Adapter 52dcae9b497120d7 b5fec9e0756aa9ce
CFSSeg 6d04bac2b631aa6a af0256396eca9d3e
CIL a46e8a78c80620ce 646a1899d1ce3f85
DFTStar fc47a8efb00cbf4a 5cd11a7be6fac3ec
DKD 06aa7be09a4bbbf9 e9cc5bf15915f9dd
EWC f15ccd2d567f631b 4323428246152b84
FT 7b2f7215b657cdf0 5bb3687ceaf4170d
FrozenBackbone 00bd8052fca3447d 2d81b834907e1e25
ILT 9e9c7298809f65e8 ee898f01c6af79ae
Joint 5c5512222aeef711 519c944378c167f8
LinearProbe d2a1eaf3a533f7b4 5b225131ce62d69e
LwF 2f5a28ae9614c438 9b713d344f706f0a
LwF-MC 2fb126258de82a73 edc1ba3964e43675
MiB c3b16a095ce4fc4f 7aa61a55b5ddfe74
NearestPrototype 11b049bb7fda68b7 447c2c46033bc412
PI 3c48765004aee362 2dd9cad282fb5e76
PLOP 310023e7fbdf1362 abe7eeabce048622
RCIL 84ef87a2fb32e764 7b724cee19639eec
REMINDER 3bacf53d051c0b68 3dbabfdc65435884
RW 2f208de503195cca ee57b9310cedfee9
SDR 95daf923669bd265 e65b7c864c91514f
SSUL 0037a7cf0653bcbe e34a9bcd760e70c3
STAR 3b9fda6fda5f06f5 ce882d4351181342
FT+AWT 1aea35c8708f1ce6 b98d6d7bcae7b634
FT+AWT[formulation=released] 786c875aca0d9bff a5d7f428a1892683
FT+EWF 88396c581443872b 8a2af4ab4c07c334
FT+SDR 0945ced1a6ef7664 0ae2e3ccd122b6e5
FT+UAC 985c9524e5b51f68 b9105f31c0aba255
FT+UCD c296941221b6c5f6 9d80724177f6dd12
LwF+SDR e5f1398c01270df7 351beb52120d3daf
ILT+SDR 8dd01a34676b519d ddf84d8932667a56
MiB+SDR 7cdfb07def3d69fa e06a28438caca6ba
PLOP+SDR 093cd54a4f2a2068 c047e627f6b263c8
EWC+SDR e4fc9c1b16d09a92 ce0191696ceaeb76
MiB+EWF 7157cdc29556f1ee a288e8481fa388fe
PLOP+EWF b0fb3ea117d31977 e100909875102fcb
MiB+UCD 4cdc1cc807861699 4511425c18c86064
PLOP+UCD 66780aab504a7864 6c6ad27075e8e009
MiB+AWT f1471c7f7a61e254 4e823158b823ebb4
STAR+UAC 52dcae9b497120d7 b5fec9e0756aa9ce
Adapter[adc=true] f7f4bb8752d30659 850f766539fe04a9
PLOP+UCB e0a7ca9866afd2d7 62645cba925d56be
SSUL+UCB[threshold=0.5,stretch=false] 5d59b94b328a7fe3 8749e08fc5f8aaed
CIL[formulation=released] 0da4cf2e5b9d9118 ae3fbc3f015966a7
LwF-MC[targets=replaced] d1b121d25531237d 5f13ed1c81637553
LwF-MC[targets=replaced_foreground] 93964fa3733ac7ad 96d99be95772fd35
PI[formulation=released] d0e391b482a7f0d2 e55991d55ead91ff
PLOP[formulation=released] 7e0338ca0861e2c3 5216809d83214254
RCIL[start=merged] 33e4890ed263c14a 198e419402023202
RW[formulation=released] b0b1f72d41aad04a c70ed3a3aeae13ac
SDR[formulation=released] a1ed3aef0a8eac3a 28ce3167265fa1b0
SDR[formulation=printed] 80debe4fb39930ad 9fed25e1f9741636
FT+SDR[formulation=released] 046351dbc341c75a 17dd9392a95fca1a
FT+SDR[formulation=printed] 73367b06e47778c5 839260416dac9b6e
DKD-M 10d288fb1bcf7289 d63e640a528326bf
MiB-AugM be5438b3965a4566 951b8bd5f91c98ee
SSUL-M b374b3d84848031a 3033725c39aa74c3
STAR-M 1edaa39861309310 a924537737ad5135
FT+Memory 79548e9d9f16baf4 807ae6611c4b28ee
MiB+Memory[loss=augm] 36d75aab8d078b45 64c53507bbf9df17
DKD+Memory[loss=bce] d14ebf6289bfa1e6 9136847891b98aab
DKD-M[labels=own] ba763e3ea7399347 ca673354ae8e2dc4
DKD-M[labels=all] 39ad713e782374f5 2f86aa69068f40b7
SSUL-M[labels=own] cfb2c68df12af86f 4e27d7a35711361d
SSUL-M[labels=current] f1e345631bffd0d6 38edee7edc2d1357
STAR-M[labels=own] 0d9b1d3a90923854 34e871021ff6b551
STAR-M[labels=all] 683ae9d981222a6c 1ea70f2684fae78c
FT+Memory[policy=greedy] 60321ec6208a1fa9 da8b98959ee1dc01
FT+Memory[labels=all] 3d7c26b20ba08e62 44e6e147445c8029
FT+Memory[labels=current] e729aae387b2effd 90b83f27a01ae51e
FT+Memory[mix=append] 8e1060be48499422 49ac6ee7ca7be76c
FT+Memory[loss=augm] 4d42654055772dd2 4df032929acc872d
FT+Memory[loss=bce] 3be0aef3c246b724 4b7cd4f1ca1bb766
"""

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
    text = (
        "from contseg.tests.unit.probe import grid; from contseg.methods.registry import "
        f"load_plugins; load_plugins({str(plugin)!r}); c = grid(method={method!r}).runs[0].cells[-1]; "
        "print(c.node.key, c.score, *c.reads.values())"
    )
    done = subprocess.run(
        [sys.executable, "-c", text],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
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
    return f"add to KEYS of {Path(__file__).name}: {'; '.join(lines)}" if lines else ""


def test_every_name_has_its_keys_here() -> None:
    assert not (missing := without_entry(keys_of_built_ins())), missing
    assert without_entry({"FT": ("", ""), "New": ("1a", "2b")}) == "add to KEYS of test_code_identity.py: New 1a 2b"


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
