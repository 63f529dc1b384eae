"""Names and parameters of methods: ``"MiB[kd=100]+SDR[matching=0.1]"`` -> ``Method``.

A method, or an add-on to one, is a decorated factory whose typed keyword arguments are its configuration::

    @register_method("MiB", paper="Cermelli et al., CVPR 2020, arXiv 2002.00718")
    def mib(kd: float = 10.0) -> Method:
        \"\"\"Modelling the background.

        kd: weight of the unbiased distillation; 10 in the paper's table 5
        \"\"\"

A docstring line ``name: text`` says what a parameter is and where its default comes from; ``list methods --long``
shows it. A type may have a range (``methods.ranges``). How a text is read: ``methods.grammar``.

Built-ins are the modules of this folder. Plugins come through ``load_plugins``, or through an installed package's entry
point in the group ``contseg.plugins``. A built-in has exactly the form of a plugin.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import json
import pkgutil
import re
import sys
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from contseg.datasets.errors import UserError, unknown
from contseg.methods import code, faults
from contseg.methods.grammar import (
    TRAIN,
    coerce,
    misdeclared,
    parse,
    recipe,
    split,
    value_text,
    with_parameters,
    with_recipe,
)
from contseg.methods.ranges import admit, plain, type_name

if TYPE_CHECKING:
    from contseg.methods.base import Method

Factory: TypeAlias = Callable[..., "Method"]
F = TypeVar("F", bound=Factory)

ENTRY_POINTS = "contseg.plugins"
REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Parameter:
    """One keyword argument of a factory. ``default`` is ``REQUIRED`` where there is none."""

    name: str
    annotation: Any
    default: Any
    source: str

    @property
    def type_name(self) -> str:
        """The annotation as people write it: ``float``, ``tuple[int, ...]``, ``intended | released``."""
        return type_name(self.annotation)


@dataclass(frozen=True)
class Entry:
    """A registered factory. ``kind``: "method" or "add-on"; ``origin``: the file that defines it."""

    name: str
    kind: str
    factory: Factory
    paper: str
    origin: str
    parameters: tuple[Parameter, ...]

    @property
    def summary(self) -> str:
        """First line of the factory's docstring."""
        return (inspect.getdoc(self.factory) or "").partition("\n")[0]


_METHODS: dict[str, Entry] = {}
_ADDONS: dict[str, Entry] = {}
_NOT_LOADED: list[str] = []  # installed packages with a plugin that failed


def register_method(name: str, paper: str = "") -> Callable[[F], F]:
    """Register a factory as the method ``name``."""
    return _register(_METHODS, "method", name, paper)


def register_addon(name: str, paper: str = "") -> Callable[[F], F]:
    """Register a factory as the add-on ``name``: its terms and hooks are added to those of a method."""
    return _register(_ADDONS, "add-on", name, paper)


def methods() -> dict[str, Entry]:
    """Every known method by name, plugins included."""
    _discover()
    return dict(sorted(_METHODS.items()))


def addons() -> dict[str, Entry]:
    """Every known add-on by name, plugins included."""
    _discover()
    return dict(sorted(_ADDONS.items()))


def build_method(text: str) -> Method:
    """The method that ``text`` describes. Its ``name`` is canonical: only parameters that differ from the default.

    A recipe stays in the name as it is written; only a plan knows what it is to differ from.
    """
    _discover()
    built: list[Method] = []
    labels: list[str] = []
    for position, (name, given) in enumerate(parse(text)):
        entry = _entry(name, first=position == 0)
        values = _values(entry, {key: value for key, value in given.items() if not key.startswith(TRAIN)})
        _refuse_without_effect(entry, values)
        built.append(_call(entry, values))
        labels.append(_label(entry, values))
    method = built[0]
    for addon, label in zip(built[1:], labels[1:], strict=True):
        try:
            method = method.plus(addon)
        except ValueError as error:
            raise UserError(f"{text!r} cannot be composed, {label} does not fit: {error}") from error
    return replace(method, name=with_recipe("+".join(labels), recipe(text)))


def expand_methods(text: str) -> list[str]:
    """One text per combination of the values that a ``|`` parts; a list for a parameter that takes none sweeps too.

    >>> expand_methods("MiB[kd=1|10]+SDR")
    ['MiB[kd=1]+SDR', 'MiB[kd=10]+SDR']
    """
    _discover()
    choices: list[list[str]] = []
    for name, given in parse(text):
        values = [[f"{key}={value}" for value in _choices(name, key, text)] for key, text in given.items()]
        choices.append([with_parameters(name, combination) for combination in itertools.product(*values)])
    return ["+".join(parts) for parts in itertools.product(*choices)]


