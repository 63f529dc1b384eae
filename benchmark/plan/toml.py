"""A configuration as TOML."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from typing import Any

from contseg.benchmark.plan.config import Config


def toml_value(value: Any) -> str:
    """A value as TOML writes it: text, number, truth value, list, or a table of texts."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, dict):
        pairs = [f"{json.dumps(key)} = {toml_value(v)}" for key, v in value.items()]
        return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)


def as_toml(config: Config) -> str:
    """The text that ``read_config`` turns into this configuration; what is at its default is left out."""
    default, top, sections = Config(), list[str](), list[str]()
    for f in fields(config):
        value, plain = getattr(config, f.name), getattr(default, f.name)
        if is_dataclass(value):
            own = [(g.name, getattr(value, g.name)) for g in fields(value)]
            lines = [f"{key} = {toml_value(v)}" for key, v in own if v != getattr(plain, key)]
            sections += ["", f"[{f.name}]", *lines] if lines else []
        elif value != plain:
            top.append(f"{f.name} = {toml_value(value)}")
    return "\n".join([*top, *sections]) + "\n"
