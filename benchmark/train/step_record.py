"""The metadata of a trained step, and the record of a scored one."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from accelerate import Accelerator

from contseg import __version__
from contseg.benchmark.plan.build import Plan, Run, StepNode
from contseg.benchmark.plan.config import EvalConfig, identity
from contseg.benchmark.plan.external import codes
from contseg.benchmark.store.files import RECORD_FORMAT
from contseg.benchmark.store.origin import Code
from contseg.benchmark.store.provenance import provenance, versions
from contseg.benchmark.train.checkpoint import StepProgress

UNKNOWN = "unknown code"  # of files from before the code was noted


def describe_step(
    plan: Plan,
    node: StepNode,
    *,
    cost: dict[str, Any],
    progress: StepProgress,
    terms: bool,
    accelerator: Accelerator,
    code: Code,
) -> dict[str, Any]:
    """The metadata stored with a step's weights. ``terms``: whether its terms have states, in a file of their own."""
    return {
        "key": node.key,
        "title": node.title,
        "method": node.method,
        "observers": sorted(node.observers),
        "terms": terms,
        "plugins": list(plan.config.plugins),
        "model": identity(plan.config.model),
        "train": identity(node.train),
        "seed": node.seed,
        "steps": [
            {"index": s.index, "setup": s.setup, "old_classes": s.old_classes, "new_classes": s.new_classes}
            | ({} if s.background else {"background": False})
            for s in node.scenario.steps[: node.index + 1]
        ],
        "sees": _sees(node),
        "cost": cost,
        "losses": progress.losses,
        **({"gradient_norms": progress.gradient_norms} if progress.gradient_norms else {}),
        "versions": versions(),
        "code": code,
        "provenance": provenance(accelerator),
    }


def _sees(node: StepNode) -> dict[str, Any]:
    stored = {"stored": len(node.view.stored)} if node.view.stored else {}
    return {"digest": node.view.digest, "images": len(node.view.ids), **stored}


def _memory(plan: Plan, run: Run, t: int) -> dict[str, Any]:
    """What a method with memory had stored at step t. ``images``: id and the step in which it was training data.

    ``also_current``: how many of them are among the images of step t too. ``bytes``: size of their files, 0 if drawn.
    """
    assert run.memory is not None
    view, dataset = run.cells[t].node.view, plan.datasets[run.scenario.dataset]
    files = [f for s in view.stored for f in dataset.files(s.image_id, "train") or ()]
    return {
        **asdict(run.memory),
        "images": [[s.image_id, s.step] for s in view.stored],
        "also_current": view.also_current,
        "bytes": sum(f.stat().st_size for f in files if f.exists()),
    }


def _evaluation(plan: Plan, node: StepNode) -> EvalConfig:
    """How a step is scored; with a recipe of other crops it is the grid's crop, as for every row."""
    config = plan.config
    own = node.train.crop != config.train.crop
    return replace(config.eval, crop=config.eval.crop or config.train.crop) if own else config.eval


def _by_domain(plan: Plan, run: Run, t: int) -> dict[str, Any]:
    """What the record of a step by domain says more: every step's domains, and the test images that were trained on."""
    trained, images = plan.tested_on_trained(run, t)
    return {
        "domains": [list(d) for d in run.scenario.domains],
        "background": run.scenario.background,
        "test": {"images": images, "trained_on": trained},
    }


def make_record(plan: Plan, run: Run, t: int, score: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
    """The record of step ``t`` of a run, from its score and the metadata of its training."""
    scenario, cell = run.scenario, run.cells[t]
    return {
        "format": RECORD_FORMAT,
        "key": cell.score,
        "step_key": cell.node.key,
        "run": run.key,
        "dataset": scenario.dataset,
        "task": scenario.task,
        "setup": scenario.setup,
        "order": scenario.order,
        "method": run.method,
        "external": list(codes(plan.config.model, run.method)),
        "seed": run.seed,
        "step": t,
        "steps": len(scenario.steps),
        "split": plan.config.eval.split,
        "class_names": list(plan.datasets[scenario.dataset].class_names),
        "groups": [list(g) for g in scenario.groups],
        "channels": [0, *scenario.steps[t].seen_classes],
        "protocol": plan.protocol.as_dict(),
        "matrix": score["matrix"],
        **(_by_domain(plan, run, t) if scenario.domains else {}),
        "config": {
            "model": meta["model"],
            "train": meta["train"],
            "eval": identity(_evaluation(plan, cell.node)),
            "plugins": list(plan.config.plugins),
        },
        "sees": meta["sees"],
        **({"memory": _memory(plan, run, t)} if run.memory else {}),
        "versions": {"contseg": __version__, **meta["versions"]},  # weights from earlier caches do not name it
        "provenance": meta["provenance"]
        | {
            "plugins": dict(run.plugins),
            "code": {"training": meta.get("code") or UNKNOWN, "evaluation": score.get("code") or UNKNOWN},
        },
        "cost": meta["cost"] | {"evaluation_seconds": score["seconds"]},
        "losses": meta["losses"],
        **({"gradient_norms": meta["gradient_norms"]} if "gradient_norms" in meta else {}),
    }
