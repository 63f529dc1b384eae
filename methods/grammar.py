"""The text of a method's name, and the values that it gives: ``"MiB[kd=100]+SDR[matching=0.1]"``.

Grammar: ``part(+part)*``, ``part = name[key=value, ...]``. The first part is a method, the others are add-ons
(``methods.registry``). Values: numbers, words, ``none``, ``true``/``false``, ``(1, 2, 4)``. ``a|b|c`` sweeps: it
gives one method for each value (``registry.expand_methods``). A key ``train.KEY`` is the method's own value of
``[train]`` (``recipe``); the plan reads it.
"""

from __future__ import annotations

import inspect
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Literal

from contseg.datasets.errors import UserError
from contseg.methods.ranges import fits, plain, type_name

TRAIN = "train."  # begins the keys of a recipe


def parse(text: str) -> list[tuple[str, dict[str, str]]]:
    """``"A[x=1]+B"`` -> ``[("A", {"x": "1"}), ("B", {})]``."""
    return [(name, dict(given)) for name, given in _parts(text)]


@lru_cache(2**10)  # a report asks for the few names of its methods in every record
def _parts(text: str) -> list[tuple[str, dict[str, str]]]:
    parts = []
    for part in split(text, "+"):
        found = re.fullmatch(r"([^\[\]]+?)\s*(?:\[(.*)\])?", part)
        if not found:
            raise UserError(f"method {text!r}: cannot read {part!r}; write NAME or NAME[key=value,...]")
        given: dict[str, str] = {}
        for item in split(found[2], ",") if found[2] and found[2].strip() else []:
            key, equals, value = (piece.strip() for piece in item.partition("="))
            if not (key and equals and value):
                raise UserError(f"method {text!r}: cannot read {item!r}; write key=value")
            if value[0] in "\"'":
                raise UserError(f"method {text!r}: a value has no quotes; write {key}={value.replace(value[0], '')}")
            if key in given:
                raise UserError(f"method {text!r}: {key} is given twice; {key}={given[key]}|{value} sweeps both")
            given[key] = value
        parts.append((found[1], given))
    return parts


def split(text: str, mark: str) -> list[str]:
    """Split at a mark, except inside brackets."""
    depth, pieces = 0, [""]
    for letter in text:
        depth += (letter in "[(") - (letter in "])")
        if letter == mark and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += letter
    return [piece.strip() for piece in pieces]


