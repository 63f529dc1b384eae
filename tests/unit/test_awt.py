"""AWT: rows against a loop over images, what it leaves alone, and that it overrules a base's initialisation."""

import copy

import pytest
import torch

from contseg.datasets.errors import UserError
from contseg.datasets.scenario import VOID
from contseg.methods.awt import attribution, top_channels
from contseg.methods.base import StepContext
from contseg.methods.registry import build_method
from contseg.tests.unit.networks import make_images, make_labels, make_steps, student_of, taught

pytestmark = pytest.mark.numeric

FIRST, SECOND = make_steps(3, 2)


@pytest.mark.parametrize("formulation", ["intended", "released"])
@pytest.mark.parametrize("base", ["FT", "MiB"])
def test_rows_are_the_channels_of_background_that_matter_for_new_pixels(base: str, formulation: str) -> None:
    method = build_method(f"{base}+AWT[formulation={formulation}]")
    old = taught(method, FIRST)
    model = student_of(old, method, SECOND)
    before = copy.deepcopy(model.state_dict())
    images, labels = make_images(3), make_labels(SECOND, 3)
    labels[2] = 0  # shows no new class
    (transfer,) = method.warm_up
    transfer(StepContext(SECOND, model, old, lambda: zip(images.split(2), labels.split(2), strict=True)))

    drawn = student_of(old, build_method("FT"), SECOND).classifier.blocks[-1]
    row = old.classifier.blocks[0].weight[0, :, 0, 0].detach()
    with torch.no_grad():
        gap = old(images).embedding - old(torch.zeros_like(images)).embedding
    small = torch.nn.functional.interpolate(labels[:, None].double(), gap.shape[2:])[:, 0]
    new = (small >= SECOND.n_old) & (small != VOID)
    mean = sum(gap[b] * new[b] * row[:, None, None] for b in (0, 1)) / 2
    scores = mean.flatten(1).max(1).values
    kept = scores >= scores.sort(descending=True).values[len(row) // 4 - 1]
    rows = (row * kept)[:, None, None] + (drawn.weight if formulation == "released" else 0)
    block = model.classifier.blocks[-1]
    torch.testing.assert_close(block.weight, rows.expand_as(block.weight), rtol=1e-12, atol=1e-14)
    assert torch.equal(block.bias, drawn.bias)
    assert torch.equal(model.classifier.blocks[0].bias, old.classifier.blocks[0].bias)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed <= {"classifier.blocks.0.bias", "classifier.blocks.1.weight", "classifier.blocks.1.bias"}


def test_heads_that_are_no_rows_are_refused_in_one_line() -> None:
    """Those of a plugin, whose build hook does not say so; built-ins are refused where they are composed."""
    ssul = build_method("SSUL")
    old = taught(ssul, FIRST)
    (transfer,) = build_method("FT+AWT").warm_up
    with pytest.raises(UserError, match="AWT writes the rows of a 1x1 classifier"):
        transfer(StepContext(SECOND, student_of(old, ssul, SECOND), old, lambda: []))


def test_no_channel_is_taken_where_none_has_an_attribution() -> None:
    """A new class of one pixel, which no position of the feature map shows: which channels would matter?"""
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    labels[0, 1, 1] = 3
    total, images = attribution(torch.ones(1, 8, 2, 2), labels, 3, torch.ones(8))
    assert images == 1 and not top_channels(total, images, 0.25).any()
    labels[0, 0, 0] = 3
    total, images = attribution(torch.ones(1, 8, 2, 2), labels, 3, torch.ones(8))
    assert top_channels(total, images, 0.25).sum() == 2
