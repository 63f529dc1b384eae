"""Plugin files that register nothing, cannot be imported, or declare what no text or type allows: one line each."""

from pathlib import Path

import pytest

from contseg.benchmark.cli import plugins
from contseg.datasets.errors import UserError
from contseg.methods import registry

HEAD = """from typing import Literal
from contseg.methods.base import CrossEntropy, Method
from contseg.methods.ranges import Weight
from contseg.methods.registry import register_addon, register_method

"""


pytestmark = pytest.mark.usefixtures("own_plugins")


def said(folder: Path, text: str, name: str = "my_plugin.py") -> str:
    path = folder / name
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        plugins.load([str(path)])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["method", "addon"])
def test_a_decorator_without_its_name(tmp_path: Path, kind: str) -> None:
    """Another one, which has its name, does not hide it."""
    other = 'return Method("Own", {})\n\n@register_method("Other")\ndef other() -> Method: ...\n'
    found = said(tmp_path, f"{HEAD}@register_{kind}\ndef mine() -> Method:\n    {other}")
    assert f'the decorator needs a name: @register_{kind}("mine") (my_plugin.py, line 6)' in found


@pytest.mark.parametrize(
    ("declared", "fault"),
    [
        ("kd: float = None", "the default of kd is None, and its type float"),
        ("kd: int = 1.5", "the default of kd is 1.5, and its type int"),
        ("kd: Weight = -1.0", "the default of kd is -1.0, and its type float >= 0"),
        ("kd: bool = 'yes'", "the default of kd is 'yes', and its type bool"),
        ("mode: Literal['a', 'b'] = 'c'", "the default of mode is 'c', and its type a | b"),
        ("sizes: tuple[int, ...] = [1, 2]", "the default of sizes is [1, 2], and its type tuple[int, ...]"),
        ("a: int = 1, sizes: list[int] = ()", "sizes: no text can give a list[int]; take float, int"),
        ("kd: int | float = 1", "kd: write float instead of int | float, it takes whole numbers too"),
        ("kd: tuple[float | int, ...] = ()", "kd: write float instead of tuple[float | int, ...]"),
    ],
)
def test_a_parameter_that_is_not_what_it_declares(tmp_path: Path, declared: str, fault: str) -> None:
    text = f'{HEAD}@register_method("Mine")\ndef mine({declared}) -> Method: ...\n'
    assert f"method 'Mine' of {tmp_path / 'my_plugin.py'}: {fault}" in said(tmp_path, text)


def test_a_default_may_be_what_no_text_gives(tmp_path: Path) -> None:
    (tmp_path / "my_plugin.py").write_text(
        f'{HEAD}@register_method("Mine")\ndef mine(kd: float = float("inf"), n: float = 1) -> Method: ...\n'
    )
    plugins.load([str(tmp_path / "my_plugin.py")])
    assert "Mine" in registry.methods()


def test_a_file_beside_a_plugin_is_not_found_and_the_line_says_how_it_is(tmp_path: Path) -> None:
    (tmp_path / "my_helper.py").touch()
    found = said(tmp_path, "import math\nfrom my_helper import x\n")
    assert "my_helper lies beside it, where Python does not look: set PYTHONPATH=" in found
    assert found.endswith(f"PYTHONPATH={tmp_path} (my_plugin.py, line 2)")
    for line in ("from .my_helper import x", "from . import my_helper"):
        assert "without the dot" in said(tmp_path, line), line
    (tmp_path / "os.py").touch()
    assert "cannot import name 'my_helper' from 'os'" in said(tmp_path, "from os import my_helper")


@pytest.mark.parametrize("spec", ["./my_plugin", "../folder/my_plugin"])
def test_a_path_without_its_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/my_plugin.py").touch()
    monkeypatch.chdir(tmp_path / "folder")
    with pytest.raises(UserError, match=f"is no module that can be found: did you mean {spec}.py"):
        plugins.load([spec])


def test_a_file_whose_name_has_a_dot(tmp_path: Path) -> None:
    assert "a module's name has no dot: rename my.v2.py to my_v2.py" in said(tmp_path, "", "my.v2.py")


@pytest.mark.parametrize("name", ["begin_steps", "beginstep", "on_begin_step", "after_backwards", "endstep"])
def test_a_function_of_a_term_that_is_nearly_one_of_the_contract(tmp_path: Path, name: str) -> None:
    text = "from contseg.methods.base import Term\nclass Mine(Term):\n    def {}(self, ctx): ...\n"
    assert f"Mine.{name} is called by nobody: write " in (found := said(tmp_path, text.format(name)))
    assert found.endswith("or give it another name (my_plugin.py, line 2)")
    for other in ("_begin_step", "weights", "begin_step", "backward", "step"):
        assert "registers nothing" in said(tmp_path, text.format(other))
