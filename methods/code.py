"""The source files of an object, as a key or a record needs them.

A module is *ours* (contseg), a library (the standard library, site-packages), or *outside*: a plugin, and what it
imports. ``stamp`` is the name of an object in a key. For an object from outside it contains a hash of the code, so an
edited plugin has another key. ``ours`` hashes our own files; no key contains these (``benchmark/store/origin.py``).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import io
import itertools
import os
import sys
import tokenize
import types
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from contseg.datasets.errors import UserError

HOME = Path(__file__).resolve().parent.parent
PACKAGE = __name__.partition(".")[0]
# the libraries of contseg: no key has their code; records have the versions of those that can move a number
LIBRARIES = ("torch", "torchvision", "numpy", "PIL", "accelerate", "msgspec")
STDLIB = Path(os.__file__).resolve().parent


def is_ours(module: str) -> bool:
    """Whether a module, by name, is part of contseg."""
    return module.partition(".")[0] == PACKAGE


def stamp(thing: Any) -> str:
    """``module.qualname`` of a class or function, and the SHA-256 of its code if it is from outside.

    For our own code the name of the package is left out. A class that has moved to another file keeps its first name in
    ``identity``: ``identity = "methods.old_file.Name"``.

    Raises ``UserError`` for what has no such name: a lambda, a function inside a function, a bound method.
    """
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    found: Any = sys.modules.get(module) if module else None
    for part in (name or "").split("."):
        found = getattr(found, part, None)
    same = found is thing or (isinstance(thing, types.MethodType) and found == thing)  # a class method is made anew
    if not name or not same:
        what = name or type(thing).__name__
        raise UserError(
            f"{what} ({place(thing)}) is not at the top level of a module, so no key contains its values and "
            "other values would give the same key: make it a function of the module, or a dataclass with "
            "__call__ whose fields are its parameters"
        )
    if module and is_ours(module):
        here = f"{module.removeprefix(f'{PACKAGE}.')}.{name}"
        return str(vars(thing).get("identity", here))  # its own: a subclass is another class
    code = outside(module) if module else ""
    return f"{module}.{name} {code}" if code else f"{module}.{name}"


def place(thing: Any) -> str:
    """``file.py, line 12`` of a class, a function, or the class of an object."""
    thing = inspect.unwrap(thing) if isinstance(thing, types.FunctionType) else thing
    candidates: tuple[Any, ...] = (thing.func if isinstance(thing, functools.partial) else thing, type(thing))
    for candidate in candidates:
        try:
            return _source(candidate)
        except (TypeError, OSError):
            continue
    return str(getattr(thing, "__module__", "no file"))


@cache
def _source(thing: Any) -> str:
    """``file.py, line 12``; cached, because it reads the whole file."""
    line = inspect.getsourcelines(thing)[1]
    return f"{Path(inspect.getsourcefile(thing) or '').name}, line {max(line, 1)}"


# --- hashes --------------------------------------------------------------------------------------------------------


@cache
def outside(module: str) -> str:
    """SHA-256 of a module from outside and of all modules from outside that it imports; "" for a library.

    For an installed package: of the files of its distribution. Raises ``UserError`` if there is no file.
    """
    path = _file(module)
    if path is None:
        if module in sys.builtin_module_names:
            return ""
        raise UserError(f"the code of module {module!r} is in no file, so no key could see an edit: put it into one")
    if _is_standard(path) or module.partition(".")[0] in LIBRARIES:
        return ""
    files = _distribution(module, path) if _is_installed(path) else _closure([module], _is_outside)
    return _sha256(f"{name} {_sha256(file.read_bytes())}\n" for name, file in sorted(files.items()))


def ours(modules: Iterable[str], leave: Callable[[str], bool]) -> dict[str, str]:
    """Our files that these modules import, directly or indirectly: path in the package -> SHA-256, 16 digits.

    Modules for which ``leave`` is true are not followed, nor are libraries. Comments and docstrings do not count.
    """
    known = _closure(modules, lambda name, path: not leave(name) and (is_ours(name) or not _is_library(path)))
    return {path.relative_to(HOME).as_posix(): essence(path) for name, path in sorted(known.items()) if is_ours(name)}


@cache
def essence(path: Path) -> str:
    """SHA-256 (16 digits) of a Python file without its comments, docstrings and empty lines."""
    with tokenize.open(path) as file:
        text = file.read()
    lines = text.splitlines()
    before = tokenize.NEWLINE
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type != tokenize.NL]
    cuts = [(t.start, t.end) for t in tokens if t.type == tokenize.COMMENT]
    tokens = [t for t in tokens if t.type != tokenize.COMMENT]
    for token, after in itertools.pairwise(tokens):
        alone = before in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT) and after.type == tokenize.NEWLINE
        if token.type == tokenize.STRING and alone:
            cuts.append((token.start, token.end))
        before = token.type
    for (first, begin), (last, end) in sorted(cuts, reverse=True):
        lines[first - 1 : last] = [lines[first - 1][:begin] + lines[last - 1][end:]]
    return _sha256(f"{line.rstrip()}\n" for line in lines if line.strip())[:16]


def _sha256(content: bytes | Iterable[str]) -> str:
    return hashlib.sha256(content if isinstance(content, bytes) else "".join(content).encode()).hexdigest()


# --- what a module imports -----------------------------------------------------------------------------------------


def _closure(modules: Iterable[str], follow: Callable[[str, Path], bool]) -> dict[str, Path]:
    """Name -> file of these modules, their packages and all that they import, where ``follow(name, file)`` is true."""
    found: dict[str, Path] = {}
    seen: set[str] = set()
    waiting = [*modules]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        path = _file(name)
        if path is not None and follow(name, path):
            found[name] = path
            waiting += [*_imports(name, path), *_parents(name)]
    return found


@cache
def _imports(name: str, path: Path) -> frozenset[str]:
    """Names that may be modules: from import statements, and from the variables of a module from outside."""
    found = {*_written(name, path)}
    module = sys.modules.get(name)
    if module is not None and not is_ours(name):  # a plugin may import by other means than the statement
        for value in [*vars(module).values()]:
            other = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
            found |= {other} if isinstance(other, str) else set()
    return frozenset(found)


def _written(name: str, path: Path) -> Iterator[str]:
    if path.suffix != ".py":
        return
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from (alias.name, *_parents(alias.name))
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (base, *_parents(base), *(f"{base}.{alias.name}" for alias in node.names))


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _file(name: str) -> Path | None:
    """The file of a module, loaded or not; ``None`` if there is none."""
    if is_ours(name):
        path = HOME.joinpath(*name.split(".")[1:])
        return next((p for p in (path.with_name(f"{path.name}.py"), path / "__init__.py") if p.is_file()), None)
    module = sys.modules.get(name)
    origin = getattr(module, "__file__", None) if module is not None else _origin(name)
    return Path(origin).resolve() if origin and Path(origin).is_file() else None


@cache
def _origin(name: str) -> str | None:
    """The file of a module that is not loaded; nothing is imported to find it."""
    first, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(first)
        for n in range(len(rest)):
            if spec is None or spec.submodule_search_locations is None:
                return None
            spec = PathFinder.find_spec(".".join([first, *rest[: n + 1]]), [*spec.submodule_search_locations])
    except (ImportError, ValueError, AttributeError):
        return None
    return spec.origin if spec is not None and spec.has_location else None


def _is_outside(name: str, path: Path) -> bool:
    return not is_ours(name) and not _is_library(path)


def _is_library(path: Path) -> bool:
    return _is_installed(path) or _is_standard(path)


def _is_installed(path: Path) -> bool:
    return not {"site-packages", "dist-packages"}.isdisjoint(path.parts)


def _is_standard(path: Path) -> bool:
    return path.is_relative_to(STDLIB) and not _is_installed(path)


def _distribution(module: str, path: Path) -> dict[str, Path]:
    """The files of the distribution of an installed module; of its package if it is in no distribution."""
    root = module.partition(".")[0]
    files: dict[str, Path] = {}
    for name in importlib.metadata.packages_distributions().get(root, ()):
        for file in importlib.metadata.distribution(name).files or ():
            if ".dist-info" not in file.parts[0] and file.suffix != ".pyc":
                files[file.as_posix()] = Path(str(file.locate()))
    files = {name: file for name, file in files.items() if file.is_file()}
    if path in {file.resolve() for file in files.values()}:
        return files
    first = _file(root) or path
    top = first.parent if first.name == "__init__.py" else first
    inside = [top] if top.is_file() else [f for f in top.rglob("*") if f.is_file() and f.suffix != ".pyc"]
    return {f.relative_to(top.parent).as_posix(): f for f in inside}


def top(module: str) -> str:
    """The folder of the package that a module is part of, or the file of a module in none; "" without a file."""
    file = _file(module.partition(".")[0]) or _file(module)
    return "" if file is None else f"{file.parent}{os.sep}" if file.name == "__init__.py" else str(file)


def came_from(module: str) -> str:
    """The installed package that a plugin's module is part of, with its version; or its file."""
    packages = importlib.metadata.packages_distributions().get(module.partition(".")[0], [])
    named = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in dict.fromkeys(packages))
    return named or str(_file(module) or module)


def forget() -> None:
    """Clear all caches of file contents: plugins were loaded."""
    for kept in (outside, essence, _imports, _origin):
        kept.cache_clear()
