"""DFT*: what trains, what the reserved rows are, and how many of them are needed."""

import pytest
import torch

from contseg.datasets.errors import UserError
from contseg.datasets.scenario import VOID
from contseg.methods.registry import build_method
from contseg.tests.unit.networks import make_batch, make_steps, student_of, taught
from contseg.tests.unit.probe import grid

pytestmark = pytest.mark.numeric

FIRST, SECOND, THIRD = make_steps(3, 2, 1)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("DFTStar", [{"classifier.blocks.1"}, {"classifier.blocks.2"}]),
        ("DFTStar[reserve=3]", [{"classifier.blocks.1", "heads.reserve"}, {"classifier.blocks.2"}]),
        ("DFTStar[reserve=4]", [{"classifier.blocks.1", "heads.reserve"}, {"classifier.blocks.2", "heads.reserve"}]),
    ],
)
def test_only_new_rows_and_those_to_come_train(name: str, parts: list[set[str]]) -> None:
    method = build_method(name)
    for t, expected in enumerate(parts, 1):
        step = (FIRST, SECOND, THIRD)[t]
        model = taught(method, *(FIRST, SECOND, THIRD)[: t + 1])
        trained = {id(p) for g in method.hook("trainable", step)(model, step) for p in g["params"]}
        assert {n.rpartition(".")[0] for n, p in model.named_parameters() if id(p) in trained} == expected


def test_loss_is_cross_entropy_over_all_rows_over_valid_pixels() -> None:
    method = build_method("DFTStar[reserve=3]")
    model = student_of(taught(method, FIRST), method, SECOND)
    batch = make_batch(model, None, SECOND)
    rows = torch.cat([batch.out.logits, batch.out.extra["reserve"]], 1)
    assert rows.shape[1] == 1 + 3 + 3  # background, the classes of step 0, one row for each of the others
    z = torch.nn.functional.interpolate(rows, batch.labels.shape[1:], mode="bilinear").movedim(1, -1)
    valid = batch.labels != VOID
    own = z[valid].gather(1, batch.labels[valid][:, None])[:, 0]
    expected = (z[valid].exp().sum(1).log() - own).mean()
    assert not valid.all()
    torch.testing.assert_close(method.terms["ce"](batch), expected, rtol=1e-12, atol=0)


def test_new_rows_are_the_next_reserved_ones_and_no_score_changes() -> None:
    method = build_method("DFTStar[reserve=4]")
    old = taught(method, FIRST)
    reserved = old.heads["reserve"]
    start = old
    for step, own in ((SECOND, slice(0, 2)), (THIRD, slice(2, 3))):
        model = student_of(start, method, step)
        assert torch.equal(model.classifier.blocks[-1].weight, reserved.weight[own])
        assert torch.equal(model.classifier.blocks[-1].bias, reserved.bias[own])
        before, after = (make_batch(m, None, FIRST).out for m in (old, model))
        scores = [torch.cat([out.logits, out.extra["reserve"]], 1) for out in (before, after)]
        torch.testing.assert_close(*scores, rtol=1e-12, atol=1e-12)
        start = model
    assert model.heads["reserve"](before.embedding).shape[1] == 1


def test_step_0_is_that_of_fine_tuning_unless_rows_are_reserved() -> None:
    keys = {name: grid(method=name).runs[0].cells[0].node.key for name in ("FT", "DFTStar", "DFTStar[reserve=3]")}
    assert keys["DFTStar"] == keys["FT"] != keys["DFTStar[reserve=3]"]


def test_too_few_reserved_rows_are_one_line() -> None:
    with pytest.raises(UserError) as caught:
        grid(method="DFTStar[reserve=1]", scenario="mini/1-1/overlapped")
    assert "3 classes after step 0; write reserve=3, or 0" in str(caught.value)
