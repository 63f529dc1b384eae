"""Checks that a key contains all that a method is. What ``describe`` cannot see is refused, because two different
settings would have the same key."""

from __future__ import annotations

import types
from dataclasses import fields, is_dataclass, replace
from typing import Any, NoReturn

import torch

from contseg.datasets.errors import UserError
from contseg.methods.base import HOOKS, Method, describe
from contseg.methods.code import place, stamp

BESIDE_TERMS = (*HOOKS, "warm_up", "end_step", "memory")


def whole(method: Method) -> Any:
    """The canonical form of everything in a method."""
    hooks = [getattr(method, name) for name in BESIDE_TERMS]
    return describe([[*method.first.items()], [*method.terms.items()], hooks])


def check_visible(method: Method) -> None:
    """Raises ``UserError``, one line with file and line number, for the first thing that would be in no key."""
    for name, term in [*method.first.items(), *method.terms.items()]:
        _look(term, f"term {name!r}")
    for name in BESIDE_TERMS:
        _look(getattr(method, name), name)


def _look(thing: Any, what: str) -> None:
    if isinstance(thing, (list, tuple)):
        for x in thing:
            _look(x, what)
    elif isinstance(thing, dict):
        for x in thing.values():
            _look(x, what)
    elif is_dataclass(thing) and not isinstance(thing, type):
        _look_inside(thing, what)
    elif callable(thing) and hasattr(thing, "__qualname__"):
        stamp(thing)
    elif not (thing is None or isinstance(thing, (str, int, float))):
        if callable(thing):
            _refuse(thing, what, "is no dataclass", "make it a dataclass with __call__ whose fields are its parameters")
        raise UserError(
            f"{what} is a {type(thing).__name__}, which cannot stand in a key: give numbers, strings, terms or "
            "functions, and make tensors of them in begin_step"
        )


def _look_inside(thing: Any, what: str) -> None:
    """A dataclass: check every field, and that no other attribute holds what the fields do not determine."""
    kind = type(thing)
    stamp(kind)
    init = kind.__init__
    if not isinstance(init, types.FunctionType) or init.__code__.co_filename != "<string>":
        _refuse(thing, what, "has an __init__ of its own", "make what that takes fields of the dataclass")
    shown = {f.name for f in fields(thing) if f.init}
    for name in sorted(shown):
        _look(getattr(thing, name), f"{kind.__name__}.{name} ({place(kind)})")
    try:
        again = replace(thing)
    except Exception as error:
        _refuse(thing, what, f"cannot be made from its fields alone ({error})", "make all that it takes fields")
    mine, other = vars(thing), vars(again)
    for name in [*mine, *other]:
        if name not in shown and not (name in mine and name in other and _equal(mine[name], other[name])):
            _refuse(thing, what, f"holds {name!r}, which its fields do not give", "make it a field")


def _equal(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    try:
        return bool(type(a) is type(b) and a == b)
    except Exception:
        return False


def _refuse(thing: Any, what: str, why: str, remedy: str) -> NoReturn:
    name = type(thing).__name__
    raise UserError(f"{name} ({place(thing)}), {what}, {why}; no key would see it: {remedy}")
