"""What the cache holds, and which steps can be removed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

from contseg.benchmark.store.claims import Claim
from contseg.benchmark.store.files import LostStateError, Store

if TYPE_CHECKING:
    from contseg.benchmark.plan.build import Plan


def listing(store: Store) -> str:
    """A line for each trained step: the first digits of its key, its size, its title."""
    rows, total = [], 0
    for key in store.steps():
        try:
            title = store.meta(key)["title"]
        except LostStateError:
            title = "(under way)" if _under_way(store, key) else "(not finished)"
        size = _size(store.step(key))
        total += size
        rows.append([key[:8], f"{size / 2**20:,.1f}", title])
    return (
        tabulate(rows, ["step", "MiB", "trained first as"], disable_numparse=True)
        + f"\n{total / 2**20:,.1f} MiB in {store.cache}"
    )


def prune(store: Store, plan: Plan | None, really: bool) -> str:
    """Remove the steps that ``plan`` does not need; without a plan, all steps that are not in training.

    Kept are the parents of steps still to train, the steps still to score, every checkpoint, and steps that a process
    works on.
    """
    needed: set[str] = set()
    if plan is not None:
        for node in [*plan.to_train(store), *(c.node for c in plan.missing_scores(store))]:
            needed.add(node.key)
            if node.parent is not None:
                needed.add(node.parent.key)
    steps = store.steps()
    going = [key for key in steps if key not in needed and not _under_way(store, key)]
    freed = sum(_size(store.step(key)) for key in going)
    if really:
        for key in going:
            store.remove(key)
    verb = "removed" if really else "would remove (add --yes)"
    kept = len(steps) - (len(going) if really else 0)
    return f"{verb} {len(going)} steps, {freed / 2**20:,.1f} MiB; kept {kept}"


def _under_way(store: Store, key: str) -> bool:
    """Whether a step has a checkpoint, or a process holds it, which may not have written one yet."""
    return store.checkpoint(key).exists() or Claim(store.step(key)).held()


def _size(folder: Path) -> int:
    with os.scandir(folder) as files:
        return sum(f.stat().st_size for f in files if f.is_file())
