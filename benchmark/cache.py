"""What the cache holds, and which of it can go."""

from __future__ import annotations

from pathlib import Path

from tabulate import tabulate

from benchmark.plan import Plan
from benchmark.store import LostStateError, Store


def listing(store: Store) -> str:
    """A line for each trained step: first digits of its key, size, title."""
    rows = []
    for folder in _folders(store):
        try:
            title = store.meta(folder.name)["title"]
        except LostStateError:
            title = "(under way)" if store.checkpoint(folder.name).exists() else "(not finished)"
        rows.append([folder.name[:8], f"{_size(folder) / 2**20:,.1f}", title])
    total = sum(_size(f) for f in _folders(store))
    return (
        tabulate(rows, ["step", "MiB", "trained first as"], disable_numparse=True)
        + f"\n{total / 2**20:,.1f} MiB in {store.cache}"
    )


def prune(store: Store, plan: Plan | None, really: bool) -> str:
    """Remove the steps that no plan needs; without a plan, those of finished grids: all that are not under way.

    What an unfinished plan needs is kept: every step that a missing one starts from, and every checkpoint.
    """
    needed: set[str] = set()
    if plan is not None:
        for node in [*plan.to_train(store), *(c.node for c in plan.missing_scores(store))]:
            needed.add(node.key)
            if node.parent is not None:
                needed.add(node.parent.key)
    folders = [f for f in _folders(store) if f.name not in needed and not (f / "checkpoint.safetensors").exists()]
    freed = sum(_size(f) for f in folders)
    if really:
        for folder in folders:
            store.remove(folder.name)
    verb = "removed" if really else "would remove (add --yes)"
    kept = len(_folders(store)) - (0 if really else len(folders))
    return f"{verb} {len(folders)} steps, {freed / 2**20:,.1f} MiB; kept {kept}"


def _folders(store: Store) -> list[Path]:
    return sorted(f for f in store.cache.glob("??/*") if f.is_dir() and len(f.name) == 64)


def _size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
