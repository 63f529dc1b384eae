"""Mistakes in a plugin's terms and hooks that torch, or nobody, would tell: one line each, with the author's line."""

from pathlib import Path

import pytest

from contseg import run_benchmark
from contseg.benchmark.contract.check import check_method
from contseg.datasets.errors import UserError
from contseg.methods.registry import build_method, load_plugins
from contseg.tests.unit.steps import SETS, Grid

HEAD = """
from dataclasses import dataclass, field
import torch
from torch import Tensor, nn
from contseg.methods.base import CrossEntropy, Method, Term, argmax, later
from contseg.methods.registry import register_method
"""
TAIL = """
@register_method("Mine")
def mine() -> Method:
    return Method("Mine", {})
"""
LINE = len(HEAD.splitlines()) + 1  # of what stands between them


pytestmark = pytest.mark.usefixtures("own_plugins")


def load(folder: Path, before: str, arguments: str) -> None:
    """The plugin with this code and these arguments of its method."""
    path = folder / "my_mistake.py"
    path.write_text(HEAD + before + TAIL.replace("{}", arguments))
    load_plugins(path)


def term(body: str, base: str = "Term") -> str:
    return f"@dataclass(eq=False)\nclass Own({base}):\n    {body}\n"


CE = '{"ce": CrossEntropy()}'
OWN = '{"ce": CrossEntropy(), "own": Own()}'


@pytest.mark.parametrize(
    ("before", "arguments", "said"),
    [
        (term("def __call__(self, out, labels): ..."), OWN, "Own.__call__(out, labels) is called with (batch)"),
        (term("def begin_step(self): ..."), OWN, "Own.begin_step() is called with (ctx)"),
        (term("def after_backward(self, model, loss): ..."), OWN, "after_backward(model, loss) is called with (model)"),
        ("def own(model): ...\n", f"{CE}, init=own", "init(model) is called with (model, step)"),
        ("def own(out): ...\n", f"{CE}, predict=own", "predict(out) is called with (out, size)"),
        ("def own(model, step): ...\n", f"{CE}, end_step=(own,)", "end_step(model, step) is called with (ctx)"),
        ("def own(*, ctx): ...\n", f"{CE}, warm_up=(own,)", "warm_up(*, ctx) is called with (ctx)"),
    ],
)
def test_what_does_not_take_its_arguments(tmp_path: Path, before: str, arguments: str, said: str) -> None:
    load(tmp_path, before, arguments)
    with pytest.raises(UserError) as caught:
        build_method("Mine")
    line = LINE + 2 * before.startswith("@")
    assert said in str(caught.value) and str(caught.value).endswith(f"(my_mistake.py, line {line})")


KEEPS = """state = ("mu",)
    mu: Tensor | None = field(default=None, init=False)
    def __call__(self, batch):
        self.mu = batch.logits.mean() + (0 if self.mu is None else self.mu)
        return self.mu
"""
WRITES = """def __call__(self, batch):
        x = batch.logits.exp()
        y = x.mean()
        x.mul_(2)
        return y
"""
GROUPS = "def own(model, step):\n    return "


