"""The results folder: cached states by key (disposable) and records by cell (kept). Every write is atomic.

``DIR/cache/<2 digits>/<step key>/`` holds the results of a step's training: ``model.safetensors``,
``terms.safetensors``, ``observer-<key>.safetensors`` for each observer of the training, ``score-<key>.json`` for each
evaluation, and ``checkpoint.safetensors`` while it trains. Every file carries a SHA-256 of its content. A truncated or
altered file is detected and set aside with a warning, and its work is repeated.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from contseg.datasets.atomic import replacing
from contseg.datasets.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1  # of the cache
RECORD_FORMAT = 2  # of records: sealed, and naming the version of contseg


class LostStateError(Exception):
    """A cached file is missing or corrupt; its step will be retrained."""


def digest(value: Any) -> str:
    """SHA-256 of a value in canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, a value a line."""
    with replacing(path) as temporary:
        temporary.write_text(indented(value) + "\n")


def indented(value: Any) -> str:
    """``json.dumps(value, indent=1)``, whose encoder is in Python, by msgspec, which is much faster."""
    text = json.dumps(value, allow_nan=False)
    try:
        return msgspec.json.format(text, indent=1)
    except msgspec.DecodeError:  # half of a surrogate pair, as in the name of a file that is not UTF-8
        return json.dumps(value, indent=1, allow_nan=False)


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object atomically, with the checksum of its content."""
    write_json(path, {**value, "sha256": digest(value)})


def read_sealed(path: Path) -> dict[str, Any] | None:
    """A JSON object; ``None`` if the file is missing or damaged. A damaged file is set aside with a warning.

    ``UserError`` for a file that is there and may not be read. A file without a checksum counts as damaged.
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait forever
            raise ValueError
        value: dict[str, Any] = json.loads(path.read_text())
        intact = value.pop("sha256", None) == digest(value)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, AttributeError, TypeError):  # no JSON, or no object
        intact = False
    if not intact:
        _set_aside(path)
        return None
    return value


def _check_missing(path: Path) -> None:
    """``UserError`` if a file is there and cannot be opened: it would be missed forever, and never made again."""
    try:
        path.open("rb").close()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot read {path}: {error.strerror}; make it readable, or choose another folder with --out")


def _set_aside(path: Path) -> None:
    aside = path.with_name(f"{path.name}.damaged")
    with contextlib.suppress(FileNotFoundError):  # another process was first
        os.replace(path, aside)
    warnings.warn(f"{path} is damaged: set aside as {aside.name}, its work will be repeated", stacklevel=3)


def write_tensors(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write tensors and metadata atomically as safetensors, with a checksum of both."""
    from safetensors.torch import save

    kept = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    header = {"format": str(FORMAT), "sha256": tensors_digest(kept), "meta": json.dumps(meta)}
    header["seal"] = digest(header)
    with replacing(path) as temporary:
        temporary.write_bytes(save(kept, header))


def read_meta(path: Path) -> dict[str, Any]:
    """The metadata of a tensor file, from its header alone. Raises ``ValueError`` if it was altered.

    A header without a seal is accepted.
    """
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        header = file.metadata() or {}
    if header.pop("seal", None) not in (None, digest(header)):
        raise ValueError(f"{path} is damaged")
    _check_format(path, header.get("format"))
    meta: dict[str, Any] = json.loads(header["meta"])
    return {**meta, "sha256": header["sha256"]}


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and metadata; ``None`` if the file is missing or damaged. A damaged file is set aside with a warning.

    ``UserError`` for a file that is there and may not be read.
    """
    from safetensors.torch import load_file

    try:
        meta = read_meta(path)
        tensors = load_file(path)
        intact = tensors_digest(tensors) == meta["sha256"]
    except UserError:
        raise
    except FileNotFoundError:  # safetensors says so of every file that it cannot open
        _check_missing(path)
        return None
    except Exception:  # safetensors raises a class of its own, JSON another: damaged either way
        intact = False
    if not intact:
        _set_aside(path)
        return None
    return tensors, meta


def tensors_digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes."""
    import torch

    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


