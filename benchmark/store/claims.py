"""Claims: which process trains which step, when several processes or machines work on one grid in a shared folder.

A claim is a file that is created atomically; its holder touches it every few seconds. A claim that was not touched for
a minute is taken over; at once, if its holder is a dead process of this machine. A process id is judged only if the
claim was made since this boot of the machine and in this namespace of process ids (not in another container).

The first claim on a step is ``claim.json``; the claim that takes over the one with some ``id`` is ``claim-<id>.json``.
So only one of the processes that see an abandoned claim can take it over, and none can confuse the new claim with the
abandoned one. The last file of this chain is the valid claim.
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

from contseg.datasets.atomic import writing

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
        """The first claim's file: it exists as long as anybody holds the step."""
        return self.folder / "claim.json"

    def acquire(self) -> bool:
        """Try to claim the step; whether it is ours now."""
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
        content = {
            "id": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "place": _place(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "since": time.time(),
        }
        try:
            file = open(mine, "x")  # noqa: SIM115
        except FileExistsError:
            return False
        try:
            with file:
                file.write(json.dumps(content))
        except OSError:  # a full disk: an empty claim would make all others wait for a minute
            mine.unlink(missing_ok=True)
            raise
        self._held = [*chain, mine]
        if self._chain() != self._held:  # the abandoned claim was released meanwhile
            mine.unlink()
            return False
        return True

    def release(self) -> None:
        """Release the step, unless another process has taken it over (while this one was suspended, for example)."""
        self._stop.set()
        if self._chain() == self._held:
            for path in self._held:  # the first one first: without it the others are void
                path.unlink(missing_ok=True)

    def held(self) -> bool:
        """Whether anybody who is alive, as far as can be known, holds the step."""
        chain = self._chain()
        try:
            return bool(chain) and not self._abandoned(chain[-1])
        except OSError:  # a folder that may only be read
            return True

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
        here = holder.get("place") == _place() != ""
        if here and not _alive(holder.get("pid"), holder.get("started")):
            return True
        try:
            return _now(self.folder) - path.stat().st_mtime > STALE
        except FileNotFoundError:
            return False


def _read(path: Path) -> dict[str, Any]:
    """The content of a claim; empty if there is no file, or not one of ours."""
    try:
        holder = json.loads(path.read_text()) if path.is_file() else {}  # opening a pipe would wait forever
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _place() -> str:
    """Where a process id is valid: this boot of this machine, this namespace of ids; "" if unknown."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):  # /proc of another namespace: its ids are not ours
            return ""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux: heartbeats decide
        return ""


def _alive(pid: Any, started: Any) -> bool:
    """Whether the process with this id and this start is alive. Unknown content counts as alive."""
    if not isinstance(pid, int):
        return True
    try:
        os.kill(pid, 0)  # on Linux only (`_place`): on Windows this would be Ctrl-C
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    state, began = _stat(pid)
    return state != "Z" and not (began and started and began != started)


def _started(pid: int) -> str:
    """Start of a process in system ticks, as an id may be reused; "" if unknown."""
    return _stat(pid)[1]


def _stat(pid: int) -> tuple[str, str]:
    """State and start of a process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return "", ""


def _now(folder: Path) -> float:
    """Time by the clock of the folder's file system, which may be another machine's."""
    probe = folder / f".now.{uuid.uuid4().hex}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
