"""The table of ratios at the end of ``make bench``, and the fixtures of benchmarks."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from contseg.tests.benchmarks.ratios import ROWS, Against, Row

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as run_benchmark.py does; read at the first large tensor


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Two, as the targets are stated; ``BENCH_THREADS`` for another number."""
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("BENCH_THREADS", 2)))
    yield
    torch.set_num_threads(before)


@pytest.fixture
def against(benchmark: Any) -> Against:
    return Against(benchmark)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not ROWS:
        return
    heads = Row("what", "ours", "reference", "ratio", "target", "")
    widths = [max(len(row[i]) for row in [heads, *ROWS]) for i in range(len(heads))]
    terminalreporter.section("ratios of this run")
    for row in [heads, *ROWS]:
        terminalreporter.write_line("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip())
