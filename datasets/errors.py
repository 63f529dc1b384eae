"""What goes wrong because of the user's input, said in one line."""

import difflib
import importlib.util
from collections.abc import Iterable

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
