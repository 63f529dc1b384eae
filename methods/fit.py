"""What does not compose: an add-on that would change nothing, or undo what another one did.

``Method.plus`` asks here, so that nobody trains such a row. What a hook or a term says of itself:

- ``writes_rows`` of a ``warm_up`` function: it writes all new rows of a 1x1 classifier;
- ``own_heads`` of a ``build`` hook: the network does not predict by such rows; ``no_background``: not by row 0;
- ``frozen`` of a ``trainable`` hook: which of ``PARTS`` no longer train at steps >= 1;
- ``acts_through`` of a term: the one of ``PARTS`` without which its loss has no gradient;
- ``same_steps`` of a ``scenario`` hook: it gives the steps that it is given, or an error;
- ``moves_weights`` of an ``end_step`` function: it changes trained weights; ``reads_moves`` of a term: its own
  ``end_step`` reads how far the updates moved them;
- ``counts_void`` of a term: its supervised loss is a mean over all pixels, void ones included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

ENCODER, EMBEDDING, OLD_ROWS = PARTS = "encoder", "embedding", "old rows"


def freezes(*parts: str) -> Callable[[F], F]:
    """Mark a ``trainable`` hook after which these parts stay as they are at steps >= 1."""

    def mark(hook: F) -> F:
        hook.frozen = parts  # type: ignore[attr-defined]
        return hook

    return mark


def one_training(method: Any) -> bool:
    """Whether the method makes one training of all steps, as Joint does."""
    default = type(method).scenario
    return method.scenario is not default and not getattr(method.scenario, "same_steps", False)


def misfit(method: Any, addon: Any) -> str:
    """Why an add-on does not fit a method; "" if it does."""
    if _any(addon, "weigh") and (_any(method, "weigh") or not _any(method, "weighable")):
        why = "has weights already" if _any(method, "weigh") else "has no such loss, PLOP and SSUL have"
        return f"{addon.name} weighs the pixels of a pseudo-labelled loss, and {method.name} {why}"
    if addon.memory and (why := _no_use_of_memory(method)):
        return f"{addon.name} stores images, and {method.name} {why}"
    if addon.memory and addon.memory.apart and _any(method, "counts_void"):
        return f"{addon.name} hides stored images as void, which counts in {method.name}'s mean: write loss=shared"
    losses = [t for t in addon.terms.values() if not t.observes]
    if one_training(method) and (losses or addon.warm_up or addon.end_step) and not _acts_at_step_0(addon):
        return f"{addon.name} acts on later steps, and {method.name} trains once, on all classes"
    for one, other in ((addon, method), (method, addon)):
        if _any(other, "reads_moves") and any(getattr(f, "moves_weights", False) for f in one.end_step):
            return f"{one.name} moves weights after the last update, and {other.name} reads how far updates moved them"
        if _writes_rows(one) and getattr(other.build, "own_heads", False):
            return f"{one.name} writes rows of a 1x1 classifier, and {other.name} predicts by other heads"
    writes = _writes_rows(addon)
    if writes and getattr(method.build, "no_background", False):
        return f"{addon.name} makes new rows of background's, and {method.name} never trains that one"
    if writes and _writes_rows(method):
        return f"{addon.name} writes the new rows, and {method.name} has written them already"
    if (losses or writes) and not _trains(method):
        return f"{addon.name} acts on later steps, and {method.name} trains nothing after step 0"
    for part in getattr(method.trainable, "frozen", ()):
        if any(getattr(t, "acts_through", "") == part for t in losses):
            return f"{addon.name} acts through the {part}, and {method.name} trains none of it after step 0"
    return ""


def _no_use_of_memory(method: Any) -> str:
    if method.memory:
        return "has a memory already"
    if one_training(method):
        return "has no earlier steps: it trains once, on all classes"
    return "" if _trains(method) else "trains nothing after step 0"


def _acts_at_step_0(addon: Any) -> bool:
    hooks = [
        h for name in ("build", "trainable", "predict") if (h := getattr(addon, name)) is not getattr(type(addon), name)
    ]
    losses = [name for name, t in addon.first.items() if not t.observes and name != "ce"]
    return bool(losses) or any(not getattr(h, "later", False) for h in (*hooks, *addon.end_step))


def _trains(method: Any) -> bool:
    return any(not t.observes for t in method.terms.values())


def _writes_rows(method: Any) -> bool:
    return any(getattr(f, "writes_rows", False) for f in method.warm_up)


def _any(method: Any, declared: str) -> bool:
    """Whether a term of later steps declares this."""
    return any(getattr(term, declared, False) for term in method.terms.values())
