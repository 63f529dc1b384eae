"""Peak memory: of a GPU's allocator, or of this process."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch


def watch_memory(device: torch.device) -> None:
    """Reset the peak; on a CPU it is Linux's ``VmHWM`` of this process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> float:
    """Peak in MiB since ``watch_memory``: of a GPU's allocator, or on a CPU of this process; 0 if unknown."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 2**10, 1)
    return 0.0
