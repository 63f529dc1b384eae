"""What goes wrong because of the user's input, said in one line."""

import difflib
import importlib.util
import inspect
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

EXTRAS = {  # package -> extra of contseg
    "pycocotools": "coco",
    "scikit_posthocs": "diagram",
    "submitit": "slurm",
    "tensorboard": "tensorboard",
}


class UserError(Exception):
    """A mistake in the user's input: one line that says what is wrong, where, and what to do.

    ``contseg`` prints the line and leaves with exit code 2; no traceback is shown.
    """


def unknown(kind: str, name: str, known: Iterable[str], otherwise: str = "") -> UserError:
    """The error for an unknown name, with the nearest valid one; ``otherwise``: what else could be given.

    >>> str(unknown("method", "Mib", ["MiB", "FT"]))
    "unknown method 'Mib': did you mean 'MiB'? Known: FT, MiB"
    """
    names = sorted(known)
    lower = {n.lower(): n for n in names}
    close = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    hint = f"did you mean {lower[close[0]]!r}? " if close else ""
    known_names = "; ".join(filter(None, [", ".join(names) or "none", otherwise]))
    return UserError(f"unknown {kind} {name!r}: {hint}Known: {known_names}")


def need(package: str, purpose: str) -> None:
    """Raise ``UserError`` if a package that only ``purpose`` needs is not installed; nothing is imported."""
    if importlib.util.find_spec(package) is None:
        install = f"'contseg[{EXTRAS[package]}]'" if package in EXTRAS else package
        raise UserError(f"{purpose} needs {package}, which is not installed: pip install {install}")


def in_one_line(failure: str, root: Path | None, code: Callable[[], T]) -> T:
    """The result of a plugin's code; any error of it becomes one line. ``root``: the folder that it was given."""
    try:
        return code()
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}{_line(error)}"
        hint = "" if root else "; no folder was given: use --data NAME=DIR (or --root DIR)"
        raise UserError(f"{failure} ({reason}){hint}") from error


def _line(error: Exception) -> str:
    """The line of the author's file, where the error is in its code and not in the call of it."""
    behind = traceback.extract_tb(error.__traceback__)[2:]  # of ``in_one_line`` and of what it calls
    own = [f for f in behind if f.filename == behind[0].filename and Path(f.filename).parent != Path(__file__).parent]
    return f"; {Path(own[-1].filename).name}, line {own[-1].lineno}" if own else ""


def file_of(kind: type) -> str:
    """The name of the file that defines a class."""
    try:
        return Path(inspect.getfile(kind)).name
    except (TypeError, OSError):
        return kind.__module__
