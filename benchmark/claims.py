"""Who trains which step, where several processes or machines walk one grid over a shared folder.

A claim is a file made in one atomic act; its holder touches it every few seconds. A claim that was not touched for a
minute, or whose holder is a dead process of this machine, is taken over.

The first claim on a step is ``claim.json``; what takes over the claim with some ``id`` is ``claim-<id>.json``. So only
one of those who see a claim abandoned can take it over, and none can mistake the taker's claim for the abandoned one.
The end of this chain is the claim that counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark.store import writing

HEARTBEAT = 5.0  # seconds
STALE = 60.0


@dataclass
class Claim:
    """A claim on the step whose folder is ``folder``."""

    folder: Path
    _held: list[Path] = field(default_factory=list)  # the chain that ends in this claim
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def path(self) -> Path:
        """The first claim's file: it is there as long as anybody holds the step."""
        return self.folder / "claim.json"

    def acquire(self) -> bool:
        """Whether the step is now ours."""
        with writing(self.path):
            mine = self._make()
        if mine:
            threading.Thread(target=self._beat, daemon=True).start()
        return mine

    def _make(self) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        chain = self._chain()
        mine = self._next(chain)
        if chain and not self._abandoned(chain[-1]):
            return False
        content = {"id": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        try:
            with open(mine, "x") as file:
                file.write(json.dumps(content))
        except FileExistsError:
            return False
        self._held = [*chain, mine]
        if self._chain() != self._held:  # what was abandoned has been given back meanwhile
            mine.unlink()
            return False
        return True

    def release(self) -> None:
        """Give the step back, unless another has taken it over (from a holder that slept, for example)."""
        self._stop.set()
        if self._chain() == self._held:
            for path in self._held:  # the first one first: what it led to counts no more
                path.unlink(missing_ok=True)

    def holder(self) -> str:
        """``host:pid`` of the present holder, for a message."""
        holder = _read((self._chain() or [self.path])[-1])
        return f"{holder.get('host', '?')}:{holder.get('pid', '?')}"

    def _chain(self) -> list[Path]:
        """The first claim, the one that took it over, and so on."""
        chain: list[Path] = []
        while (path := self._next(chain)).exists() and path not in chain:
            chain.append(path)
        return chain

    def _next(self, chain: list[Path]) -> Path:
        """The file of a claim that takes over the last one of a chain."""
        return self.folder / f"claim-{_read(chain[-1]).get('id', '')}.json" if chain else self.path

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                os.utime(self._held[-1])

    def _abandoned(self, path: Path) -> bool:
        holder = _read(path)
        if holder.get("host") == socket.gethostname() and not _alive(holder.get("pid")):
            return True
        try:
            return _now(self.folder) - path.stat().st_mtime > STALE
        except FileNotFoundError:
            return False


def _read(path: Path) -> dict[str, Any]:
    try:
        holder: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return holder


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
