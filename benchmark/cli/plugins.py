"""Loads the plugins that a command names; each must register something."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from contseg.datasets.errors import UserError
from contseg.datasets.registry import known_datasets
from contseg.methods.registry import addons, load_installed, load_plugins, methods


def load(specs: Iterable[str]) -> None:
    """Load those of installed packages, then these; one that is named twice is loaded once.

    Raises ``UserError`` for one that registers nothing.
    """
    load_installed()
    for spec in dict.fromkeys(specs):
        name = Path(spec).stem if spec.endswith(".py") else spec
        new, before = name not in sys.modules, _registered()
        load_plugins(spec)
        if new and _registered() == before:
            del sys.modules[name]
            raise UserError(
                f"plugin {spec!r} registers nothing: put @register_method, @register_addon or @register_dataset "
                "in front of what it brings"
            )


def _registered() -> tuple[set[str], ...]:
    return set(methods()), set(addons()), set(known_datasets())
