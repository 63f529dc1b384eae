"""What a key hashes of a method: the canonical form of its terms, hooks and values.

A key outlives the code that made it: a class that moves to another file keeps its name (``methods.code.stamp``), and a
field that is added later leaves every key as it is while it has its default (``added_field``).
"""

from __future__ import annotations

from dataclasses import Field, field, fields, is_dataclass
from typing import Any

from contseg.datasets.errors import UserError
from contseg.methods.code import stamp


def added_field(default: Any) -> Any:
    """A dataclass field that a released class gains: left out of the key while it has its default.

    ``temperature: float = added_field(1.0)``: trainings from before the field stay valid, because the default does what
    the class did without it. Another value gives another key. The default must then never change.
    """
    return field(default=default, metadata={"added": True})


def describe(thing: Any) -> Any:
    """A term, a hook or a value in canonical form, fit for hashing as JSON.

    Terms and callable dataclasses give their class, revision and all fields (other terms held in a field included);
    functions their qualified name and ``revision``; numbers declared ``float`` their ``float.hex``, so that ``100``
    and ``100.0`` are one value; an ``added_field`` at its default is left out. The name of what is defined outside of
    contseg bears the hash of its code (``stamp``).
    Raises ``UserError`` for what has no such form.
    """
    if is_dataclass(thing) and not isinstance(thing, type):
        values: dict[str, Any] = {}
        for f in fields(thing):
            if not f.init:
                continue
            value = describe(_typed(f, getattr(thing, f.name)))
            if not (f.metadata.get("added") and value == describe(_typed(f, f.default))):
                values[f.name] = value
        kind = type(thing)
        return {"is": stamp(kind), "revision": getattr(kind, "revision", 1), **values}
    if isinstance(thing, float):
        return thing.hex()
    if isinstance(thing, (list, tuple)):
        return [describe(x) for x in thing]
    if isinstance(thing, dict):
        return {str(k): describe(v) for k, v in thing.items()}
    if thing is None or isinstance(thing, (str, int, bool)):
        return thing
    if callable(thing) and hasattr(thing, "__qualname__"):
        return {"is": stamp(thing), "revision": getattr(thing, "revision", 1)}
    raise UserError(f"a {type(thing).__name__} cannot stand in a key: give numbers, strings, terms or functions")


def _typed(f: Field[Any], value: Any) -> Any:
    """A number as its field declares it: 100 is 100.0 in a field of type float."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if f.type in ("float", float) and whole else value
