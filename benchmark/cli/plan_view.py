"""A plan as a table, as JSON, and as a graph of steps."""

from __future__ import annotations

import contextlib
from typing import Any

from tabulate import tabulate

from contseg.benchmark.plan.build import Plan, StepNode
from contseg.benchmark.plan.config import identity
from contseg.benchmark.store.files import LostStateError, Store


def as_json(plan: Plan, store: Store) -> dict[str, Any]:
    """Runs, steps and their cost, with whole keys."""
    nodes = plan.to_train(store)
    todo = {n.key for n in nodes}
    return {
        "totals": totals(plan, store, nodes),
        "runs": [
            {
                "scenario": r.scenario.name,
                "method": r.method,
                "seed": r.seed,
                "key": r.key,
                "steps": [c.node.key for c in r.cells],
            }
            for r in plan.runs
        ],
        "steps": [
            {
                "key": n.key,
                "parent": n.parent.key if n.parent else None,
                "title": n.title,
                "train_images": len(n.view.ids),
                **({"stored_images": [[s.image_id, s.step] for s in n.view.stored]} if n.view.stored else {}),
                "updates": n.updates,
                "images": n.images,
                "used_by": len(n.used_by),
                "observers": sorted(n.observers),
                "state": _state(n, plan, store, todo),
            }
            for n in plan.nodes.values()
        ],
    }


def totals(
    plan: Plan, store: Store, todo: list[StepNode] | None = None, made: dict[str, list[str]] | None = None
) -> dict[str, Any]:
    """The sums under a plan: cells, steps, images, updates, and an estimate of time from what was recorded.

    ``todo``, ``made``: what ``to_train`` and ``made_by_other_code`` said, where they are known.
    """
    todo = plan.to_train(store) if todo is None else todo
    replays = [n for n in todo if plan.trained(store, n.key)]
    alone, shared = plan.alone(), plan.shared()
    return {
        "runs": len(plan.runs),
        "cells": sum(len(r.cells) for r in plan.runs),
        "distinct_steps": len(plan.nodes),
        "to_train": len(todo),
        "replays": len(replays),
        "made_otherwise": len(plan.made_by_other_code(store) if made is None else made),
        "branches": sum(n.branch for n in plan.nodes.values()),
        "to_score": len(plan.missing_scores(store)),
        "images_alone": alone,
        "images_shared": shared,
        "sharing_factor": round(alone / shared, 2),
        "images_to_train": sum(n.images for n in todo),
        "updates_to_train": sum(n.updates for n in todo),
        "hours_estimated": _hours(todo, plan, store),
    }


def as_table(plan: Plan, store: Store) -> str:
    """A line for each run, then the totals."""
    made, nodes = plan.made_by_other_code(store), plan.to_train(store)
    t, todo = totals(plan, store, nodes, made), {n.key for n in nodes}
    rows = []
    for run in plan.runs:
        states = [_state(c.node, plan, store, todo) for c in run.cells]
        first = [c for c in run.cells if c.node.used_by[0] == f"{run.scenario.name} {run.method}"]
        rows.append(
            [
                run.scenario.name,
                run.method,
                run.seed,
                len(run.cells),
                states.count("done"),
                len(run.cells) - len(first),
                sum(c.node.images for c in first if c.node.key in todo),
            ]
        )
    heads = ["scenario", "method", "seed", "steps", "done", "shared with a run above", "images to train"]
    hours = (
        "no recorded cost to estimate from" if t["hours_estimated"] is None else f"about {t['hours_estimated']:.2f} h"
    )
    lines = [
        tabulate(rows, heads, intfmt=","),
        "",
        f"{t['runs']} runs, {t['cells']} cells, {t['distinct_steps']} distinct steps; "
        f"to train {t['to_train']} ({t['replays']} of them again, for a late observer), to score {t['to_score']}"
        + (f"; {t['branches']} on a branch, as training again gave other weights" if t["branches"] else ""),
        f"images: {t['images_alone']:,} if every cell ran on its own, {t['images_shared']:,} shared "
        f"({t['sharing_factor']:.2f} times fewer), "
        f"{t['images_to_train']:,} still to train in {t['updates_to_train']:,} updates",
        f"time: {hours}",
        *stored_images(plan),
        *tested_on_trained(plan),
        *([told] if (told := _told_of(made)) else []),
    ]
    return "\n".join(lines)