@pytest.mark.parametrize(
    ("before", "arguments", "said"),
    [
        (term("def __call__(self, batch): return batch.logits.detach().mean()"), '{"own": Own()}',
         "no loss has a gradient ('own'): do not detach what it is made of (my_mistake.py, line"),
        ("", "{}", "no loss at a step that trains: it has no terms; give one"),
        (term("def __call__(self, batch): batch.logits.mean()"), OWN, "'own' gives None: return its value"),
        (term("def __call__(self, batch): return torch.zeros((), device='meta')"), OWN,
         "'own' gives a tensor on meta, and the batch is on cpu"),
        (term(KEEPS), OWN, "'own' keeps 'mu' with the gradients of an update: keep .detach() (my_mistake.py, line"),
        (term(WRITES), OWN, "write x * a and not x.mul_(a); look into 'own' (my_mistake.py, line"),
        ("def own(model, step): ...\n", f"{CE}, trainable=own", "trainable gives a NoneType: give a list of groups"),
        (GROUPS + "list(model.parameters())\n", f"{CE}, trainable=own", "gives a list with a Parameter: give a list"),
        (GROUPS + "[{'lr': 1}]\n", f"{CE}, trainable=own", "gives a list with a dict without params"),
        (GROUPS + "[{'params': model.parameters(), 'lr': 1}]\n", f"{CE}, trainable=own", "gives a group with 'lr'"),
        (GROUPS + "[{'params': model.named_parameters()}]\n", f"{CE}, trainable=own", "gives params with a tuple"),
        (GROUPS + "[{'params': list(model.parameters())}] * 2\n", f"{CE}, trainable=own", "in two groups: put it"),
        (GROUPS + "[{'params': nn.Linear(1, 1).parameters()}]\n", f"{CE}, trainable=own", "is not the network's"),
        ("def own(model, step):\n    return nn.Sequential(model)\n", f"{CE}, build=own",
         "build gives a Sequential, which nobody uses: change the network that it is given, in place"),
    ],
)  # fmt: skip
def test_what_a_step_cannot_do(
    tmp_path: Path, before: str, arguments: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    load(tmp_path, before, arguments.replace("=own", "=later(own)"))
    done = Grid(tmp_path / "out", ("Mine",)).runner().run()
    assert "Traceback" not in capsys.readouterr().err
    assert any(said in reason for reason in done.failed.values()), done.failed
    assert done.trained == 1  # step 0, and nothing without its loss


@pytest.mark.parametrize(
    ("hook", "code"), [("predict", "def own(out, size): ..."), ("scenario", "def own(scenario): return scenario")]
)
def test_a_hook_without_a_step_is_not_marked_later(tmp_path: Path, hook: str, code: str) -> None:
    """It would be called at step 0 all the same."""
    load(tmp_path, f"@later\n{code}\n", f"{CE}, {hook}=own")
    with pytest.raises(UserError, match=f"{hook} is marked @later, and knows no step: take the mark off"):
        build_method("Mine")


def test_parameters_may_come_from_an_iterator(tmp_path: Path) -> None:
    load(tmp_path, GROUPS + "[{'params': model.parameters()}, {'params': iter(())}]\n", f"{CE}, trainable=own")
    assert Grid(tmp_path / "out", ("Mine",)).run().trained == 2


def test_a_later_build_leaves_step_0_alone(tmp_path: Path) -> None:
    """Its key is FT's, and so is its network."""
    before = "@later\ndef own(model, step):\n    model.heads['own'] = nn.Conv2d(model.classifier.channels, 1, 1)\n"
    load(tmp_path, before, f"{CE}, build=own")
    done = Grid(tmp_path / "out", ("FT", "Mine")).run()
    assert done.trained == 3


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        ("def own(scenario): ...\n", "its hook scenario gives a NoneType: return the scenario to train"),
        ("def own(scenario):\n    return scenario.nothing\n", "its hook scenario fails on"),
    ],
)
def test_a_scenario_that_is_none(tmp_path: Path, hook: str, said: str) -> None:
    load(tmp_path, hook, f"{CE}, scenario=own")
    with pytest.raises(UserError) as caught:
        Grid(tmp_path / "out", ("Mine",)).plan  # noqa: B018
    assert said in str(caught.value) and "(my_mistake.py, line" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("out.logits.argmax(1)", ", 8, 8): a class map is int64 ("),
        ("argmax(out, size)[:, None]", ", 1, 32, 32): a class map is int64 ("),
        ("argmax(out, size).float()", "predict gives float32 ("),
        ("argmax(out, size) + 9", "predict gives class "),
        ("argmax(out, size) - 9", "predict gives class -"),
        ("out.nothing", "AttributeError: 'SegOutput' object has no attribute 'nothing'"),
    ],
)
def test_a_rule_that_fails_is_its_own_methods_mistake(
    tmp_path: Path, given: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """FT, which shares the step, is scored and goes on, whoever is asked for first."""
    load(tmp_path, f"def own(out, size):\n    return {given}\n", f"{CE}, predict=own")
    grid = Grid(tmp_path / "out", ("FT", "Mine"))
    done = grid.runner().run()
    assert "Traceback" not in capsys.readouterr().err
    assert [title.split()[2:4] for title in done.failed] == [["0", "Mine"], ["1", "Mine"]]
    assert all(
        said in reason and reason.endswith(f"(my_mistake.py, line {LINE + said.startswith('Attr')})")
        for reason in done.failed.values()
    )
    assert {*grid.matrices()} == {("FT", 0), ("FT", 1)}


@pytest.mark.parametrize(
    ("hook", "code", "said"),
    [
        ("    return nn.Sequential(model)\n", 2, "error: Mine: build gives a Sequential, which nobody uses"),
        ("    model.backbone.eval()\n", 1, "AttributeError: 'Segmenter' object has no attribute 'backbone'"),
    ],
)
def test_a_build_hook_that_fails_at_step_0(
    tmp_path: Path, hook: str, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    load(tmp_path, f"def own(model, step):\n{hook}", f"{CE}, build=own")
    words = ["--scenarios", "shapes/offline/overlapped", "--methods", "Mine", "--out", str(tmp_path / "out")]
    assert run_benchmark.main(["run", *words, "--set", *SETS, "run.workers=0"]) == code
    told = capsys.readouterr().err
    assert said in told and "(my_mistake.py, line " in told and "Traceback" not in told


SEEDS = "is each number drawn from batch.generator or ctx.seed?"


@pytest.mark.parametrize(
    "drawn",
    [
        "def begin_step(self, ctx): self.by = torch.rand(())",
        "def begin_step(self, ctx): self.by = random.random()",
        "def after_backward(self, model): self.by = random.random()",
    ],
)
def test_the_check_finds_numbers_that_are_drawn_without_a_seed(tmp_path: Path, drawn: str) -> None:
    body = (
        f"{drawn}\n    by = 1.0\n    def __call__(self, batch): return batch.logits.float().square().mean() * self.by\n"
    )
    load(tmp_path, "import random\n" + term(body), OWN)
    assert SEEDS in str(check_method("Mine"))
