"""Observers in a plan: the keys of their states, and at which steps somebody reads them."""

from __future__ import annotations

from typing import Any

from contseg.benchmark.store.files import digest
from contseg.datasets.scenario import Step
from contseg.methods.base import Method, Term, describe, held


def observed(key: str, step: Step, active: dict[str, Term], before: dict[int, str]) -> dict[int, str]:
    """The keys of the observers' states after the step ``key``, by ``id``."""
    return {
        id(term): digest({"step": key, "setup": step.setup, "is": describe(term), "before": before.get(id(term))})
        for term in active.values()
        if term.observes
    }


def needed_observers(method: Method, steps: int) -> list[set[int]]:
    """For each step the observers (by ``id``) whose state a later step, or a prediction, reads."""
    needed: list[set[int]] = [set() for _ in range(steps + 1)]
    predicts = {id(t) for t in read_by(method.predict)}
    reads = {id(h) for t in method.terms.values() for h in held(t)}
    for t in range(steps - 1, -1, -1):
        later = (reads | needed[t + 1]) if t + 1 < steps else set()
        needed[t] = predicts | later
    return needed


def read_by(hook: Any) -> list[Term]:
    """The terms that a hook holds in its fields."""
    return [v for v in vars(hook).values() if isinstance(v, Term)] if hasattr(hook, "__dict__") else []


def observers_read(terms: dict[str, Term], states: dict[int, str]) -> list[str]:
    """The keys of the observer states that a step's losses read."""
    return [states[id(h)] for t in terms.values() if not t.observes for h in held(t) if id(h) in states]
