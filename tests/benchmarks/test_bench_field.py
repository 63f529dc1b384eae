"""A field of ten thousand records, and a cache of as many steps: what tables and list take, as whole programs."""

from pathlib import Path
from typing import Any

import pytest

from contseg.tests.benchmarks.field import names, write_cache, write_records
from contseg.tests.benchmarks.program import whole_program

pytest.importorskip("pytest_benchmark")

N = 10_000


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("field"), N)


def test_report_of_10000_records(benchmark: Any, field: Path, tmp_path: Path) -> None:
    """Target: below 20 s and 1 GiB."""
    words = "report", "--records", field, "--out", tmp_path
    said = whole_program(benchmark, "report, 10 000 records", *words, target="20 s, 1 GiB")
    assert all(name in said for name in names())


def test_list_of_10000_steps(benchmark: Any, tmp_path: Path) -> None:
    """Target: below 2 s."""
    write_cache(tmp_path, N)
    said = whole_program(benchmark, "cache list, 10 000 steps", "cache", "list", "--out", tmp_path, target="2 s")
    assert said.count(" step 1 ") == N


def test_site_of_10000_records(benchmark: Any, field: Path, tmp_path: Path) -> None:
    """A page for each run; no target."""
    words = "site", field, "--out", tmp_path / "site"
    said = whole_program(benchmark, "site, 10 000 records", *words, target="-", rounds=1)
    assert "written: " in said
