"""Types with a range, for the parameters of methods and for the fields of a configuration.

A range is msgspec's ``Meta`` in an ``Annotated`` type; it is written as the type::

    def mib(kd: Weight = 10.0) -> Method: ...
    def mine(temperature: Annotated[float, Meta(gt=0, le=10)] = 2.0) -> Method: ...

``MiB[kd=-1]`` is then an error before anything is trained. Where a tuning searches stands there as well::

    def mib(kd: Annotated[Weight, Search(1, 100)] = 10.0) -> Method: ...
"""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from contseg.datasets.errors import UserError, unknown

Weight: TypeAlias = Annotated[float, Meta(ge=0)]
Positive: TypeAlias = Annotated[float, Meta(gt=0)]
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Count: TypeAlias = Annotated[int, Meta(ge=1)]
Number: TypeAlias = Annotated[int, Meta(ge=0)]


@dataclass(frozen=True)
class Search:
    """Where a tuning looks for a value: from ``low`` to ``high``, evenly in its logarithm or (``log=False``) in itself.

    It restricts nothing else: a value outside can be given by hand. Of a value for each step it is that of later steps.
    """

    low: float
    high: float
    log: bool = True

    def __post_init__(self) -> None:
        if not (self.low < self.high and (self.low > 0 or not self.log)):
            raise ValueError(f"{self}: low must be below high, and above 0 where log is true")

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', log' if self.log else ''}"

    def at(self, share: float) -> float:
        """The value at a share of the way from ``low`` to ``high``."""
        if self.log:
            return float(self.low * (self.high / self.low) ** share)
        return self.low + share * (self.high - self.low)


SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
NAMES = {float: "number", int: "whole number", str: "text"}


def admit(name: str, value: Any, annotation: Any, written: str | None = None) -> Any:
    """``value`` in the declared type: a list becomes a tuple, 1 becomes 1.0. Numbers must be finite.

    Raises ``UserError``: ``NAME must be > 0, not -1``. ``written``: the text that the user wrote.
    """
    finite = all(math.isfinite(v) for v in (value if isinstance(value, (list, tuple)) else [value]) if type(v) is float)
    try:
        if finite:
            return msgspec.convert(value, annotation)
    except msgspec.ValidationError:
        pass
    choices = typing.get_args(plain(annotation)) if typing.get_origin(plain(annotation)) is Literal else ()
    if choices and isinstance(value, str):
        raise unknown(name, value, choices)
    only = value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value
    shown = repr(only) if written is None else written or "empty"
    raise UserError(f"{name} must be {_wanted(value, annotation) if finite else 'finite'}, not {shown}")


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value is of the declared type, and in its range."""
    try:
        msgspec.convert(value, annotation)
    except msgspec.ValidationError:
        return False
    return not isinstance(value, list)


def plain(annotation: Any) -> Any:
    """The type without its range."""
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is Annotated else annotation


def limits(annotation: Any) -> str:
    """The range of a number, or of the numbers of a tuple: ``>= 0 and < 1``; empty without one."""
    metas = list(_metas(annotation))
    bounds = [f"{SIGNS[k]} {getattr(m, k)}" for m in metas for k in SIGNS if getattr(m, k) is not None]
    inner = typing.get_args(plain(annotation))
    return " and ".join(bounds) or next(filter(None, (limits(a) for a in inner if a is not ...)), "")


def search(annotation: Any) -> Search | None:
    """Where a tuning looks for the value of such a type; ``None`` where it leaves the default."""
    if typing.get_origin(annotation) is not Annotated:
        return None
    return next((m for m in typing.get_args(annotation)[1:] if isinstance(m, Search)), None)


def meaning(annotation: Any) -> str:
    """The description of a field (``Meta(description=...)``)."""
    return next((m.description for m in _metas(annotation) if m.description), "")


def words(annotation: Any) -> str:
    """A declaration as text: ``number > 0``, ``1 to 2 whole numbers >= 1``, ``"h" or "hv"``."""
    kind, inner = typing.get_origin(plain(annotation)), typing.get_args(plain(annotation))
    if kind is Literal:
        *first, last = (f'"{choice}"' for choice in inner)
        return f"{', '.join(first)} or {last}"
    if kind in (typing.Union, types.UnionType):
        return " or ".join("none" if a is types.NoneType else words(a) for a in inner)
    if kind is tuple:
        item = words(inner[0])
        name = NAMES.get(plain(inner[0]), "value")
        return f"{_length(annotation)} {item.replace(name, f'{name}s', 1)}"
    if kind is dict:
        return "table of names and texts"
    if plain(annotation) is bool:
        return "true or false"
    return f"{NAMES.get(plain(annotation), 'value')} {limits(annotation)}".strip()


def type_name(annotation: Any) -> str:
    """A type as people write it, with its range: ``float >= 0``, ``tuple[int, ...]``, ``intended | released``."""
    kind, inner = typing.get_origin(plain(annotation)), typing.get_args(plain(annotation))
    if kind is Literal:
        return " | ".join(map(str, inner))
    if kind in (typing.Union, types.UnionType):
        return " | ".join(type_name(a) for a in inner)
    bare = tuple[tuple(map(plain, inner))] if kind is tuple else plain(annotation)  # type: ignore[misc]
    name = "None" if bare is types.NoneType else inspect.formatannotation(bare).replace("typing.", "")
    return f"{name} {limits(annotation)}".strip()


def _wanted(value: Any, annotation: Any) -> str:
    """The range, if the value has the right type; else the whole declaration."""
    kind, inner = plain(annotation), typing.get_args(plain(annotation))
    if typing.get_origin(kind) is tuple:
        kind = tuple[plain(inner[0]), ...]  # type: ignore[misc]
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return _article(words(annotation))
    low, high = _bounds(annotation)
    size = len(value) if isinstance(value, (list, tuple)) else 0
    fits = not isinstance(value, (list, tuple)) or low <= size <= high
    return limits(annotation) if fits and limits(annotation) else _article(words(annotation))


def _article(text: str) -> str:
    return f"a {text}" if text.startswith(("number", "whole", "text", "table", "value")) else text


def _metas(annotation: Any) -> Iterator[Meta]:
    if typing.get_origin(annotation) is Annotated:
        yield from (m for m in typing.get_args(annotation)[1:] if isinstance(m, Meta))


def _bounds(annotation: Any) -> tuple[float, float]:
    low, high = 0.0, math.inf
    for m in _metas(annotation):
        low = low if m.min_length is None else m.min_length
        high = high if m.max_length is None else m.max_length
    return low, high


def _length(annotation: Any) -> str:
    low, high = _bounds(annotation)
    if high == math.inf:
        return f"{low:g} or more" if low else "any number of"
    return f"{low:g} to {high:g}"
