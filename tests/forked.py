"""Processes that start at once: forked from one that has imported everything and done nothing.

They are processes like any other - signals, exit codes, claims and gloo are real - and save the seconds of every start.
"""

import importlib
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from contseg.tests.material import ROOT

_CONTEXT = multiprocessing.get_context("forkserver")
_IMPORTED = ("train.runner", "report.reporter", "models.encoders", "contract.toy_run")
_CONTEXT.set_forkserver_preload(
    [
        "contseg.run_benchmark",
        *(f"contseg.benchmark.{m}" for m in _IMPORTED),
        "contseg.datasets.formats.shapes",
        "torch._dynamo",
    ]
)


def run(function: Callable[..., None], *arguments: Any, **environment: str) -> CompletedProcess[str]:
    """A function of a module to its end, ten minutes at most; both streams captured."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = _start(out, environment, function, *arguments, err=err)
        process.join(600)
        kill(process)
        said = [path.read_text() if path.exists() else "" for path in (out, err)]
        assert process.exitcode is not None
        return CompletedProcess([*map(str, arguments)], process.exitcode, *said)


def start(log: Path, *words: object, **environment: str) -> BaseProcess:
    """The real command; both streams are added to ``log``."""
    return _start(log, environment, program, [*map(str, words)])


def call(log: Path, *words: object, **environment: str) -> tuple[int | None, str]:
    """The real command to its end, ten minutes at most; its exit code and all that ``log`` holds."""
    process = start(log, *words, **environment)
    process.join(600)
    kill(process)
    return process.exitcode, log.read_text().replace("\r", "\n")


def start_together(processes: int, log: Path, *words: object) -> list[BaseProcess]:
    """The real command in several processes (gloo); logs ``log0``, ``log1``, ..."""
    return _start_together(processes, log, program, [*map(str, words)])


def call_together(processes: int, log: Path, function: Callable[..., None], *arguments: Any) -> None:
    """Call a function of a module in several processes (gloo); ``AssertionError`` with the logs if one fails."""
    module = function.__module__  # pytest calls a test file "tests.integration...", which no other process can import
    name = module if module.startswith("contseg.") else f"contseg.{module}"
    together = _start_together(processes, log, _imported, name, function.__name__, *arguments)
    for process in together:
        process.join(300)
    kill(*together)
    said = "\n".join(p.read_text() for p in sorted(log.parent.glob(f"{log.name}?")))
    assert [p.exitcode for p in together] == [0] * processes, said


def kill(*processes: BaseProcess, number: int = signal.SIGKILL) -> None:
    """Send a signal and wait for the end."""
    for process in processes:
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, number)
    for process in processes:
        process.join(120)


def _start_together(processes: int, log: Path, function: Callable[..., None], *arguments: Any) -> list[BaseProcess]:
    """As torch.distributed.run does it: by the environment."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"LOCAL_WORLD_SIZE": str(processes), "ACCELERATE_USE_CPU": "true"}
    return [
        _start(log.with_name(f"{log.name}{r}"), {**shared, "RANK": str(r), "LOCAL_RANK": str(r)}, function, *arguments)
        for r in range(processes)
    ]


def _start(
    log: Path, environment: dict[str, str], function: Callable[..., None], *arguments: Any, err: Path | None = None
) -> BaseProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    process = _CONTEXT.Process(target=_forked, args=((log, err or log), environment, function, arguments))
    process.start()
    return process


def _forked(
    streams: tuple[Path, Path], environment: dict[str, str], function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    """The child: its environment, search path and streams are those of a program that was started so."""
    os.environ.update(environment)
    os.chdir(ROOT)
    added = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [place for place in added if place and place not in sys.path]
    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    import torch

    torch.set_num_threads(1)
    function(*arguments)


def _imported(module: str, function: str, *arguments: Any) -> None:
    getattr(importlib.import_module(module), function)(*arguments)


def program(words: list[str]) -> None:
    """The real command: ``run_benchmark.py WORDS``."""
    from contseg.run_benchmark import main

    sys.argv = ["run_benchmark.py", *words]
    sys.exit(main(words))
