"""Where a number came from. Records hold it, and a table that mixes it warns; it is no part of an identity."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from contseg import __version__

HOME = Path(__file__).resolve().parents[2]


@cache
def versions() -> dict[str, str]:
    """contseg, Python and the packages whose version can move a number."""
    names = ("torch", "torchvision", "accelerate", "numpy", "pillow")
    return {
        "contseg": __version__,
        "python": platform.python_version(),
        **{n: importlib.metadata.version(n) for n in names},
    }


def provenance(accelerator: Accelerator) -> dict[str, Any]:
    """Device, processes, commit, time and command."""
    cuda = accelerator.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(accelerator.device) if cuda else platform.machine(),
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(),
    }


@cache
def commit() -> str:
    """The checkout's commit, with ``+`` if files differ from it; empty for an installed contseg.

    A repository that only holds the environment (``project/.venv``) is not contseg's, nor is the one of a Git hook.
    """
    if not (HOME / ".git").exists():
        return ""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        call = ["git", "-C", str(HOME), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        return subprocess.run(call, capture_output=True, text=True, timeout=10, check=True, env=env).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def command() -> str:
    """The command line; of absolute paths only the last part is kept, they name somebody's machine."""
    words = [re.sub(r"(^|=)[/~].*?([^/]+)/?$", r"\1\2", word) for word in sys.argv[1:]]
    return shlex.join(["contseg", *words])
