"""Download of a large file: resumed after an interruption, checked, and complete or absent.

Every failure is one line that says what to download by hand, from which page, and where to put it.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO

from contseg.datasets.errors import UserError

CHUNK = 1 << 20
LARGEST = 8 << 30
"""Bytes after which a download is stopped: four times the largest file used here."""


@dataclass(frozen=True)
class Source:
    """A file to download: its address, name, checksum, and the web page for people.

    ``checksum`` is ``"md5:<hex>"`` or any other name that ``hashlib`` knows.
    """

    url: str
    filename: str
    checksum: str
    page: str

    def by_hand(self, folder: Path) -> str:
        """What to do without a network."""
        return f"download {self.filename} by hand from {self.page}, put it into {folder}, and run this again"


class _BrokenOffError(Exception):
    """The transfer ended early; the received bytes are kept and not requested again."""


@dataclass(frozen=True)
class Patience:
    """When a transfer is given up: ``timeout`` seconds without a byte end an attempt; ``retries`` attempts in a row
    without a byte end the transfer; the n-th of them is followed by ``n * pause`` seconds of waiting."""

    timeout: float = 60.0
    retries: int = 4
    pause: float = 2.0


def fetch(source: Source, folder: Path, say: Callable[[str], None] = print, patience: Patience = Patience()) -> Path:
    """The file in ``folder``: already there and right, or downloaded (``NAME.part`` until it is complete and checked).

    Raises ``UserError`` with what to do by hand.
    """
    path = folder / source.filename
    if path.exists():
        say(f"checking {path}")
        _refuse_web_page(path, source)
        if not matches(path, source.checksum):
            raise UserError(f"{path} is damaged or another file ({source.checksum} expected): delete it and run again")
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    resumed = part.exists()
    _transfer(source, part, say, patience)
    _refuse_web_page(part, source)
    if not matches(part, source.checksum):
        part.unlink()
        if not resumed:
            raise UserError(
                f"{source.url} gave a file other than the published one ({source.checksum} expected; "
                f"removed): {source.by_hand(folder)}"
            )
        say(f"{source.filename}: the resumed parts do not fit together, starting again")
        return fetch(source, folder, say, patience)
    part.replace(path)
    return path


def matches(path: Path, checksum: str) -> bool:
    """Whether a file has the checksum ``"md5:<hex>"``."""
    algorithm, _, digest = checksum.partition(":")
    with path.open("rb") as f:
        return hashlib.file_digest(f, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest() == digest


def is_web_page(path: Path) -> bool:
    """Whether a file begins like HTML: some servers send a login or confirmation page instead of an archive."""
    with path.open("rb") as f:
        head = f.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return head.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml"))


def _refuse_web_page(path: Path, source: Source) -> None:
    if is_web_page(path):
        path.unlink()
        raise UserError(f"{source.filename} is a web page, not an archive (removed): {source.by_hand(path.parent)}")


def _transfer(source: Source, part: Path, say: Callable[[str], None], patience: Patience) -> None:
    """Download into ``part`` until it is complete, each attempt continuing the last one."""
    say(f"downloading {source.url}")
    failures = 0
    while True:
        before = _size(part)
        try:
            _attempt(source, part, patience.timeout)
            return
        except urllib.error.HTTPError as e:
            if e.code < 500 and e.code not in (408, 429):
                raise UserError(f"{source.url} answers {e.code} {e.reason}: {source.by_hand(part.parent)}") from e
            reason = f"{e.code} {e.reason}"
        except (
            urllib.error.URLError,
            TimeoutError,
            ConnectionError,
            HTTPException,
            ssl.SSLError,
            _BrokenOffError,
        ) as e:
            reason = str(getattr(e, "reason", e)) or type(e).__name__
        except OSError as e:
            raise no_space(e, part.parent) from e
        failures = 0 if _size(part) > before else failures + 1
        if failures >= patience.retries:
            raise UserError(
                f"cannot get {source.url} ({reason}; {_size(part):,} bytes are kept): {source.by_hand(part.parent)}"
            )
        say(f"{source.filename}: {reason}; going on from byte {_size(part):,}")
        time.sleep(patience.pause * failures)


def _attempt(source: Source, part: Path, timeout: float) -> None:
    have = _size(part)
    request = urllib.request.Request(source.url, headers={"User-Agent": "contseg", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as e:
        if e.code == 416 and have:  # nothing beyond what is here: the checksum tells whether it is the file
            return
        raise
    with response:
        if response.status != 206 or not _continues(response.headers, have):
            have = 0
        left = response.headers.get("Content-Length")
        total = have + int(left) if left and left.isdigit() else None
        if total is not None:
            _refuse_size(source, part, total, have)
        with part.open("ab" if have else "wb") as out, _bar(source.filename, have, total) as bar:
            _copy(response, out, bar.update, source, part)
    if total is not None and _size(part) < total:
        raise _BrokenOffError(f"broken off at {_size(part):,} of {total:,} bytes")


def _copy(response: IO[bytes], out: IO[bytes], progress: Callable[[int], object], source: Source, part: Path) -> None:
    while chunk := response.read1(CHUNK):  # type: ignore[attr-defined]
        out.write(chunk)
        progress(len(chunk))
        if out.tell() > LARGEST:
            raise UserError(f"{source.url} does not end after {LARGEST >> 30} GiB: {source.by_hand(part.parent)}")


def _continues(headers: HTTPMessage, have: int) -> bool:
    """Whether a 206 response begins at the requested byte."""
    return bool(have) and headers.get("Content-Range", "").startswith(f"bytes {have}-")


def _refuse_size(source: Source, part: Path, total: int, have: int) -> None:
    if total > LARGEST:
        raise UserError(
            f"{source.url} offers {total >> 30} GiB, far more than the file has: {source.by_hand(part.parent)}"
        )
    free = shutil.disk_usage(part.parent).free
    if total - have > free:
        raise UserError(
            f"no space in {part.parent}: {source.filename} needs {total - have:,} more bytes, "
            f"{free:,} are free; make room or give another --root"
        )


def no_space(error: OSError, folder: Path) -> UserError:
    """The line for an error while writing into ``folder``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"no space left in {folder}: make room or give another --root, and run this again")
    return UserError(f"cannot write into {folder} ({error.strerror or error}): give another --root")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _bar(name: str, have: int, total: int | None):
    from contseg.datasets.progress import progress

    return progress(None, name, initial=have, total=total, unit="B", unit_scale=True, unit_divisor=1024)