def stored_images(plan: Plan) -> list[str]:
    """A line for each run with memory: how many images of which steps each of its steps shows again."""
    lines = []
    for run in (r for r in plan.runs if r.memory):
        views = [c.node.view for c in run.cells]
        steps = [f"{len(v.stored)} at step {t}" for t, v in enumerate(views) if v.stored]
        also = max(v.also_current for v in views)
        shared = f"; up to {also} of them are also images of the step itself, with its labels" if also else ""
        lines.append(f"memory: {run.scenario.name} {run.method} seed {run.seed} stores {_some(steps, ', ')}{shared}")
    return lines


def tested_on_trained(plan: Plan) -> list[str]:
    """A line for each scenario whose last step is scored on images that its run trained on."""
    runs = {r.scenario.name: r for r in plan.runs if r.scenario.domains}
    lines = []
    for name, run in runs.items():
        trained, images = plan.tested_on_trained(run)
        if trained:
            lines.append(
                f"{name}: {trained} of the {images} test images of the last step ({trained / images:.0%}) are trained "
                "on, as in the released code; the setup `domain` has none"
            )
    return lines


def other_code(plan: Plan, store: Store) -> str:
    """One line about stored steps that other code made and that are trained again; "" if there are none."""
    return _told_of(plan.made_by_other_code(store))


def _told_of(made: dict[str, list[str]]) -> str:
    if not made:
        return ""
    files = _some(sorted({f for names in made.values() for f in names}), ", ")
    return (
        f"{len(made)} stored steps were made by other code ({files}) and will be done again: {_some([*made], '; ')}; "
        "--trust-cache takes them as they are"
    )


def _some(words: list[str], mark: str) -> str:
    return mark.join(words[:3]) + (f" and {len(words) - 3} more" if len(words) > 3 else "")


def as_mermaid(plan: Plan) -> str:
    """The graph of steps as Mermaid text: an arrow from a step to those that start from its weights."""
    lines = ["graph LR"]
    for node in plan.nodes.values():
        users = f"<br/>serves {len(node.used_by)} cells" if len(node.used_by) > 1 else ""
        watch = f"<br/>{len(node.observers)} shared observers" if node.observers else ""
        label = f"{node.scenario.name} step {node.index}<br/>{node.method} seed {node.seed}{users}{watch}".replace(
            '"', "'"
        )
        lines.append(f'  {node.key[:8]}["{label}"]')
        if node.parent is not None:
            lines.append(f"  {node.parent.key[:8]} --> {node.key[:8]}")
    return "\n".join(lines)


def _state(node: StepNode, plan: Plan, store: Store, todo: set[str]) -> str:
    if node.key in todo:
        return "replay" if plan.trained(store, node.key) else "to train"
    return "done"


def _hours(todo: list[StepNode], plan: Plan, store: Store) -> float | None:
    """From the mean seconds an image of all kept steps of this network and image size; ``None`` without any."""
    network, costs = identity(plan.config.model), dict[tuple[int, ...], list[Any]]()
    for key in store.steps() if todo else ():
        with contextlib.suppress(LostStateError):
            meta = store.meta(key)
            if meta["model"] == network and meta["cost"]["images"]:
                costs.setdefault(tuple(meta["train"]["crop"]), []).append(meta["cost"])
    if any(n.train.crop not in costs for n in todo):
        return None
    pace = {crop: sum(c["seconds"] for c in those) / sum(c["images"] for c in those) for crop, those in costs.items()}
    return float(sum(pace[n.train.crop] * n.images for n in todo) / 3600)
