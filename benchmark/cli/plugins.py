"""Loads the plugins that a command names; each must register something."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from contseg.datasets.errors import UserError
from contseg.datasets.registry import known_datasets
from contseg.methods.registry import addons, load_installed, load_plugins, methods


def load(specs: Iterable[str]) -> None:
    """Load those of installed packages, then these; one that is named twice is loaded once.

    Raises ``UserError`` for one that is not there or registers nothing.
    """
    load_installed()
    for spec in dict.fromkeys(specs):
        name = Path(spec).stem if spec.endswith(".py") else spec
        new, before = name not in sys.modules, _registered()
        if not spec.endswith(".py"):
            _check_module(spec)
        load_plugins(spec)
        if new and _registered() == before:
            del sys.modules[name]
            raise UserError(
                f"plugin {spec!r} registers nothing: put @register_method, @register_addon or @register_dataset "
                "in front of what it brings"
            )


def _check_module(name: str) -> None:
    """Raise ``UserError`` if there is no module of this name, and say what its user may have meant."""
    try:
        # a dot begins a path, ./mine
        found = not name.startswith(".") and (name in sys.modules or importlib.util.find_spec(name) is not None)
    except ValueError:  # an empty part, as in ``a..b``
        found = False
    except (
        ImportError
    ) as error:  # of a package that it is in; if that is there, its own mistake is told as it is loaded
        found = not error.name or not f"{name}.".startswith(f"{error.name}.")
    if found:
        return
    hint = "give the path of a file FILE.py, or the name of an installed module"
    if Path(f"{name}.py").is_file():
        hint = f"did you mean {name}.py?"
    what = "is no Python file" if Path(name).exists() else "is no module that can be found"
    raise UserError(f"plugin {name!r} {what}: {hint}")


def _registered() -> tuple[set[str], ...]:
    return set(methods()), set(addons()), set(known_datasets())
