"""A grid small enough for a test: a few updates on drawn images, by the real command."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from contseg.tests import forked

HOME = Path(__file__).resolve().parents[2]
SMALL = [
    "model.backbone=tiny",
    "train.updates=4,3",
    "train.batch=4",
    "train.crop=48",
    "train.scale=",
    "train.lr=0.05,0.03",
]


def command(*words: object) -> list[str]:
    return [sys.executable, str(HOME / "run_benchmark.py"), *map(str, words)]


def call(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The real command; both streams captured."""
    return forked.run(forked.program, [*map(str, words)], **environment)


def small(
    out: Path, *methods: str, scenarios: tuple[str, ...] = ("shapes/3-3/overlapped",), sets: tuple[str, ...] = ()
) -> list[object]:
    """Arguments of a small grid."""
    return ["--scenarios", *scenarios, "--methods", *methods, "--out", out, "--set", *SMALL, *sets]


def records(out: Path) -> dict[str, dict[str, Any]]:
    """Every record by its path below ``records``."""
    base = out / "records"
    return {str(p.relative_to(base)): json.loads(p.read_text()) for p in sorted(base.rglob("*.json"))}


def numbers(out: Path) -> dict[str, tuple[str, str, Any, Any]]:
    """What has to be equal in two runs of one grid: keys, matrix, losses."""
    return {k: (r["key"], r["step_key"], r["matrix"], r["losses"]) for k, r in records(out).items()}


def weights(out: Path) -> dict[str, str]:
    """SHA-256 of every state file's tensors by its path below ``cache``."""
    from contseg.benchmark.store.files import read_meta

    base = out / "cache"
    return {str(p.relative_to(base)): read_meta(p)["sha256"] for p in sorted(base.rglob("*.safetensors"))}
