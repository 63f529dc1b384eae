"""Who trains which step, where several processes or machines walk one grid over a shared folder.

A claim is a file made in one atomic act; its holder touches it every few seconds. A claim that was not touched for a
minute, or whose holder is a dead process of this machine, is taken over.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HEARTBEAT = 5.0  # seconds
STALE = 60.0


@dataclass
class Claim:
    """A claim on the step whose folder is ``folder``. Use ``claimed(folder)``."""

    folder: Path
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def path(self) -> Path:
        return self.folder / "claim.json"

    def acquire(self) -> bool:
        """Whether the step is now ours."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and self._abandoned():
            # one of those who see this wins the rename; the others find nothing to rename
            with contextlib.suppress(FileNotFoundError):
                aside = self.path.with_name(f".claim.{uuid.uuid4().hex}")
                os.rename(self.path, aside)
                aside.unlink()
        try:
            with open(self.path, "x") as file:
                json.dump({"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}, file)
        except FileExistsError:
            return False
        threading.Thread(target=self._beat, daemon=True).start()
        return True

    def release(self) -> None:
        """Give the step back."""
        self._stop.set()
        self.path.unlink(missing_ok=True)

    def holder(self) -> str:
        """``host:pid`` of the present holder, for a message."""
        holder = self._read()
        return f"{holder.get('host', '?')}:{holder.get('pid', '?')}"

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def _abandoned(self) -> bool:
        holder = self._read()
        if holder.get("host") == socket.gethostname() and not _alive(holder.get("pid")):
            return True
        try:
            return _now(self.folder) - self.path.stat().st_mtime > STALE
        except FileNotFoundError:
            return False

    def _read(self) -> dict[str, Any]:
        try:
            holder: dict[str, Any] = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        return holder


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Hold a claim for the length of a block; gives whether it could be had."""
    claim = Claim(folder)
    mine = claim.acquire()
    try:
        yield mine
    finally:
        if mine:
            claim.release()


def _alive(pid: Any) -> bool:
    """Whether a process of this machine lives. Unknown content counts as alive: the heartbeat decides then."""
    if not isinstance(pid, int):
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _zombie(pid)


def _zombie(pid: int) -> bool:
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False


def _now(folder: Path) -> float:
    """The clock of the folder's file system, which may be another machine's."""
    probe = folder / f".now.{uuid.uuid4().hex}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
