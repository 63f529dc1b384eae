"""Safe unpacking of downloaded archives: nothing outside the folder, no links, bounded size, all or nothing."""

from __future__ import annotations

import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

from contseg.datasets.errors import UserError
from contseg.datasets.tools.download import is_web_page, no_space

CHUNK = 1 << 20
MAX_BYTES = 16 << 30
MAX_FILES = 200_000


@dataclass(frozen=True)
class Member:
    """One entry: ``size`` as the archive declares it; ``open`` gives the content of a file."""

    name: str
    kind: Literal["file", "folder", "other"]
    size: int
    open: Callable[[], IO[bytes]]


def unpack(
    archive: Path,
    into: Path,
    keep: Callable[[str], str | None] = lambda name: name,
    max_bytes: int = MAX_BYTES,
    max_files: int = MAX_FILES,
) -> int:
    """Unpack a ``.zip`` or ``.tar[.gz|.xz]`` into the folder ``into``, which must not exist; the number of files.

    ``keep`` maps an entry's path to the path it gets, or to ``None`` to leave it out. An entry that points outside,
    a link, a device, a path given twice, more than ``max_bytes`` (unpacked, skipped entries included) or ``max_files``
    refuse the whole archive: ``UserError``, and ``into`` does not exist.
    """
    if into.exists():
        raise FileExistsError(into)
    try:
        into.mkdir(parents=True)
        return _unpack(archive, into, keep, max_bytes, max_files)
    except BaseException as e:
        shutil.rmtree(into, ignore_errors=True)
        if isinstance(
            e, (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, gzip.BadGzipFile)
        ):
            raise UserError(f"{archive} is damaged ({e}): delete it and run this again") from e
        if isinstance(e, RuntimeError):  # zipfile's, for encryption and for compressions that it does not know
            raise UserError(f"{archive} cannot be unpacked here ({e}): unpack it and pack it again") from e
        if isinstance(e, FileExistsError):
            raise UserError(f"{archive} holds {Path(e.filename).relative_to(into)} twice: not unpacked") from e
        if isinstance(e, OSError):
            raise no_space(e, into.parent) from e
        raise


def _unpack(archive: Path, into: Path, keep: Callable[[str], str | None], max_bytes: int, max_files: int) -> int:
    budget, files, written = max_bytes, 0, 0
    for member in members(archive, max_bytes):
        files += 1
        budget -= member.size
        if budget < 0 or files > max_files:
            raise UserError(f"{archive} unpacks to more than {max_bytes:,} bytes or {max_files:,} files: not unpacked")
        name = safe_name(member, archive)
        wanted = keep(name) if member.kind == "file" else None
        if wanted is None:
            continue
        target = into / wanted
        target.parent.mkdir(parents=True, exist_ok=True)
        with member.open() as source, target.open("xb") as out:
            shutil.copyfileobj(source, out, CHUNK)  # never more than the size that was declared
        written += 1
    return written


def safe_name(member: Member, archive: Path) -> str:
    """The entry's path in normal form; ``UserError`` if it could leave the folder or is not a plain file or folder."""
    if member.kind == "other":
        raise UserError(f"{archive} holds a link or a device ({member.name}): not unpacked")
    path = PurePosixPath(member.name)
    drive = len(member.name) > 1 and member.name[1] == ":"
    if path.is_absolute() or ".." in path.parts or drive or "\\" in member.name or "\0" in member.name:
        raise UserError(f"{archive} holds a path that leads outside its folder ({member.name!r}): not unpacked")
    return str(path)


def members(archive: Path, max_bytes: int = MAX_BYTES) -> Iterator[Member]:
    """The entries of an archive, in its order; the format is read from the content, not from the name."""
    if not archive.is_file():
        raise UserError(f"no archive {archive}")
    if is_web_page(archive):
        raise UserError(f"{archive} is a web page, not an archive: download it again, by hand if need be")
    with archive.open("rb") as f:
        head = f.read(6)
    if head[:4] in (b"PK\3\4", b"PK\5\6"):
        yield from _zip(archive)
        return
    opener: Any = gzip.open if head[:2] == b"\x1f\x8b" else lzma.open if head == b"\xfd7zXZ\0" else open
    with opener(archive, "rb") as f:
        yield from _tar(_Bounded(f, max_bytes + (64 << 20), archive), archive)


def _zip(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as z:
        for info in z.infolist():
            mode = stat.S_IFMT(info.external_attr >> 16)
            plain = mode in (0, stat.S_IFREG, stat.S_IFDIR)
            kind: Literal["file", "folder", "other"] = "other" if not plain else "folder" if info.is_dir() else "file"
            yield Member(info.orig_filename, kind, info.file_size, lambda info=info: z.open(info))  # type: ignore[misc]


def _tar(stream: _Bounded, archive: Path) -> Iterator[Member]:
    try:
        tar = tarfile.open(fileobj=stream, mode="r:")  # type: ignore[call-overload]  # noqa: SIM115
    except tarfile.ReadError as e:
        raise UserError(f"{archive} is neither a zip nor a tar archive, or damaged ({e})") from e
    with tar:
        for info in tar:
            kind: Literal["file", "folder", "other"] = (
                "file" if info.isreg() and not info.issparse() else "folder" if info.isdir() else "other"
            )
            yield Member(info.name, kind, info.size, lambda info=info: tar.extractfile(info))  # type: ignore[misc]


class _Bounded:
    """A decompressing stream that raises an error instead of filling memory or running forever.

    A tar header may declare gigabytes that ``tarfile`` would read at once; data are read in small pieces.
    """

    def __init__(self, stream: IO[bytes], limit: int, archive: Path) -> None:
        self._stream, self._limit, self._archive = stream, limit, archive

    def read(self, n: int = -1) -> bytes:
        if not 0 <= n <= 16 * CHUNK:
            raise UserError(f"{self._archive} has a header of {n:,} bytes: not unpacked")
        self._check(self._stream.tell() + n)
        return self._stream.read(n)

    def seek(self, position: int, whence: int = 0) -> int:
        self._check(position)
        return self._stream.seek(position, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def _check(self, position: int) -> None:
        if position > self._limit:
            raise UserError(f"{self._archive} unpacks to more than {self._limit:,} bytes: not unpacked")
