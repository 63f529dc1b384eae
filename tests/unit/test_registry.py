"""Names, parameters, plugins: what text gives which method, and what is said when it gives none."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from contseg.datasets.errors import UserError
from contseg.methods import registry
from contseg.methods.base import CrossEntropy, Method
from contseg.methods.registry import (
    REQUIRED,
    addons,
    build_method,
    expand_methods,
    load_plugins,
    methods,
    register_addon,
    register_method,
)

PLUGIN = """
from dataclasses import dataclass
from typing import Literal
from contseg.methods.base import CrossEntropy, Method, Term
from contseg.methods.registry import register_method, register_addon

@dataclass(eq=False)
class Scaled(Term):
    by: float = 1.0
    others: tuple = ()
    def __call__(self, batch):
        return batch.logits.mean() * self.by

@register_method("{name}", paper="A. Uthor, 2030")
def mine(
    rate: float = 2.0,
    rounds: int = 3,
    scales: tuple[int, ...] = (1, 2, 4),
    limit: float | None = None,
    mode: Literal["soft", "hard"] = "soft",
    verbose: bool = False,
    label: str = "plain",
) -> Method:
    '''My method.

    rate: how fast; 2 in section 3
    '''
    others = (rounds, scales, limit, mode, verbose, label)
    return Method("{name}", terms={{"ce": CrossEntropy(), "scaled": Scaled(rate, others)}})