def reason(error: BaseException) -> str:
    """An error of a method's code in one line, with the line of the author's file."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    return faults.reason(error, {entry.origin for table in (_METHODS, _ADDONS) for entry in table.values()})


def load_plugins(*specs: str | Path) -> None:
    """Import plugins: Python files, or names of modules. What they register can then be used by name."""
    _discover()
    for spec in specs:
        _guarded(f"plugin {str(spec)!r}", lambda spec=spec: _import(spec))  # type: ignore[misc]
    code.forget()


# --- registration and discovery ------------------------------------------------------------------------------------


def _register(table: dict[str, Entry], kind: str, name: str, paper: str) -> Callable[[F], F]:
    if not isinstance(name, str):  # without brackets it would be given the factory, and register nothing
        given = getattr(name, "__name__", "NAME")
        raise TypeError(f'the decorator needs a name: @register_{kind.replace("-", "")}("{given}")')

    def decorate(factory: F) -> F:
        origin = _origin(factory)
        if not re.fullmatch(r"[A-Za-z][\w.-]*", name):
            raise UserError(f"{kind} {name!r} of {origin}: a name is letters, digits, '-', '_' and '.'")
        if name in table:
            raise UserError(f"{kind} {name!r} of {origin} is already defined by {table[name].origin}: rename one")
        if not code.is_ours(factory.__module__) and (top := code.top(factory.__module__)):
            faults.AUTHORS.add(top)
        table[name] = Entry(name, kind, factory, paper, origin, _parameters(kind, name, factory))
        return factory

    return decorate


def _discover() -> None:
    _built_in()
    load_installed()


@cache
def load_installed() -> None:
    """Import the plugins of installed packages, once. One that fails is a warning, for only its methods need it."""
    points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    if points:
        _built_in()  # these names are taken first
    for point in points:
        package = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
        try:
            _guarded(f"plugin {point.name!r} of the installed package {package}", point.load)
        except UserError as error:
            _NOT_LOADED.append(package)
            print(f"warning: {error}", file=sys.stderr)


@cache
def _built_in() -> None:
    """Import every module of this folder."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{package}.{module.name}")


def _guarded(what: str, action: Callable[[], object]) -> None:
    """Run a plugin's code. Its error becomes one line, and what it has registered until then is removed."""
    tables = _METHODS, _ADDONS
    before = [dict(table) for table in tables]
    try:
        action()
    except (Exception, SystemExit) as error:
        for table, saved in zip(tables, before, strict=True):
            table.clear()
            table.update(saved)
        why = faults.old_import(error) or faults.beside(error) or reason(error)
        raise UserError(f"{what} could not be loaded: {why}") from error


def _import(spec: str | Path) -> None:
    path = Path(spec).expanduser()
    if path.suffix != ".py":
        importlib.import_module(str(spec))
        return
    path = path.resolve()
    if not path.is_file():
        raise UserError(f"no such file {path}")
    name = path.stem
    if "." in name:
        raise UserError(f"a module's name has no dot: rename {path.name} to {name.replace('.', '_')}.py")
    present = importlib.util.find_spec(name)
    holder = Path(present.origin or name).resolve() if present is not None else path
    if holder != path:
        raise UserError(f"the name {name!r} is taken by {holder}: rename the file")
    if name in sys.modules:
        return
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None and found.loader is not None  # a .py file has a loader
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _origin(factory: Factory) -> str:
    return inspect.getsourcefile(factory) or factory.__module__


def _parameters(kind: str, name: str, factory: Factory) -> tuple[Parameter, ...]:
    hints = typing.get_type_hints(factory, include_extras=True)
    notes = dict(re.findall(r"^ *(\w+): (.+)$", inspect.getdoc(factory) or "", re.MULTILINE))
    found = []
    for parameter in inspect.signature(factory).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or parameter.name not in hints:
            raise UserError(f"{kind} {name!r} of {_origin(factory)}: parameter {parameter} needs a name and a type")
        annotation = hints[parameter.name]
        if fault := misdeclared(parameter, annotation):
            raise UserError(f"{kind} {name!r} of {_origin(factory)}: {fault}")
        found.append(Parameter(parameter.name, annotation, parameter.default, notes.get(parameter.name, "")))
    return tuple(found)


# --- from text to values -------------------------------------------------------------------------------------------


def _choices(name: str, key: str, text: str) -> list[str]:
    """The values that a text sweeps."""
    found = [value.strip() for value in text.split("|")]
    entry = _METHODS.get(name) or _ADDONS.get(name)
    takes = next((p.type_name for p in entry.parameters if p.name == key), "") if entry else ""
    if takes and "tuple" not in takes and re.fullmatch(r"\(.+\)", text):
        return [value for value in split(text[1:-1], ",") if value]
    return found


