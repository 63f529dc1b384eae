"""What every test shares: few threads, and the way to the material beside the checkout."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from contseg.tests.material import SHARED, material

# before torch is imported, and for every process that a test starts
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CONTSEG_CACHE", tempfile.mkdtemp(prefix="contseg-"))  # not the user's own


def pytest_configure(config: pytest.Config) -> None:
    """Tests compute on the CPU on every machine, as equal bits are asked for; only ``pytest -m gpu`` sees the GPU."""
    wanted = config.option.markexpr
    if "gpu" not in wanted or "not gpu" in wanted:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_report_header() -> str:
    found = "found" if SHARED.is_dir() else "MISSING: every test that needs it is skipped (set CONTSEG_SHARED)"
    return f"shared material: {SHARED} ({found})"


@pytest.fixture(scope="session")
def shared() -> Callable[..., Path]:
    """``shared("data", "voc_small")``: a path of the shared material, or a skip with the reason."""
    return material