"""


@pytest.fixture(autouse=True)
def forget_plugins() -> Iterator[None]:
    """Leave the registry as it was."""
    methods()
    tables = registry._METHODS, registry._ADDONS
    before = [dict(table) for table in tables]
    yield
    sys.modules.pop("my_own_method", None)
    for table, saved in zip(tables, before, strict=True):
        table.clear()
        table.update(saved)


def write(folder: Path, text: str, name: str = "my_own_method.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def message(text: str) -> str:
    with pytest.raises(UserError) as caught:
        build_method(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- text to method ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("MiB", "MiB"),
        ("MiB[kd=10]", "MiB"),
        ("MiB[kd=10.0]", "MiB"),
        ("MiB[]", "MiB"),
        (" MiB [ kd = 100 ] ", "MiB[kd=100]"),
        ("MiB[kd=1e2]", "MiB[kd=100]"),
        ("MiB[kd=1e+2]+SDR", "MiB[kd=100]+SDR"),
        ("MiB+SDR[sparsity=none,matching=0.1]", "MiB+SDR[matching=0.1,sparsity=none]"),
        ("SDR[formulation=Released]", "SDR[formulation=released]"),
        ("LwF[kd=0.1234567890123]", "LwF[kd=0.1234567890123]"),
    ],
)
def test_the_label_holds_what_is_no_default(text: str, label: str) -> None:
    assert build_method(text).name == label
    assert build_method(label).name == label


def test_every_registered_name_builds() -> None:
    for name in methods():
        assert build_method(name).name == name


def test_values_reach_the_terms() -> None:
    method = build_method("MiB[kd=42]+SDR[attraction=7]")
    assert method.terms["unkd"].weight == 42
    assert method.terms["attraction"].weight == 7


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mib", "unknown method 'Mib': did you mean 'MiB'?"),
        ("MiB+SRD", "unknown add-on 'SRD': did you mean 'SDR'?"),
        ("MiB[dk=1]", "unknown parameter of method MiB 'dk': did you mean 'kd'?"),
        ("MiB[kd=ten]", "MiB[kd=ten]: 'ten' is not of the type float"),
        ("MiB[kd=nan]", "'nan' is not of the type float"),
        ("MiB[kd=none]", "'none' is not of the type float"),
        ("SDR[formulation=realeased]", "unknown formulation of SDR 'realeased': did you mean 'released'?"),
        ("FT+MiB", "'MiB' is a method, only the first part can be one"),
        ("FT+SDR+SDR", "cannot be composed"),
        ("SDR+SDR", "cannot be composed"),
        ("MiB[kd=1", "cannot read 'MiB[kd=1'"),
        ("MiB[kd]", "cannot read 'kd'"),
        ('PLOP[formulation="released"]', "a value has no quotes; write formulation=released"),
        ("Joint[like='RCIL']", "write like=RCIL"),
        ("MiB[kd=1,kd=2]", "kd is given twice"),
        ("", "cannot read ''"),
        ("FT+", "cannot read ''"),
    ],
)
def test_a_mistake_is_one_line(text: str, expected: str) -> None:
    assert expected in message(text)


def test_an_add_on_alone_says_what_to_do() -> None:
    @register_addon("Extra")
    def extra() -> Method:
        return Method("Extra", terms={})

    assert "put a method in front of it, for example 'FT+Extra'" in message("Extra")


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("MiB", ["MiB"]),
        ("MiB[kd=1|10|100]", ["MiB[kd=1]", "MiB[kd=10]", "MiB[kd=100]"]),
        ("A[x=1|2,y=(1,2)|(3,)]", ["A[x=1,y=(1,2)]", "A[x=1,y=(3,)]", "A[x=2,y=(1,2)]", "A[x=2,y=(3,)]"]),
        ("A[x=1|2]+B[y=3|4]", ["A[x=1]+B[y=3]", "A[x=1]+B[y=4]", "A[x=2]+B[y=3]", "A[x=2]+B[y=4]"]),
    ],
)
def test_sweeps(text: str, expanded: list[str]) -> None:
    assert expand_methods(text) == expanded


# --- what a factory may say -----------------------------------------------------------------------------------------


def test_every_type_is_read_and_written(tmp_path: Path) -> None:
    load_plugins(write(tmp_path, PLUGIN.format(name="Mine")))
    changed = "Mine[rate=0.5,rounds=4,scales=(1,8),limit=3,mode=hard,verbose=true,label=bold]"
    assert build_method(changed).name == changed
    given = "Mine[rate=2,rounds=3,scales=(1, 2, 4),limit=None,mode=SOFT,verbose=False,label=plain]"
    assert build_method(given).name == "Mine"
    assert "'1.5' is not of the type int" in message("Mine[rounds=1.5]")
    assert "'yes' is not of the type bool" in message("Mine[verbose=yes]")
    assert "'(1,x)' is not of the type tuple[int, ...]" in message("Mine[scales=(1,x)]")


def test_parameters_are_listed_with_their_sources(tmp_path: Path) -> None:
    load_plugins(write(tmp_path, PLUGIN.format(name="Mine")))
    entry = methods()["Mine"]
    assert (entry.paper, entry.summary, entry.kind) == ("A. Uthor, 2030", "My method.", "method")
    assert [(p.name, p.type_name, p.default) for p in entry.parameters[:5]] == [
        ("rate", "float", 2.0),
        ("rounds", "int", 3),
        ("scales", "tuple[int, ...]", (1, 2, 4)),
        ("limit", "float | None", None),
        ("mode", "soft | hard", "soft"),
    ]
    assert entry.parameters[0].source == "how fast; 2 in section 3"


def test_every_default_of_the_suite_has_a_source() -> None:
    missing = [
        f"{e.kind} {e.name}: {p.name}"
        for e in [*methods().values(), *addons().values()]
        for p in e.parameters
        if not p.source
    ]
    assert not missing


def test_a_parameter_without_default_is_asked_for() -> None:
    @register_method("Needy")
    def needy(weight: float) -> Method:
        return Method("Needy", terms={"ce": CrossEntropy(weight=weight)})

    assert methods()["Needy"].parameters[0].default is REQUIRED
    assert "method Needy needs its parameter 'weight' (float)" in message("Needy")
    assert build_method("Needy[weight=2]").name == "Needy[weight=2]"


def test_a_factory_that_fails_is_named() -> None:
    @register_method("Broken")
    def broken(size: int = 0) -> Method:
        return Method("Broken", terms={"x": CrossEntropy(weight=1 / size)})

    @register_method("Forgetful")
    def forgetful() -> Method:
        return None  # type: ignore[return-value]

    assert "method Broken" in message("Broken") and "ZeroDivisionError" in message("Broken")
    assert "gave NoneType, not a Method" in message("Forgetful")


def test_what_no_text_can_give_is_refused() -> None:
    with pytest.raises(UserError, match="no text can give a dict"):

        @register_method("Odd")
        def odd(table: dict = {}) -> Method:  # noqa: B006
            return Method("Odd", terms={})

    with pytest.raises(UserError, match="needs a name and a type"):

        @register_method("Untyped")
        def untyped(weight=1.0) -> Method:
            return Method("Untyped", terms={})

    with pytest.raises(UserError, match="a name is letters"):
        register_method("A+B")(lambda: Method("A", terms={}))


# --- plugins -------------------------------------------------------------------------------------------------------


def test_a_plugin_by_file_and_twice(tmp_path: Path) -> None:
    path = write(tmp_path, PLUGIN.format(name="Mine"))
    load_plugins(path)
    load_plugins(str(path))
    assert build_method("Mine+SDR").name == "Mine+SDR"


def test_a_plugin_by_module_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, PLUGIN.format(name="Module"), "plugin_found_by_name.py")
    monkeypatch.syspath_prepend(tmp_path)
    load_plugins("plugin_found_by_name")
    assert "Module" in methods()


def test_a_plugin_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, PLUGIN.format(name="Mine"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    load_plugins("my_own_method.py", "my_own_method")
    assert "Mine" in methods()


def plugin_message(*specs: str | Path) -> str:
    with pytest.raises(UserError) as caught:
        load_plugins(*specs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_duplicate_says_who_came_first(tmp_path: Path) -> None:
    found = plugin_message(write(tmp_path, PLUGIN.format(name="MiB")))
    assert "my_own_method.py" in found and "'MiB'" in found and "already defined by" in found and "mib.py" in found


def test_a_crash_names_plugin_line_and_reason_and_leaves_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, PLUGIN.format(name="Mine") + "\nraise RuntimeError('out of\\nluck')\n")
    found = plugin_message(path)
    assert str(path) in found and "RuntimeError: out of luck" in found
    assert f"line {len(path.read_text().splitlines())}" in found
    assert "Mine" not in methods()


def test_a_syntax_error_is_one_line_and_names_its_place(tmp_path: Path) -> None:
    found = plugin_message(write(tmp_path, "x = 1\ndef mine(:\n"))
    assert "SyntaxError: invalid syntax (my_own_method.py, line 2)" in found and "registry.py" not in found


def test_an_import_that_fails_names_its_line(tmp_path: Path) -> None:
    found = plugin_message(write(tmp_path, "import math\nimport no_such_module_at_all\n"))
    assert found.endswith("No module named 'no_such_module_at_all' (my_own_method.py, line 2)")


def test_a_plugin_that_leaves_the_program_is_one_line(tmp_path: Path) -> None:
    assert "SystemExit: 3 (my_own_method.py, line 2)" in plugin_message(write(tmp_path, "import sys\nsys.exit(3)\n"))


def test_a_text_for_a_state_is_refused_where_it_stands(tmp_path: Path) -> None:
    text = "from contseg.methods.base import Term\n\nclass Mine(Term):\n    state = ('mu')\n"
    found = plugin_message(write(tmp_path, text))
    assert "Mine.state is the text 'mu': write a tuple, ('mu',) (my_own_method.py, line 3)" in found


WRONG = """
from dataclasses import dataclass, field
from contseg.methods.base import CrossEntropy, Method, Term
from contseg.methods.registry import register_method