def _entry(name: str, first: bool) -> Entry:
    table, other = (_METHODS, _ADDONS) if first else (_ADDONS, _METHODS)
    if name in table:
        return table[name]
    if name in other and first:
        raise UserError(f"{name!r} is an add-on: put a method in front of it, for example 'FT+{name}'")
    if name in other:
        raise UserError(f"{name!r} is a method, only the first part can be one; add-ons: {', '.join(sorted(_ADDONS))}")
    error = unknown("method" if first else "add-on", name, table)
    raise UserError(f"{error}; could not be loaded: {', '.join(_NOT_LOADED)}") if _NOT_LOADED else error


def _values(entry: Entry, given: dict[str, str]) -> dict[str, Any]:
    known = {p.name: p for p in entry.parameters}
    for key in given:
        if key not in known:
            raise unknown(f"parameter of {entry.kind} {entry.name}", key, known)
    values: dict[str, Any] = {}
    for p in entry.parameters:
        if p.name in given:
            try:
                values[p.name] = coerce(given[p.name], p.annotation)
            except ValueError:
                if typing.get_origin(plain(p.annotation)) is Literal:
                    choices = typing.get_args(plain(p.annotation))
                    raise unknown(f"{p.name} of {entry.name}", given[p.name], choices) from None
                problem = f"{entry.name}[{p.name}={given[p.name]}]"
                raise UserError(f"{problem}: {given[p.name]!r} is not of the type {p.type_name}") from None
            values[p.name] = admit(f"{p.name} of {entry.name}", values[p.name], p.annotation, given[p.name])
        elif p.default is REQUIRED:
            raise UserError(f"{entry.kind} {entry.name} needs its parameter {p.name!r} ({p.type_name})")
    return values


# --- from values to a label ----------------------------------------------------------------------------------------


def _call(entry: Entry, values: dict[str, Any]) -> Method:
    from contseg.methods.base import Method
    from contseg.methods.external import external_of
    from contseg.methods.visible import check_visible

    try:
        method = entry.factory(**values)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{entry.kind} {entry.name} ({entry.origin}) failed: {reason(error)}") from error
    if type(method) is not Method:  # of a subclass, a key would not see what it does otherwise
        raise UserError(f"{entry.kind} {entry.name} ({entry.origin}) gave {type(method).__name__}, not a Method")
    try:
        check_visible(method)
        external_of(method)
    except UserError as error:
        raise UserError(f"{entry.kind} {entry.name}: {error}") from None
    return method


def _refuse_without_effect(entry: Entry, values: dict[str, Any]) -> None:
    """``UserError`` for a parameter of a plugin that changes nothing in a key."""
    from contseg.methods.visible import whole

    for p in entry.parameters if not code.is_ours(entry.factory.__module__) else ():
        if p.default is not REQUIRED and p.name in values and values[p.name] != p.default:
            plain = {**values, p.name: p.default}
            if whole(_call(entry, plain)) == whole(_call(entry, values)):
                raise _one_method(_label(entry, plain), _label(entry, values), entry)


def refuse_equal(built: Iterable[Method]) -> None:
    """``UserError`` for two settings of a plugin's method that have the same key."""
    from contseg.methods.visible import whole

    known: dict[str, str] = {}
    for method in built:
        entries = parts_of(method.name)
        plugins = [e for e in entries if not code.is_ours(e.factory.__module__)]
        what = json.dumps([[e.name for e in entries], whole(method), recipe(method.name)])
        if plugins and (other := known.setdefault(what, method.name)) != method.name:
            raise _one_method(other, method.name, plugins[0])


def plugins_of(name: str) -> tuple[tuple[str, str], ...]:
    """The plugins that define a method and its add-ons: module and SHA-256 of its code."""
    modules = {e.factory.__module__ for e in parts_of(name)}
    return tuple((m, code.outside(m)) for m in sorted(modules) if not code.is_ours(m))


def parts_of(name: str) -> list[Entry]:
    """The method and the add-ons of a text, in its order."""
    _discover()
    return [_entry(part, first=n == 0) for n, (part, _) in enumerate(parse(name))]


def _one_method(one: str, other: str, entry: Entry) -> UserError:
    return UserError(
        f"{one} and {other} would share one training: what differs reaches no field of a term or hook of {entry.kind} "
        f"{entry.name} ({entry.origin}); pass it to one, or leave one of the two out"
    )


def _label(entry: Entry, values: dict[str, Any]) -> str:
    changed = [p for p in entry.parameters if p.name in values and values[p.name] != p.default]
    return with_parameters(entry.name, [f"{p.name}={value_text(values[p.name])}" for p in changed])
