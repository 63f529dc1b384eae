"""The whole program, from the start of its process to its end: what it takes, as a row of the table."""

import json
import os
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

from contseg.tests.benchmarks.ratios import ROWS, Row
from contseg.tests.material import ROOT

# A process of its own between pytest's and the program's: on Linux the most memory that a program held counts from that
# of the process that started it.
MEASURE = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
status = subprocess.call(sys.argv[2:])
clock, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
json.dump([clock, used.ru_utime + used.ru_stime, used.ru_maxrss], open(sys.argv[1], "w"))  # Linux counts KiB
sys.exit(status)
"""


class Ran(NamedTuple):
    """What a program printed, its seconds by the clock and of the processor, the most bytes that it held."""

    said: str
    clock: float
    processor: float
    memory: int


def run(*words: object) -> Ran:
    """``contseg`` with these arguments, in one thread. Raises ``CalledProcessError``."""
    line = [sys.executable, str(ROOT / "run_benchmark.py"), *map(str, words)]
    with tempfile.NamedTemporaryFile("r") as took:
        measure = [sys.executable, "-c", MEASURE, took.name, *line]
        done = subprocess.run(
            measure, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True, check=True
        )
        clock, processor, kib = json.load(took)
    return Ran(done.stdout, clock, processor, kib * 1024)


def whole_program(benchmark: Any, what: str, *words: object, target: str, rounds: int = 3) -> str:
    """Its output; a row of the table with the fastest round."""
    found: list[Ran] = []
    benchmark.pedantic(lambda: found.append(run(*words)), rounds=rounds)
    best = min(found, key=lambda ran: ran.clock)
    ours = f"{best.clock:.2f} s, {best.processor:.2f} s of the processor, {best.memory / 2**20:.0f} MiB"
    ROWS.append(Row(what, ours, "", "", target))
    benchmark.extra_info |= {"target": target, "processor": best.processor, "memory": best.memory}
    return best.said
