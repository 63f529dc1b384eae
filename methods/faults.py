"""Where an error comes from: the author of a method is shown a line of their own file, not of torch or the suite."""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import re
import sysconfig
import traceback
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

HOME = Path(__file__).parents[1]
# the files of methods/ that every method calls
CONTRACT = (
    "base",
    "batch",
    "faults",
    "fit",
    "grammar",
    "identity",
    "losses",
    "memory",
    "modules",
    "network",
    "registry",
    "wording",
)
SUITE = (
    *(str(HOME / "methods" / f"{name}.py") for name in CONTRACT),
    *(str(HOME / name) for name in (f"benchmark{os.sep}", f"datasets{os.sep}", "run_benchmark.py")),
)
# what each hook of a method, and each function of a term, is called with
ARGUMENTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("build", "init", "trainable"), ("model", "step")),
    "scenario": ("scenario",),
    "predict": ("out", "size"),
    **dict.fromkeys(("warm_up", "begin_step", "end_step"), ("ctx",)),
    "__call__": ("batch",),
    "after_backward": ("model",),
}
AUTHORS: set[str] = set()  # files and folders of plugins, also of those that are installed among the libraries
LIBRARIES = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "purelib", "platlib"))


class MethodError(Exception):
    """A term or a hook breaks the contract. The message is one line, with file and line."""


def reason(error: BaseException, own: Collection[str] = ()) -> str:
    """The error in one line, with the line of the author's file. ``own``: files of the author, in any folder."""
    text = " ".join(str(error).split())
    if isinstance(error, MethodError):
        return text
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg}{_place(error.filename, error.lineno)}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    frame = blamed(error, own) or (frames[-1] if frames else None)
    return f"{type(error).__name__}: {text}" + (_place(frame.filename, frame.lineno) if frame else "")


def blamed(error: BaseException, own: Collection[str] = ()) -> traceback.FrameSummary | None:
    """The innermost frame outside the suite and the libraries; ``None`` if there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    return next((f for f in reversed(frames) if f.filename in own or not foreign(f.filename)), None)


def blamed_line(error: BaseException) -> str:
    """`` (mine.py, line 12)``: the author's line that caused an error; "" if there is none."""
    frame = blamed(error)
    return _place(frame.filename, frame.lineno) if frame else ""


def is_a_plugins(error: BaseException) -> bool:
    """Whether code outside the suite caused an error: its line is enough, no traceback is needed."""
    frame = blamed(error)
    built_in = frame is not None and frame.filename.startswith(str(HOME / "methods"))
    return isinstance(error, MethodError) or (frame is not None and not built_in)


def old_import(error: BaseException) -> str:
    """What to write instead of an import from before the package, such as ``from methods.base import ...``; else ""."""
    frame = blamed(error)
    line = ((frame.line if frame else "") or "").partition("#")[0].rstrip(" (\\")
    written = re.match(r"(?:from|import) ((benchmark|datasets|methods)(?:\.(\w+))*)", line)
    if frame is None or written is None or not isinstance(error, ModuleNotFoundError):
        return ""
    name, root, leaf = written.groups()
    file = next((HOME / root).rglob(f"{leaf}.py"), None)  # it may lie in another folder now
    if file is None:  # ``from datasets import`` may mean Hugging Face's
        return "" if root == "datasets" else f"{name} is now in contseg.{root}{_place(frame.filename, frame.lineno)}"
    new = ".".join(("contseg", *file.relative_to(HOME).with_suffix("").parts))
    return f"write {line.replace(name, new, 1)!r}{_place(frame.filename, frame.lineno)}: the package is contseg now"


def beside(error: BaseException) -> str:
    """What to do where a plugin imports a file that lies beside it, whose folder Python does not search; else ""."""
    frame = blamed(error)
    if frame is None or not isinstance(error, ImportError):
        return ""
    folder, where = Path(frame.filename).parent, _place(frame.filename, frame.lineno)
    name = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
    relative = re.match(r"from \.+(\w*) import (\w+)", frame.line or "")
    if relative and "no known parent package" in str(error):
        name = relative[1] or relative[2]
    if not name or not ((folder / f"{name}.py").is_file() or (folder / name).is_dir()):
        return ""
    told = "import it without the dot, and set" if relative else "set"
    return f"{name} lies beside it, where Python does not look: {told} PYTHONPATH={folder}{where}"


def foreign(file: str) -> bool:
    """Whether a file is the suite's own or a library's. The file of a method, built in or a plugin's, is neither."""
    if file.startswith((f"{HOME / 'methods'}{os.sep}", *AUTHORS)):
        return file.startswith(SUITE)
    return file.startswith(("<", *SUITE, *LIBRARIES)) or not {"site-packages", "dist-packages"}.isdisjoint(
        Path(file).parts
    )


def not_a_loss(observes: bool, value: Any, device: Any) -> str:
    """What is wrong with the value of a term on this device; "" if nothing is."""
    if observes:
        return "only observes (observes = True): it must give None"
    if value is None:
        return "gives None: return its value; a term that only watches sets observes = True"
    if not hasattr(value, "shape"):
        return f"gives a {type(value).__name__}: give the scalar tensor itself, without .item()"
    if value.shape:
        return f"gives a tensor of shape {tuple(value.shape)}: a loss is a scalar"
    if value.device != device:
        return f"gives a tensor on {value.device}, and the batch is on {device}: make it of one that it is given"
    return ""


def no_loss(terms: Mapping[str, Any], losses: Mapping[str, Any]) -> str:
    """What is wrong if the losses of a batch, together, have no gradient; "" if nothing is."""
    if not losses:
        given = f"none of the terms {', '.join(map(repr, terms))} gives one" if terms else "it has no terms"
        return f"no loss at a step that trains: {given}; give one, or a `trainable` without groups"
    if any(value.requires_grad for value in losses.values()):
        return ""
    return f"no loss has a gradient ({', '.join(map(repr, losses))}): do not detach what it is made of"


def called_by_nobody(kind: type) -> str:
    """What is wrong with the names of a term's functions: one that is nearly a name of the contract; else ""."""
    known = ("begin_step", "after_backward", "end_step")
    for name, value in vars(kind).items():
        if not inspect.isfunction(value) or name.startswith("_") or name in known:
            continue
        if near := difflib.get_close_matches(name, known, 1, 0.85):
            return f"{kind.__name__}.{name} is called by nobody: write {near[0]}, or give it another name"
    return ""


def not_called_so(name: str, called: str, thing: Any) -> str:
    """What is wrong with the parameters of a hook, or of a term's function; "" if nothing is. ``called``: shown."""
    if isinstance(thing, functools.partial):
        return ""  # refused by the plan, with what to write: no key would see its values
    names = ARGUMENTS[name]
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):  # it is none of Python's
        return ""
    try:
        signature.bind(*names)
    except TypeError:
        bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        return f"{called}{inspect.Signature(bare)} is called with ({', '.join(names)})"
    return ""


def _place(file: str, line: int | None) -> str:
    return f" ({Path(file).name}, line {line})"
