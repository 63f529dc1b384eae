"""Terms and hooks in words: the lines of a method when it is printed."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any


def product(name: str, term: Any) -> str:
    """``10 unkd: UnbiasedDistillation``: the weight of a term, its name, and its class if that has another name."""
    weight = "" if term.weight == 1 else f"{term.weight:g} "
    return f"{weight}{name}: {words(term)}" if name.lower() != type(term).__name__.lower() else f"{weight}{name}"


def words(thing: Any) -> str:
    """``LocalPod(scales=(1, 2, 4))``: the name of a class or function, with its parameters."""
    if not is_dataclass(thing):
        return getattr(thing, "__name__", type(thing).__name__)
    shown = [
        f"{f.name}={getattr(thing, f.name)}"
        for f in fields(thing)
        if f.name != "weight" and f.init and not is_dataclass(getattr(thing, f.name))
    ]
    return type(thing).__name__ + (f"({', '.join(shown)})" if shown else "")
