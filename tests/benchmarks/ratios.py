"""Two sides of a benchmark in turns.

Both run in one process, one after the other in every round, so that what else the machine does meets both. Times are
the fastest round's, by the clock on the wall: an otherwise idle machine is wanted. Nothing is asserted of a time.
"""

import time
from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import torch


class Row(NamedTuple):
    """A line of the table: what was compared, both sides as they are to be read, their ratio and its target."""

    what: str
    ours: str
    reference: str
    ratio: str
    target: str
    remark: str = ""


ROWS: list[Row] = []


class Against:
    """``against(what, ours, reference, target)`` times both and writes a row of the table.

    ``faster``: the ratio is how many times less than the reference ours takes; otherwise how many times more it takes.
    """

    def __init__(self, benchmark: Any) -> None:
        self.benchmark = benchmark

    def __call__(
        self,
        what: str,
        ours: Callable[[], Any],
        reference: Callable[[], Any],
        target: str,
        *,
        faster: bool = True,
        rounds: int = 7,
        per: float = 1,
        unit: str = "ms",
        remark: str = "",
    ) -> Any:
        times: tuple[list[float], list[float]] = ([], [])

        def timed(run: Callable[[], Any], into: list[float]) -> Any:
            began = time.perf_counter()
            value = run()
            into.append(time.perf_counter() - began)
            return value

        def other() -> None:
            timed(reference, times[1])

        value = self.benchmark.pedantic(
            lambda: timed(ours, times[0]),
            setup=other,
            rounds=rounds,
            warmup_rounds=1,
        )
        mine, theirs = (min(t[1:]) for t in times)  # without the round that warms up
        ratio = theirs / mine if faster else mine / theirs
        self.benchmark.extra_info |= {"seconds": mine, "reference_seconds": theirs, "ratio": ratio, "target": target}

        def shown(seconds: float) -> str:
            return f"{per / seconds:.0f} {unit}" if unit.endswith("/s") else f"{seconds / per * 1e3:.4g} ms"

        ROWS.append(Row(what, shown(mine), shown(theirs), f"{ratio:.2f}", target, remark))
        return value


def allocated(run: Callable[[], object]) -> list[int]:
    """The bytes of every allocation of a tensor, and minus the bytes of every release, in their order."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda e: e.start_ns())]


def peak(run: Callable[[], object]) -> int:
    """Bytes that are held beyond what was there before, at most."""
    return max(accumulate(allocated(run), initial=0))


def seconds(run: Callable[[], Any], rounds: int = 3) -> float:
    """Seconds of the processor in the fastest round, after one that does not count."""
    run()
    times = []
    for _ in range(rounds):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return min(times)