@dataclass(frozen=True)
class Store:
    """The results folder ``DIR`` of ``--out``."""

    out: Path
    trust: bool = False  # reuse what other code made (``benchmark/store/origin.py``)
    _read: dict[Path, tuple[Any, ...]] = field(default_factory=dict, repr=False, compare=False)
    _paths: dict[tuple[str, ...], Path] = field(default_factory=dict, repr=False, compare=False)

    @property
    def records(self) -> Path:
        return self.out / "records"

    @property
    def cache(self) -> Path:
        return self.out / "cache"

    @property
    def stamp(self) -> Path:
        """The file that says which format the folder has."""
        return self.out / "contseg.json"

    def check(self) -> Store:
        """``UserError`` if an incompatible version wrote the folder, or a path in it cannot be used. Writes nothing."""
        for path in (self.stamp, self.out / "leaderboard.md", self.out / "leaderboard.csv"):
            if path.exists() and not path.is_file():
                raise UserError(f"{path} must be a file: remove it, or choose another --out")
        for path in (self.records, self.cache):
            if path.exists() and not path.is_dir():
                raise UserError(f"{path} must be a folder: remove it, or choose another --out")
        if self.stamp.exists():
            try:
                version = json.loads(self.stamp.read_text()).get("format")
            except (ValueError, AttributeError):
                version = "unreadable"
            _check_format(self.out, version)
        return self

    def open(self) -> Store:
        """``check``, and make the folder; ``UserError`` if it cannot be written."""
        self.check()
        if not self.stamp.exists():
            write_json(self.stamp, {"format": FORMAT})
        if not os.access(self.out, os.W_OK):
            raise UserError(f"cannot write {self.out}: choose another folder with --out")
        return self

    def step(self, key: str, *file: str) -> Path:
        """The folder of a trained step, or a file in it; made once, as a plan asks for each of them many times."""
        path = self._paths.get((key, *file))
        return path or self._paths.setdefault((key, *file), self.out.joinpath("cache", key[:2], key, *file))

    def steps(self) -> list[str]:
        """The keys of all steps that have a folder, finished or not."""
        folders = (e for two in self.cache.glob("??") for e in os.scandir(two) if e.is_dir())
        return sorted(e.name for e in folders if len(e.name) == 64)

    def model(self, key: str) -> Path:
        return self.step(key, "model.safetensors")

    def terms(self, key: str) -> Path:
        return self.step(key, "terms.safetensors")

    def observer(self, key: str, observer: str) -> Path:
        return self.step(key, f"observer-{observer}.safetensors")

    def score(self, key: str, score: str) -> Path:
        return self.step(key, f"score-{score}.json")

    def branch(self, observer: str) -> Path:
        """Marks an observer whose retraining gave other weights: it gets a training of its own."""
        return self.out / "branches" / f"{observer}.json"

    def branches(self) -> set[str]:
        """The observers whose retraining gave other weights."""
        return {p.stem for p in (self.out / "branches").glob("*.json")}

    def checkpoint(self, key: str) -> Path:
        return self.step(key, "checkpoint.safetensors")

    def begun(self, key: str) -> Path:
        """The file that says which code began the training of the checkpoint."""
        return self.step(key, "begun.json")

    def say_updates(self, key: str, n: int) -> None:
        """Tell other processes, for their bars, how many updates of a step are done."""
        with contextlib.suppress(OSError):
            self.step(key, "updates.txt").write_text(str(n))

    def updates_said(self, key: str) -> int:
        """How many updates of a step are done, as far as anybody said."""
        with contextlib.suppress(OSError, ValueError):
            return int(self.step(key, "updates.txt").read_text())
        return 0

    def read_model(self, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights and metadata of a trained step. Raises ``LostStateError``."""
        return self._tensors(self.model(key))

    def read_terms(self, key: str) -> dict[str, Tensor]:
        """States of the terms of a step; empty if they have none. Raises ``LostStateError``."""
        path = self.terms(key)
        if not path.exists() and not self.meta(key).get("terms"):
            return {}
        try:
            return self._tensors(path)[0]
        except LostStateError:
            self.model(key).unlink(missing_ok=True)  # useless without them: the step must be retrained
            raise

    def read_observer(self, key: str, observer: str) -> dict[str, Tensor]:
        """State of an observer after a step. Raises ``LostStateError``."""
        return self._tensors(self.observer(key, observer))[0]

    def meta(self, key: str) -> dict[str, Any]:
        """Metadata of a trained step. Raises ``LostStateError``."""
        try:
            return read_meta(self.model(key))
        except UserError:
            raise
        except Exception:
            return self._tensors(self.model(key))[1]  # sets it aside

    def _tensors(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        loaded = read_tensors(path)
        if loaded is None:
            raise LostStateError(f"{path.relative_to(self.cache)} is missing or corrupt")
        return loaded

    def record(self, cell: Path) -> dict[str, Any] | None:
        """A record by its path below ``records``; ``None`` if it is missing, damaged, or of format 1."""
        path = self.records / cell
        record = read_sealed(path)
        if record is None or record.get("format") == 1:
            return None
        _check_format(path, record.get("format"), RECORD_FORMAT)
        return record

    def record_of(self, cell: Path) -> tuple[str | None, Any]:
        """The key of a record and the code that made it; read again only if the file changes."""

        def read() -> tuple[str | None, Any]:
            record = self.record(cell) or {}
            return record.get("key"), record.get("provenance", {}).get("code")

        found: tuple[str | None, Any] = self._once(self.records / cell, read) or (None, None)
        return found

    def code(self, path: Path) -> Any:
        """The code that made a file of the cache, ``None`` if unknown; read again only if the file changes."""

        def read() -> Any:
            try:
                said = read_meta(path) if path.suffix == ".safetensors" else read_sealed(path)
                return said.get("code") if said else None
            except UserError:
                raise
            except Exception:
                read_tensors(path)  # sets a damaged file aside
                return None

        return self._once(path, read)

    def _once(self, path: Path, read: Callable[[], Any]) -> Any:
        """The result of ``read`` for the present state of a file; ``None`` without a file."""
        try:
            stat = path.stat()
        except OSError:
            return None
        state = stat.st_mtime_ns, stat.st_size, stat.st_ino
        if path not in self._read or self._read[path][0] != state:
            self._read[path] = state, read()
        return self._read[path][1]

    def drop_checkpoint(self, key: str) -> None:
        """Remove what a finished step no longer needs, half-written files of killed programs included.

        Only for the holder of the step's claim: nobody else writes into its folder.
        """
        for path in (
            self.checkpoint(key),
            self.begun(key),
            self.step(key, "updates.txt"),
            *self.step(key).glob(".*.tmp"),
        ):
            path.unlink(missing_ok=True)

    def remove(self, key: str) -> None:
        """Delete a trained step."""
        shutil.rmtree(self.step(key), ignore_errors=True)


def cell_path(*, dataset: str, task: str, order: str, setup: str, method: str, run: str, seed: int, step: int) -> Path:
    """``voc/15-1/overlapped/MiB[kd=100]+SDR/3f9a1c2e/seed0/step2.json``: readable; the key inside is the identity."""
    name = re.sub(r"[^\w\[\]=+.,()|@-]", "_", method)
    return Path(dataset, task + (f"@{order}" if order else ""), setup, name, run[:8], f"seed{seed}", f"step{step}.json")


def _check_format(path: Path, found: Any, wanted: int = FORMAT) -> None:
    if str(found) != str(wanted):
        raise UserError(
            f"{path} was written by an incompatible version of contseg (format {found}, this one reads {wanted}): "
            "choose another folder with --out"
        )