@dataclass(eq=False)
class Keeps(Term):
    state = ("mu",)

@register_method("Mine")
def mine() -> Method:
    return Method("Mine", {})
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("[CrossEntropy()]", "terms is a list: give a dictionary"),
        ("{'ce': CrossEntropy}", "terms['ce'] is the class CrossEntropy: give an object"),
        ("{'ce': 1}", "terms['ce'] is a int: give an object"),
        ("{}, first=[CrossEntropy()]", "first is a list: give a dictionary"),
        ("{'keeps': Keeps()}", "Keeps has no attribute 'mu' of its state: declare mu: Tensor | None"),
        ("{}, end_step=print", "end_step is a builtin_function_or_method: give a tuple"),
        ("{}, predict='argmax'", "predict is a str: give a function"),
    ],
)
def test_a_method_of_wrong_parts_names_the_line_that_makes_it(tmp_path: Path, arguments: str, said: str) -> None:
    load_plugins(write(tmp_path, WRONG.replace("{}", arguments)))
    found = message("Mine")
    assert said in found and found.endswith("(my_own_method.py, line 12)")


def test_a_missing_plugin(tmp_path: Path) -> None:
    assert "no such file" in plugin_message(tmp_path / "nowhere.py")
    assert "No module named 'no_such_module_at_all'" in plugin_message("no_such_module_at_all")


def test_a_plugin_does_not_take_a_modules_name(tmp_path: Path) -> None:
    assert "the name 'json' is taken by" in plugin_message(write(tmp_path, "", "json.py"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("from methods.base import Term", "write 'from contseg.methods.base import Term' (old.py, line 2)"),
        ("import methods.mib as m  # MiB", "write 'import contseg.methods.mib as m' (old.py, line 2)"),
        ("from methods.base import (\n    Term,\n)", "write 'from contseg.methods.base import' (old.py, line 2)"),
        ("from datasets.base import x", "write 'from contseg.datasets.base import x' (old.py, line 2)"),
        ("from benchmark.runner import x", "write 'from contseg.benchmark.train.runner import x' (old.py, line 2)"),
        ("from benchmark.lockstep import x", "benchmark.lockstep is now in contseg.benchmark (old.py, line 2)"),
        ("from datasets import no_such_name", "(old.py, line 2)"),
    ],
)
def test_an_import_from_before_the_package_is_told_its_new_name(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "old.py"
    path.write_text(f"import torch\n{line}\n")
    with pytest.raises(UserError) as caught:
        load_plugins(path)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert ("contseg" in str(caught.value)) == ("contseg" in said)
