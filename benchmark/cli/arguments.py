"""Types of command-line options, checked while they are parsed. Nothing heavy is imported here."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from contseg.datasets.errors import UserError, unknown

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def packaged() -> dict[str, Path]:
    """Name -> file of every grid that contseg brings."""
    return {path.stem: path for path in sorted(CONFIGS.glob("*.toml"))}


def grid_file(text: str) -> Path:
    """The type of ``--config``: a file's path, or the name of a packaged grid, with or without ``.toml``.

    A file of this name in the current folder comes first.
    """
    path = Path(text)
    if path.exists() or path.name != text:
        return path
    name = text.removesuffix(".toml")
    if name not in packaged():
        raise unknown("configuration", name, packaged(), "or the path of your own file")
    return packaged()[name]


def folder(option: str) -> Callable[[str], Path]:
    """The type of an option that names a folder, which may not exist yet."""

    def read(text: str) -> Path:
        path = Path(text)
        if not text.strip():
            raise UserError(f"{option}: the name of the folder is empty")
        if path.exists() and not path.is_dir():
            raise UserError(f"{option}: cannot write into {path}, a file: name a folder")
        return path

    return read


def number(option: str, least: int = 0, most: int | None = None) -> Callable[[str], int]:
    """The type of an option that is a whole number from ``least`` to ``most``."""

    def read(text: str) -> int:
        n = int(text) if text.isdecimal() and len(text) < 20 else -1
        if n < least or (most is not None and n > most):
            bound = "" if most is None else f" and <= {most}"
            raise UserError(f"{option} must be a whole number >= {least}{bound}, not {text}")
        return n

    return read


def places(items: Iterable[str]) -> dict[str, str]:
    """Name -> folder of data sets, from the words ``NAME=PATH`` of ``--data``.

    Every folder must be there: one of a mistyped name is opened by no scenario, which would not be noticed.
    """
    found: dict[str, str] = {}
    for item in items:
        name, _, path = item.partition("=")
        if not name or not path:
            raise UserError(f"--data {item}: write NAME=PATH, for example voc=/data/VOCdevkit")
        if name in found:
            raise UserError(f"--data: {name} is given twice, as {found[name]} and as {path}")
        found[name] = path
    for name, path in found.items():
        if not os.path.isdir(os.path.expanduser(path)):
            raise UserError(f"data set {name!r}: there is no folder {path}")
    return found


def user_cache() -> Path:
    """Where the user's own cache lies, outside of all results folders."""
    return Path(os.environ.get("CONTSEG_CACHE") or "~/.cache/contseg").expanduser()


def say(line: str) -> None:
    """Print a line at once, above a progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()
