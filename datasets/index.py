"""Which labels occur in which image, and a fingerprint of every image: read once, in parallel, and cached.

``N`` images. A cached row is valid while paths, sizes and modification times of its two files stay the same; only the
other rows are read again. Nothing is written into the data folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zipfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from contseg.datasets.atomic import replacing
from contseg.datasets.errors import UserError
from contseg.datasets.images import inspect, read_bytes
from contseg.datasets.progress import progress

REVISION = 2  # of the stored table, and of what is refused while it is read

Row = tuple[np.ndarray, tuple[int, int], bytes]
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Index:
    """``present`` (N, 256) bool, column = raw label; ``sizes`` (N, 2) int32, (H, W); ``prints`` (N, 16) uint8."""

    present: np.ndarray
    sizes: np.ndarray
    prints: np.ndarray


def gather(rows: Iterable[Row]) -> Index:
    """One table from rows (present (256,), (H, W), 16 bytes)."""
    present, sizes, prints = zip(*rows, strict=True)
    return Index(
        np.array(present, bool), np.array(sizes, np.int32), np.frombuffer(b"".join(prints), np.uint8).reshape(-1, 16)
    )


def read_index(
    files: Sequence[tuple[Path, Path]], stored: Path | None, title: str, table: np.ndarray | None = None
) -> Index:
    """The table of these (image, label map) pairs; ``stored`` is its cache file; ``table``: pixel value -> label."""
    keys = [_key(image, label, table) for image, label in files]
    rows = _load(stored) if stored else {}
    todo = [i for i, key in enumerate(keys) if key not in rows]
    if todo:
        read = in_parallel(lambda i: _read(*files[i], table), todo, f"reading {title}")
        rows.update({keys[i]: row for i, row in zip(todo, read, strict=True)})
    index = gather(rows[key] for key in keys)
    if todo and stored:
        _store(stored, keys, index)
    return index


def in_parallel(function: Callable[[int], R], items: Sequence[int], title: str, shown: bool = True) -> list[R]:
    """``map`` over threads with a progress bar (Pillow and hashlib release the interpreter's lock)."""
    with ThreadPoolExecutor(usable_cores()) as threads:
        done = threads.map(function, items)
        return list(progress(done, title, total=len(items), unit="image", disable=not shown, delay=1))


def row(counts: np.ndarray, size: tuple[int, int], *contents: bytes) -> Row:
    """A row from the pixels of each label (256,) and the contents to hash."""
    digest = hashlib.blake2b(digest_size=16)
    for content in contents:
        digest.update(hashlib.blake2b(content).digest())
    return np.asarray(counts) > 0, size, digest.digest()


def by_label(counts: np.ndarray | list[int], table: np.ndarray | None) -> np.ndarray:
    """(256,) int64 pixels of each label, from those of each pixel value."""
    counts = np.asarray(counts, np.int64)
    return counts if table is None else np.bincount(table, counts, minlength=256).astype(np.int64)


def _read(image: Path, label: Path, table: np.ndarray | None) -> Row:
    contents = read_bytes(image), read_bytes(label)
    counts, size = inspect(image, label, *contents)
    return row(by_label(counts, table), size, *contents, *_bytes(table))


def _bytes(table: np.ndarray | None) -> tuple[bytes, ...]:
    return () if table is None else (table.tobytes(),)


def _key(image: Path, label: Path, table: np.ndarray | None) -> bytes:
    try:
        stamps = [(str(p), (s := p.stat()).st_size, s.st_mtime_ns) for p in (image, label)]
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
    return hashlib.blake2b(repr((REVISION, stamps, *_bytes(table))).encode(), digest_size=16).digest()


def _load(path: Path) -> dict[bytes, Row]:
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as data:
            present = np.unpackbits(data["present"], axis=1).astype(bool)
            columns = data["keys"], present, data["sizes"], data["prints"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}  # not a valid cache: read the files again
    return {k.tobytes(): (p, (int(s[0]), int(s[1])), f.tobytes()) for k, p, s, f in zip(*columns, strict=True)}


def _store(path: Path, keys: list[bytes], index: Index) -> None:
    """Cache the table; if it cannot be written, the files are read again next time."""
    with contextlib.suppress(UserError), replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            keys=np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16),
            present=np.packbits(index.present, axis=1),
            sizes=index.sizes,
            prints=index.prints,
        )


def usable_cores() -> int:
    """Cores that this process may run on; all of the machine where the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
