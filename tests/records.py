"""Synthetic records: a run whose matrices are drawn from a seed, or given by a rule that a reader can check by hand."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from contseg.benchmark.plan.protocol import PROTOCOLS, Protocol
from contseg.benchmark.store.files import digest, write_sealed

Record = dict[str, Any]
PIXELS = 100  # labelled pixels of every class in the synthetic test set


def matrix(n_labels: int, channels: Sequence[int], hit: Callable[[int], float]) -> list[list[int]]:
    """100 pixels a class: ``hit(label)`` of a seen class's are right, all others are taken for background."""
    rows = np.zeros((n_labels + 1, len(channels)), dtype=int)
    for label in range(n_labels):
        right = round(PIXELS * hit(label)) if label in channels else 0
        if label in channels:
            rows[label, list(channels).index(label)] += right
        rows[label, 0] += PIXELS - right
    rows[n_labels, 0] = 7
    return rows.tolist()


def make_run(
    method: str = "FT",
    seed: int = 0,
    *,
    dataset: str = "toy",
    task: str = "2-1",
    setup: str = "overlapped",
    groups: Sequence[Sequence[int]] = ((1, 2), (3,)),
    hit: Callable[[int, int], float] = lambda step, label: 1.0,
    protocol: Protocol = PROTOCOLS["sdr"],
    **changes: Any,
) -> list[Record]:
    """All records of a run; ``hit(step, label)`` is the share of a class's pixels that is found."""
    n_labels = 1 + sum(len(g) for g in groups)
    config = {"model": {"backbone": "tiny"}, "train": {"epochs": [1.0], "batch": [8]}, "eval": {"split": "val"}}
    cell = (dataset, task, setup, method, changes.get("config", config), seed)
    keys = [_sha(*cell, step) for step in range(len(groups))]
    records = []
    for step in range(len(groups)):
        channels = [0, *(k for g in groups[: step + 1] for k in g)]
        empty = [[0] * len(channels) for _ in range(n_labels + 1)]
        records.append(
            {
                "format": 2,
                "key": keys[step],
                "run": digest(keys),
                "dataset": dataset,
                "task": task,
                "setup": setup,
                "order": "",
                "method": method,
                "seed": seed,
                "step": step,
                "steps": len(groups),
                "split": "val",
                "class_names": ["background", *(f"class {k}" for k in range(1, n_labels))],
                "groups": [list(g) for g in groups],
                "channels": channels,
                "protocol": protocol.as_dict(),
                "matrix": {"seen": matrix(n_labels, channels, lambda k, t=step: hit(t, k)), "unseen": empty},
                "config": config,
                "sees": {"digest": "0", "images": 800},
                "versions": {"contseg": "0.1.0", "torch": "2.15.0"},
                "provenance": {
                    "device": "cpu",
                    "processes": 1,
                    "commit": "abc",
                    "time": f"2026-01-01T00:0{step}:00",
                    "command": "run_benchmark.py run --seeds 0",
                },
                "cost": {"images": 800, "updates": 100, "seconds": 2.5, "peak_memory_mb": 64.0, "parameters": 147000},
                "losses": {"ce": [1.0, 0.5]},
                **changes,
            }
        )
    return records


def joint_run(seed: int = 0, n: int = 3, **kwargs: Any) -> list[Record]:
    """Joint's one record."""
    return make_run("Joint", seed, task="offline", groups=(tuple(range(1, n + 1)),), **kwargs)


def write_records(folder: Path, records: Sequence[Record]) -> Path:
    """Write records where a run would."""
    for r in records:
        place = folder / "records" / r["dataset"] / r["task"] / r["setup"] / r["method"] / r["run"][:8]
        path = place / f"seed{r['seed']}" / f"step{r['step']}.json"
        write_sealed(path, r)
    return folder


def _sha(*parts: Any) -> str:
    return digest(list(parts))