def coerce(text: str, annotation: Any) -> Any:
    """The value that a text stands for; ``ValueError`` if it is not of the type. Ranges are left to ``admit``."""
    annotation = plain(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is types.NoneType:
        return None if text.lower() == "none" else _fail(text)
    if origin in (typing.Union, types.UnionType):
        return _first_fit(text, sorted(arguments, key=lambda a: a is not types.NoneType))
    if origin is Literal:
        return next((choice for choice in arguments if str(choice).lower() == text.lower()), None) or _fail(text)
    if origin is tuple:
        inner = text[1:-1] if text.startswith("(") and text.endswith(")") else text
        items = [item for item in split(inner, ",") if item]
        kinds = [arguments[0]] * len(items) if arguments[1:] == (...,) else arguments
        return tuple(coerce(item, kind) for item, kind in zip(items, kinds, strict=True))
    if annotation is bool:
        return text.lower() == "true" if text.lower() in ("true", "false") else _fail(text)
    if annotation is float:
        value = float(text)
        return value if math.isfinite(value) else _fail(text)
    return annotation(text)  # int or str


def _first_fit(text: str, annotations: list[Any]) -> Any:
    for annotation in annotations:
        try:
            return coerce(text, annotation)
        except ValueError:
            continue
    return _fail(text)


def _fail(text: str) -> typing.NoReturn:
    raise ValueError(text)


def has_text(annotation: Any) -> bool:
    """Whether a text can give a value of this type."""
    annotation = plain(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return all(isinstance(choice, str) for choice in arguments)
    if origin in (typing.Union, types.UnionType, tuple):
        return all(has_text(a) for a in arguments if a is not ...)
    return annotation in (bool, int, float, str, types.NoneType)


def _two_numbers(annotation: Any) -> bool:
    """Whether 1 could be an ``int`` and a ``float``: one method would have two keys."""
    annotation = plain(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    both = origin in (typing.Union, types.UnionType) and {int, float} <= {plain(a) for a in arguments}
    return both or any(_two_numbers(a) for a in arguments if origin is not Literal)


def misdeclared(parameter: inspect.Parameter, annotation: Any) -> str:
    """What is wrong with a factory's parameter of this type; "" if nothing is."""
    name, default = parameter.name, parameter.default
    if _two_numbers(annotation):
        return f"{name}: write float instead of {type_name(annotation)}, it takes whole numbers too"
    if not has_text(annotation):
        return f"{name}: no text can give a {type_name(annotation)}; take float, int, bool, str, Literal or a tuple"
    if default is not parameter.empty and not fits(default, annotation):
        return f"the default of {name} is {default!r}, and its type {type_name(annotation)}: change one of them"
    return ""


def recipe(text: str) -> dict[str, str]:
    """The recipe of a method's text, by key of ``[train]``; its values are texts.

    >>> recipe("MiB[kd=1,train.lr=0.01]+SDR")
    {'lr': '0.01'}
    """
    found: dict[str, str] = {}
    for _, given in parse(text):
        for key in (key for key in given if key.startswith(TRAIN)):
            if key.removeprefix(TRAIN) in found:
                raise UserError(f"method {text!r}: {key} is given twice, and there is one recipe for the whole method")
            found[key.removeprefix(TRAIN)] = given[key]
    return found


def with_recipe(text: str, given: Mapping[str, str]) -> str:
    """The same method with this recipe, in the brackets of its first part, and with no other.

    >>> with_recipe("MiB[kd=1]+SDR[train.lr=0.01]", {"lr": "0.001"})
    'MiB[kd=1,train.lr=0.001]+SDR'
    """
    parts = [(name, {k: v for k, v in own.items() if not k.startswith(TRAIN)}) for name, own in parse(text)]
    parts[0][1].update({TRAIN + key: value for key, value in given.items()})
    return "+".join(with_parameters(name, _pairs(own)) for name, own in parts)


def method_text(table: Mapping[str, Any]) -> str:
    """A method's text from a table of a TOML file; a list is a list of values, a list of lists sweeps them.

    >>> method_text({"method": "DKD", "kd": "1|10", "train": {"lr": [0.01, 0.001]}})
    'DKD[kd=1|10,train.lr=(0.01,0.001)]'
    """
    given = dict(table)
    name, train = given.pop("method", None), given.pop("train", {})
    if not isinstance(name, str) or not isinstance(train, dict):
        raise UserError(f'methods: {table!r} is no method; write {{ method = "MiB", kd = 10, train.lr = 0.01 }}')
    (first, own), *others = parse(name)
    values = {**given, **{TRAIN + key: value for key, value in train.items()}}
    pieces = [*_pairs(own), *_pairs({key: _listed(value) for key, value in values.items()})]  # twice: parse says so
    return "+".join([with_parameters(first, pieces), *(with_parameters(n, _pairs(other)) for n, other in others)])


def _pairs(given: Mapping[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in given.items()]


def _listed(value: Any) -> str:
    """A TOML value as the text of one or, for a list of lists, of several to sweep."""
    if isinstance(value, list):
        each = [_listed(v) for v in value]
        return "|".join(each) if value and all(isinstance(v, list) for v in value) else f"({','.join(each)})"
    return value_text(value)


def with_parameters(name: str, items: Iterable[str]) -> str:
    """``NAME[a=1,b=2]``; the bare name without items."""
    inside = ",".join(items)
    return f"{name}[{inside}]" if inside else name


def value_text(value: Any) -> str:
    """The shortest text that ``coerce`` turns into this value."""
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    if isinstance(value, tuple):
        return "(" + ",".join(map(value_text, value)) + ")"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
