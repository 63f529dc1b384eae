"""EWF: the share of the new state, what is fused, what is frozen."""

import pytest
import torch

from contseg.methods.base import StepContext
from contseg.methods.ewf import ewf, fusion_weight
from contseg.methods.registry import build_method
from contseg.tests.unit.networks import make_steps, student_of, taught

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize(("n_old", "n_new", "alpha"), [(16, 1, 0.2425), (16, 5, 0.4880), (101, 50, 0.5754)])
def test_share_of_the_new_state_in_known_tasks(n_old: int, n_new: int, alpha: float) -> None:
    assert fusion_weight(n_old, n_new) == pytest.approx(alpha, abs=5e-5)


def test_every_old_tensor_is_fused_and_no_new_one() -> None:
    method = build_method("MiB+EWF")
    first, step = make_steps(3, 2)
    old = taught(method, first)
    model = student_of(old, method, step)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor += 1
    trained = {k: v.clone() for k, v in model.state_dict().items()}
    for fuse in method.endings(step):
        fuse(StepContext(step, model, old, list))
    alpha, before = (2 / 6) ** 0.5, old.state_dict()
    assert any("running_var" in k for k in before)
    for name, fused in model.state_dict().items():
        if name in before and fused.is_floating_point():
            torch.testing.assert_close(
                fused, (1 - alpha) * before[name] + alpha * trained[name], rtol=1e-12, atol=1e-12
            )
        else:
            assert torch.equal(fused, trained[name])


def test_nothing_is_fused_at_step_0() -> None:
    (step,) = make_steps(3)
    assert build_method("FT+EWF").endings(step) == []


def test_only_classifiers_of_earlier_steps_are_frozen() -> None:
    steps = make_steps(3, 2, 1)
    method = build_method("FT+EWF")
    for t, step in enumerate(steps):
        model = taught(method, *steps[: t + 1])
        (group,) = method.hook("trainable", step)(model, step)
        trained = {id(p) for p in group["params"]}
        frozen = {name for name, p in model.named_parameters() if id(p) not in trained}
        assert frozen == {f"classifier.blocks.{b}.{kind}" for b in range(t) for kind in ("weight", "bias")}


def test_brings_no_loss() -> None:
    assert ewf().terms == {} and ewf().first == {}
