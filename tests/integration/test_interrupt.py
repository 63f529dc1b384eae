"""Ctrl-C at a real terminal: `--launcher local` writes a checkpoint everywhere, once; a second one ends at once."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contseg.tests.integration.grid import HOME, command, small

LONG = ("launch.workers=2", "train.updates=100000", "run.checkpoint_updates=20", "run.checkpoint_minutes=1000")


def _at_a_terminal() -> None:
    """In the child: its own terminal, and SIGHUP as a shell leaves it, also where the tests run under nohup."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Terminal:
    """A command in the foreground of a pseudo-terminal of its own, in its own session."""

    def __init__(self, folder: Path, *words: str, **environment: str) -> None:
        self.log, (self.keys, inner) = folder / "screen", pty.openpty()
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        with self.log.open("wb") as screen:
            self.process = subprocess.Popen(
                words, stdin=inner, stdout=screen, stderr=screen, env=env, cwd=HOME, start_new_session=True,
                preexec_fn=_at_a_terminal,
            )  # fmt: skip
        os.close(inner)

    def interrupt(self) -> None:
        """What the key does: the terminal's driver signals every process of the foreground group."""
        os.write(self.keys, b"\x03")

    def wait(self) -> int:
        return self.process.wait(120)

    def said(self) -> str:
        return self.log.read_text().replace("\r", "\n")


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    started: list[Terminal] = []

    def start(*words: str, **environment: str) -> Terminal:
        started.append(Terminal(tmp_path, *words, **environment))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGKILL)
            one.process.wait()
        os.close(one.keys)


def wait_for(ready: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_one_ctrl_c_checkpoints_everywhere(terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    out = tmp_path / "out"
    one = terminal(*command("run", *small(out, "FT", "Joint", sets=LONG), "--launcher", "local"))
    wait_for(lambda: len({*out.rglob("checkpoint.safetensors")}) == 2)
    one.interrupt()
    assert one.wait() == 128 + signal.SIGINT
    assert "interrupted: the checkpoints are written" in one.said()
    assert "Traceback" not in one.said() and "exit code" not in one.said()
    for log in sorted(out.glob("logs/worker*.log")):
        assert "goes on from there" in log.read_text()
    assert len({*out.rglob("checkpoint.safetensors")}) == 2
    assert not [*out.rglob("claim*")]


STUBBORN = """\
import os, pathlib, signal, sys, time
told = pathlib.Path(sys.argv[1])
(told / f"{os.getpid()}.on").touch()
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda n, frame: (told / f"{os.getpid()}.{n}.{time.monotonic_ns()}").touch())
(told / f"{os.getpid()}.ready").touch()
while not (told / "leave").exists():
    time.sleep(0.02)
sys.exit(128 + signal.SIGTERM)
"""
LAUNCHER = """\
import pathlib, sys
from types import SimpleNamespace
from contseg.benchmark.train import launch
from contseg.benchmark.plan.run_config import LaunchConfig
launch.PROGRAM = (sys.executable, sys.argv[1])
plan = SimpleNamespace(config=SimpleNamespace(launch=LaunchConfig(workers=2)), nodes={}, shared=int)
told = pathlib.Path(sys.argv[2])
code, lines = launch.local(plan, SimpleNamespace(out=told), (str(told),))
print(*lines, sep="\\n", flush=True)
sys.exit(code)
"""


@pytest.fixture
def stubborn(terminal: Callable[..., Terminal], tmp_path: Path) -> Terminal:
    """Two workers that note every signal and leave when a file says so."""
    (tmp_path / "worker.py").write_text(STUBBORN)
    words = [sys.executable, "-c", LAUNCHER, str(tmp_path / "worker.py"), str(tmp_path)]
    one = terminal(*words)
    wait_for(lambda: len([*tmp_path.glob("*.ready")]) == 2)
    return one


def signals(folder: Path) -> list[int]:
    return sorted(int(p.name.split(".")[1]) for p in folder.glob("*.*.*") if p.name[0].isdigit())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_worker_hears_of_it_once(stubborn: Terminal, tmp_path: Path, number: signal.Signals) -> None:
    if number == signal.SIGINT:
        stubborn.interrupt()
    else:
        os.killpg(stubborn.process.pid, number)  # as a closed terminal or a service manager does
    wait_for(lambda: len(signals(tmp_path)) >= 2)
    time.sleep(0.3)
    assert stubborn.process.poll() is None  # it waits for them
    (tmp_path / "leave").touch()
    assert stubborn.wait() == 128 + number
    assert signals(tmp_path) == [signal.SIGTERM] * 2
    assert "the checkpoints are written" in stubborn.said()


def test_a_second_ctrl_c_ends_at_once(stubborn: Terminal, tmp_path: Path) -> None:
    stubborn.interrupt()
    wait_for(lambda: len(signals(tmp_path)) == 2)
    stubborn.interrupt()
    assert stubborn.wait() == 128 + signal.SIGINT
    assert "ended at once" in stubborn.said()
    for worker in (int(p.stem) for p in tmp_path.glob("*.on")):
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


def test_what_was_ignored_stays_ignored(terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    """`nohup`: the closed terminal ends nothing."""
    (tmp_path / "worker.py").write_text(STUBBORN)
    words = [sys.executable, "-c", LAUNCHER, str(tmp_path / "worker.py"), str(tmp_path)]
    one = terminal("nohup", *words)
    wait_for(lambda: len([*tmp_path.glob("*.ready")]) == 2)
    os.killpg(one.process.pid, signal.SIGHUP)
    time.sleep(0.3)
    (tmp_path / "leave").touch()
    assert one.wait() == 128 + signal.SIGTERM
    assert signals(tmp_path) == []
