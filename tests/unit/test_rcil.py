"""RCIL: branches, their merging, the draws, and what pooled cubes see."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contseg.benchmark.models.load import skeleton
from contseg.benchmark.plan.model_config import ModelConfig
from contseg.datasets.errors import UserError
from contseg.methods.base import Batch, SegOutput, StepContext
from contseg.methods.losses import sent
from contseg.methods.rcil import (
    BranchDraws,
    Branches,
    PooledCube,
    branches_of,
    channel_norms,
    mix,
    pooled_cube,
    spatial_norms,
)
from contseg.methods.registry import build_method
from contseg.tests.unit.networks import TINY, make_batch, make_images, make_steps, student_of, taught

pytestmark = pytest.mark.numeric

KEPT, MERGED = build_method("RCIL"), build_method("RCIL[start=merged]")
FIRST, SECOND, THIRD = make_steps(3, 2, 1)


def test_mix_by_channel() -> None:
    first, second = torch.full((2, 4, 3, 3), 1.0), torch.full((2, 4, 3, 3), 3.0)
    mixed = mix(first, second, torch.tensor([0.1, 0.5, 0.7, 0.9]))
    assert mixed[1, :, 2, 2].tolist() == [1.0, 3.0, 2.0, 2.0]


def test_step_0_evaluates_as_the_network_without_branches_but_for_the_aspp() -> None:
    plain, doubled = (skeleton(TINY, [FIRST], build_method(m), 0).double().eval() for m in ("MiB", "RCIL"))
    with torch.no_grad():
        a, b = plain(make_images()), doubled(make_images())
    torch.testing.assert_close(a.features, b.features, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(a.embedding, b.embedding)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_what_is_doubled(name: str) -> None:
    config = ModelConfig(name, weights="none", norm="batch")
    model = skeleton(config, [FIRST], KEPT, 0)
    blocks = 16 if name == "resnet50" else 2 * 8
    assert len(branches_of(model.encoder)) == blocks and len(branches_of(model.aspp)) == 4
    assert all(b.second[0].kernel_size == (3, 3) for b in branches_of(model.encoder))


def test_group_norm_cannot_be_folded() -> None:
    with pytest.raises(UserError, match=r"model\.norm"):
        skeleton(ModelConfig("tiny", norm="group"), [FIRST], KEPT, 0)


def test_frozen_norms_fold_as_well() -> None:
    old = taught_frozen()
    model = student_of(old, MERGED, SECOND)
    with torch.no_grad():
        torch.testing.assert_close(model(make_images()).embedding, old(make_images()).embedding, rtol=1e-9, atol=1e-9)


def taught_frozen() -> nn.Module:
    model = skeleton(ModelConfig("tiny", norm="frozen"), [FIRST], MERGED, 0).double().eval()
    g = torch.Generator().manual_seed(0)
    for branches in branches_of(model):
        norm = branches.second[1]
        for buffer in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            buffer.copy_(torch.rand(buffer.shape, generator=g) + 0.5)
    return model


@pytest.mark.parametrize("start", ["kept", "merged"])
def test_merging_twice_is_exact(start: str) -> None:
    torch.manual_seed(0)
    branches = Branches(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)).double().eval()
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    for _ in range(2):
        with torch.no_grad():
            norm = branches.second[1]
            for p in (norm.weight, norm.bias, norm.running_mean, branches.second[0].weight):
                p += 0.2 * torch.randn(p.shape, dtype=torch.float64)
            mean = branches(x)
            branches.merge(start)
            torch.testing.assert_close(branches.first(x), mean, rtol=1e-12, atol=1e-12)
            same = torch.allclose(branches(x), mean, rtol=1e-10, atol=1e-12)
        assert same is (start == "merged")


def test_student_equals_teacher_when_it_starts_merged() -> None:
    for method, equal in ((MERGED, True), (KEPT, False)):
        old = taught(method, FIRST, SECOND)
        model = student_of(old, method, THIRD)
        with torch.no_grad():
            a, b = model(make_images()).embedding, old(make_images()).embedding
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9) is equal


def test_merged_branches_are_frozen_from_step_1_on() -> None:
    model = taught(KEPT, FIRST, SECOND)
    (group,) = KEPT.trainable(model, SECOND)
    trained = {id(p) for p in group["params"]}
    merged = {id(p) for b in branches_of(model) for p in b.first.parameters()}
    assert merged and trained == {id(p) for p in model.parameters()} - merged
    (everything,) = KEPT.trainable(taught(KEPT, FIRST), FIRST)
    assert len(everything["params"]) == len(list(taught(KEPT, FIRST).parameters()))


def test_a_trained_network_is_found_again_on_an_unloaded_one() -> None:
    model = taught(KEPT, FIRST, SECOND, THIRD)
    again = skeleton(TINY, [FIRST, SECOND, THIRD], KEPT, 7).double().eval()
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(make_images()).logits, again(make_images()).logits)


def draws_of(model: nn.Module, passes: int, resume_at: int | None = None) -> list[torch.Tensor]:
    term, context = BranchDraws(), StepContext(FIRST, model, None, list, seed=3)
    term.begin_step(context)
    seen = []
    for i in range(passes):
        if i == resume_at:
            model, kept = copy.deepcopy(model), {k: v.clone() for k, v in term.state_dict().items()}
            buffers = {k: v.clone() for k, v in model.state_dict().items()}
            term = BranchDraws()
            term.begin_step(context._replace(model=model))
            term.load_state_dict(kept)
            model.load_state_dict(buffers)
        seen.append(torch.cat([b.draw.clone() for b in branches_of(model)]))
        assert term(None) is None
    return seen


def test_a_draw_is_one_copy_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def noted(x: torch.Tensor, device: torch.device) -> torch.Tensor:
        sizes.append(len(x))
        return sent(x, device)

    monkeypatch.setattr("contseg.methods.rcil.sent", noted)
    model = taught(KEPT, FIRST)
    term = BranchDraws()
    term.begin_step(StepContext(FIRST, model, None, list, seed=3))
    term(None)
    assert sizes == [sum(len(b.draw) for b in branches_of(model))] * 2


def test_draws_change_resume_and_leave_the_global_generator_alone() -> None:
    model = taught(KEPT, FIRST)
    before = torch.get_rng_state()
    whole, resumed = draws_of(model, 4), draws_of(model, 4, resume_at=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    assert not torch.equal(whole[0], whole[1]) and 0.3 < whole[0].mean() < 0.7


def test_training_uses_the_draws() -> None:
    model = taught(KEPT, FIRST)
    branches = branches_of(model)[0].train()
    x = torch.randn(1, branches.second[0].in_channels, 6, 6, dtype=torch.float64)
    for draw, module in ((0.0, branches.first), (0.5, branches.second)):
        branches.draw.fill_(draw)
        torch.testing.assert_close(branches(x), module(x), rtol=1e-12, atol=1e-12)


def test_gradient_reaches_both_branches_at_step_0() -> None:
    model = taught(KEPT, FIRST).train()
    KEPT.first["draws"].begin_step(StepContext(FIRST, model, None, list))
    batch = make_batch(model, None, FIRST)
    sum(KEPT.losses(batch).values()).backward()
    for b in branches_of(model):
        assert all(p.grad.any() for p in b.parameters())


def maps(n_old: int, n_new: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    old = [torch.randn(2, c, 5, 7, generator=g, dtype=torch.float64) for c in (3, 4, n_old)]
    new = [*(a.clone() for a in old[:-1]), torch.cat([old[-1], old[-1].new_zeros(2, n_new, 5, 7)], dim=1)]
    return old, new


def test_equal_maps_have_no_loss_and_no_gradient() -> None:
    old, new = maps(4, 2)
    new = [a.requires_grad_() for a in new]
    spatial, channel = pooled_cube(old, new, 4, 2, factor=0.01, last=0.0005)
    assert not spatial.detach().any() and not channel.detach().any()
    for gradient in torch.autograd.grad((spatial + channel).sum(), new):
        assert gradient.isfinite().all() and not gradient.any()


def test_new_logits_count_as_background() -> None:
    old, new = maps(4, 2)
    moved = new[-1].clone()
    moved[:, 4:] += 1.5
    moved[:, 0] -= 3.0
    spatial, _ = pooled_cube(old, [*new[:-1], moved], 4, 2, factor=0.01, last=0.0005)
    assert spatial.abs().max() < 1e-12


def test_norms_of_a_constant_map() -> None:
    x = torch.full((1, 2, 40, 40), 3.0, dtype=torch.float64)
    # three neighbours with one of zero at either side: 2/3 of the value in both channels
    assert channel_norms(x).item() == pytest.approx(2 * 40 * 2**0.5)
    inside = torch.zeros(1, 1, 80, 80, dtype=torch.float64)
    inside[..., 40, 40] = 1.0
    # k^2 windows hold the point, each with 1 / k^2
    assert spatial_norms(inside).item() == pytest.approx(sum(1 / k for k in (4, 8, 12, 16, 20, 24)) / 6)


def slow_pooled_cube(out: SegOutput, old: SegOutput, n_old: int, n_new: int, factor: float, last: float) -> Tensor:
    """F-PCKD image by image, window by window; stages are read after their ReLU."""
    spatial, channel = [], []
    folded = torch.cat([out.logits[:, :1] + out.logits[:, n_old:].sum(1, keepdim=True), out.logits[:, 1:n_old]], 1)
    new = [*(s.clamp(min=0) for s in out.stages), out.embedding, folded]
    before = [*(s.clamp(min=0) for s in old.stages), old.embedding, old.logits]
    for number, (a, b) in enumerate(zip(before, new, strict=True)):
        logits, embedding = number == len(new) - 1, number == len(new) - 2
        for d in a**2 - b**2:
            norms = []
            for k in (4, 8, 12, 16, 20, 24):
                windows = F.pad(d, (k // 2,) * 4).unfold(1, k, 1).unfold(2, k, 1)
                norms.append(windows.mean((-1, -2)).square().sum().sqrt())
            spatial.append((last if logits else factor) * torch.stack(norms).mean())
            if not logits:
                three = F.pad(d, (0, 0, 0, 0, 1, 1)).unfold(0, 3, 1).mean(-1)
                channel.append((last if embedding else factor) * three.square().sum().sqrt())
    return math.sqrt((n_old + n_new) / n_new) * (torch.stack(spatial).mean() + torch.stack(channel).mean())


def test_the_distillation_is_the_mean_over_images_and_maps_after_activation() -> None:
    g = torch.Generator().manual_seed(1)

    def output(classes: int) -> SegOutput:
        maps = [torch.randn(3, c, 6, 9, generator=g, dtype=torch.float64) for c in (4, 5, 7, classes)]
        return SegOutput(maps[3], maps[1].relu(), maps[2], (maps[0], maps[1]))

    out, old = output(SECOND.n_classes), output(SECOND.n_old)
    labels = torch.zeros(3, 12, 18, dtype=torch.int64)
    found = PooledCube(0.3, 0.02)(Batch(torch.zeros(3, 3, 12, 18), labels, out, old, SECOND))
    expected = slow_pooled_cube(out, old, SECOND.n_old, SECOND.n_new, 0.3, 0.02)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
