"""The whole program, from the start of its process to its end: what it takes, as a row of the table."""

import os
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

from contseg.tests.benchmarks.ratios import ROWS, Row
from contseg.tests.material import ROOT


class Ran(NamedTuple):
    """What a program printed, its seconds by the clock and of the processor, the most bytes that it held."""

    said: str
    clock: float
    processor: float
    memory: int


def run(*words: object) -> Ran:
    """``contseg`` with these arguments, in one thread. Raises ``CalledProcessError``."""
    line = [sys.executable, str(ROOT / "run_benchmark.py"), *map(str, words)]
    with tempfile.TemporaryFile("w+") as out:
        began = time.perf_counter()
        process = subprocess.Popen(line, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=out)
        _, status, used = os.wait4(process.pid, 0)
        clock = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, line)
        out.seek(0)
        return Ran(out.read(), clock, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)  # Linux counts KiB


def whole_program(benchmark: Any, what: str, *words: object, target: str, rounds: int = 3) -> str:
    """Its output; a row of the table with the fastest round."""
    found: list[Ran] = []
    benchmark.pedantic(lambda: found.append(run(*words)), rounds=rounds)
    best = min(found, key=lambda ran: ran.clock)
    ours = f"{best.clock:.2f} s, {best.processor:.2f} s of the processor, {best.memory / 2**20:.0f} MiB"
    ROWS.append(Row(what, ours, "", "", target))
    benchmark.extra_info |= {"target": target, "processor": best.processor, "memory": best.memory}
    return best.said
