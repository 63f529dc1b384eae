"""Where rounding may choose another class: what two evaluations of one network may differ by, on any processor."""

from pathlib import Path
from typing import Any

import torch

from contseg.benchmark.models.load import load_step
from contseg.datasets.registry import open_dataset
from contseg.methods.base import full_precision, resize

NEAR = 1e-5  # of the largest |logit|: far above the rounding of one network in float32, far below what a mistake moves


def doubtful(out: Path, record: dict[str, Any]) -> int:
    """Test pixels of the drawn data set whose two best logits are nearer than ``NEAR``, in the record's network."""
    model, _ = load_step(out, record["step_key"], record["method"])
    data, near = open_dataset("shapes"), 0
    with torch.inference_mode():
        for ids in torch.arange(200).split(50):
            pairs = [data.load(data.ids("val")[i], "val") for i in ids]
            images = model.pixels.normalise(torch.stack([p[0] for p in pairs])).to(next(model.parameters()).dtype)
            logits = full_precision(model(images).logits)
            best, second = resize(logits, (48, 48)).topk(2, 1).values.unbind(1)
            near += int((best - second <= NEAR * logits.abs().max()).sum())
    return near


def moved(one: dict[str, Any], other: dict[str, Any]) -> int:
    """Pixels that two records of one network count under different predictions, at least."""
    parts = ("seen", "unseen")
    change = sum(
        abs(a - b) for k in parts for x, y in zip(one[k], other[k], strict=True) for a, b in zip(x, y, strict=True)
    )
    return change // 2


def assert_same_counts(out: Path, record: dict[str, Any], other: dict[str, Any]) -> None:
    """The matrices of two evaluations differ by no more pixels than those in doubt, which are few."""
    near = doubtful(out, record)
    assert near < 0.005 * 200 * 48 * 48, "the network decides nothing: it cannot tell two evaluations apart"
    assert moved(record["matrix"], other["matrix"]) <= near
