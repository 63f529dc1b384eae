"""What must hold of FT's, LwF's, ILT's, MiB's and SDR's terms on any input."""

import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from datasets.scenario import VOID, Step
from methods.base import Batch, CrossEntropy, SegOutput, StepContext, Term, alone
from methods.ilt import FeatureDistillation
from methods.lwf import Distillation
from methods.mib import UnbiasedCrossEntropy, UnbiasedDistillation, background_shares
from methods.registry import build_method
from methods.sdr import Attraction, Matching, Prototypes, Repulsion, Sparsity, mean_inverse_distance
from methods.sdr_variants import (
    PrintedAttraction,
    PrintedMatching,
    PrintedRepulsion,
    ReleasedAttraction,
    ReleasedMatching,
    ReleasedPrototypes,
    ReleasedRepulsion,
    ReleasedSparsity,
    mixed_sums,
)

O, N, D = 4, 2, 6  # old channels, new ones, feature channels
C = O + N


def step(setup: str = "disjoint", index: int = 1, old: int = O, new: int = N) -> Step:
    if index == 0:
        return Step(0, setup, (), tuple(range(1, old + new)))
    return Step(index, setup, tuple(range(1, old)), tuple(range(old, old + new)))


class Data:
    """Random tensors of one batch; labels are those of the step, void among them."""

    def __init__(self, seed: int = 0, images: int = 3, setup: str = "disjoint", index: int = 1) -> None:
        g = torch.Generator().manual_seed(seed)
        self.step = step(setup, index)
        allowed = [0, *range(O, C), VOID] if setup != "sequential" and index else [*range(C), VOID]
        coarse = torch.tensor(allowed)[torch.randint(len(allowed), (images, 3, 5), generator=g)]
        self.labels = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)
        self.logits = torch.randn(images, C, 6, 10, generator=g, dtype=torch.float64) * 3
        self.old_logits = torch.randn(images, O, 6, 10, generator=g, dtype=torch.float64) * 3
        self.features = torch.randn(images, D, 3, 5, generator=g, dtype=torch.float64).abs()
        self.old_features = torch.randn(images, D, 3, 5, generator=g, dtype=torch.float64)
        self.prototypes = torch.randn(C, D, generator=g, dtype=torch.float64)

    def cut(self, images: slice | Tensor) -> "Data":
        """These images of the batch; gradients still reach the whole."""
        part = object.__new__(Data)
        part.__dict__.update(self.__dict__)
        for name in ("labels", "logits", "old_logits", "features", "old_features"):
            setattr(part, name, getattr(self, name)[images])
        return part

    def batch(self, reduce: Callable = alone) -> Batch:
        images = torch.zeros(len(self.labels), 3, 6, 10)
        out = SegOutput(self.logits, self.features, self.features)
        old = SegOutput(self.old_logits, self.old_features, self.old_features)
        return Batch(images, self.labels, out, old, self.step, reduce)

    def held(self, kind: type[Prototypes] = Prototypes) -> Prototypes:
        term = kind()
        term.prototypes, term.counts = self.prototypes.clone(), torch.ones(C, dtype=torch.int64)
        return term


INTENDED: dict[str, Callable[[Data], Term]] = {
    "ce": lambda d: CrossEntropy(),
    "kd": lambda d: Distillation(),
    "features": lambda d: FeatureDistillation(),
    "unce": lambda d: UnbiasedCrossEntropy(),
    "unkd": lambda d: UnbiasedDistillation(),
    "matching": lambda d: Matching(d.held()),
    "attraction": lambda d: Attraction(d.held()),
    "repulsion": lambda d: Repulsion(),
    "sparsity": lambda d: Sparsity(),
    "printed matching": lambda d: PrintedMatching(d.held()),
    "printed attraction": lambda d: PrintedAttraction(d.held()),
    "printed repulsion": lambda d: PrintedRepulsion(),
}
RELEASED: dict[str, Callable[[Data], Term]] = {
    "released matching": lambda d: ReleasedMatching(d.held()),
    "released attraction": lambda d: ReleasedAttraction(d.held()),
    "released repulsion": lambda d: ReleasedRepulsion(),
    "released sparsity": lambda d: ReleasedSparsity(),
}
SUPERVISED = ("ce", "unce", "attraction", "repulsion", "sparsity", "printed attraction", "printed repulsion")
SETUPS = ("sequential", "disjoint", "overlapped", "partitioned")
each_term = pytest.mark.parametrize("name", INTENDED)
each_setup = pytest.mark.parametrize("setup", SETUPS)


def gradients(value: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    """The gradients, zero where the value does not depend on the leaf."""
    if not value.requires_grad:
        return tuple(map(torch.zeros_like, leaves))
    found = torch.autograd.grad(value, leaves, allow_unused=True, retain_graph=True)
    return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True))


def value_and_gradients(term: Term, data: Data) -> tuple[Tensor, Tensor, Tensor]:
    data.logits.requires_grad_()
    data.features.requires_grad_()
    value = term(data.batch())
    assert value is not None
    return value.detach(), *gradients(value, data.logits, data.features)


# --- every term ----------------------------------------------------------------------------------------------------


@each_setup
@each_term
def test_gradient_is_that_of_the_value(name: str, setup: str) -> None:
    data = Data(1, 2, setup)
    term = INTENDED[name](data)
    leaves = (data.logits.requires_grad_(), data.features.requires_grad_())
    before = [x.detach().clone() for x in leaves]
    value = term(data.batch())
    found = gradients(value, *leaves)
    g = torch.Generator().manual_seed(3)
    for leaf, gradient in zip(leaves, found, strict=True):
        direction, h = torch.randn(leaf.shape, generator=g, dtype=leaf.dtype), 1e-6
        with torch.no_grad():
            up = term(data_with(data, leaf, leaf + h * direction).batch())
            down = term(data_with(data, leaf, leaf - h * direction).batch())
        numeric = (up - down) / (2 * h)
        torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-6, atol=1e-8)
    assert all(torch.equal(a, b) for a, b in zip(before, leaves, strict=True)), "the inputs were written to"


def data_with(data: Data, old: Tensor, new: Tensor) -> Data:
    other = object.__new__(Data)
    other.__dict__.update({k: new if v is old else v for k, v in data.__dict__.items()})
    return other


@each_setup
@each_term
def test_order_of_images_does_not_matter(name: str, setup: str) -> None:
    data = Data(2, 4, setup)
    term = INTENDED[name](data)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(term(data.cut(order).batch()), term(data.batch()), rtol=1e-12, atol=1e-14)


class Waiting(Exception):
    """A process has come to a sum that the others have not reached yet."""


class Recorded:
    """``Reduce`` of one of several processes: known results one after the other, then it waits.

    Sums are formed of the processes' own graphs, so that gradients reach every part.
    """

    def __init__(self, known: list[Tensor]) -> None:
        self.known = iter(known)

    def __call__(self, x: Tensor) -> Tensor:
        self.asked = ("sum", x)
        for result in self.known:
            return result
        raise Waiting

    def max(self, x: Tensor) -> Tensor:
        self.asked = ("max", x.detach())
        for result in self.known:
            return result
        raise Waiting


def in_processes(evaluate: Callable[[int, Recorded], Tensor], processes: int) -> list[Tensor]:
    """What every process gets: each runs up to its next sum, which is then formed, and starts again."""
    known: list[Tensor] = []
    while True:
        results, asked = [], []
        for rank in range(processes):
            reduce = Recorded(known)
            try:
                results.append(evaluate(rank, reduce))
            except Waiting:
                asked.append(reduce.asked)
        if len(results) == processes:
            return results
        assert not results and len({kind for kind, _ in asked}) == 1, "the processes do not call the same sums"
        parts = torch.stack([x for _, x in asked])
        known.append(parts.sum(0) if asked[0][0] == "sum" else parts.amax(0))


@pytest.mark.parametrize("parts", [(2, 2), (1, 3), (1, 1, 2)], ids=str)
@each_setup
@each_term
def test_split_over_processes_equals_the_global_batch(name: str, setup: str, parts: tuple[int, ...]) -> None:
    data = Data(4, sum(parts), setup)
    data.labels[0] = VOID  # one process of (1, 3) sees nothing but void
    expected = value_and_gradients(INTENDED[name](data), data)

    def process(rank: int, reduce: Recorded) -> Tensor:
        images = slice(sum(parts[:rank]), sum(parts[: rank + 1]))
        return INTENDED[name](data)(data.cut(images).batch(reduce))

    values = in_processes(process, len(parts))
    for value in values:
        torch.testing.assert_close(value.detach(), expected[0], rtol=1e-12, atol=1e-14)
    found = gradients(values[-1], data.logits, data.features)
    for got, want in zip(found, expected[1:], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-13)


@each_setup
@pytest.mark.parametrize("name", SUPERVISED)
def test_void_is_never_seen(name: str, setup: str) -> None:
    data = Data(5, 3, setup)
    value, *found = value_and_gradients(INTENDED[name](data), data)
    void, small = data.labels == VOID, data.labels[:, ::2, ::2] == VOID
    assert void.any()
    assert not found[0].movedim(1, -1)[void].any()
    assert not found[1].movedim(1, -1)[small].any()
    other = Data(5, 3, setup)
    other.logits.movedim(1, -1)[void] = 7.0
    other.features.movedim(1, -1)[small] = 1e6
    same, *found = value_and_gradients(INTENDED[name](data), other)
    torch.testing.assert_close(same, value, rtol=1e-12, atol=1e-14)
    assert all(x.isfinite().all() for x in found)


@pytest.mark.parametrize("name", [*INTENDED, *RELEASED])
@pytest.mark.parametrize("label", [0, O, VOID], ids=["background", "one new class", "void"])
def test_one_label_alone_is_finite(name: str, label: int) -> None:
    data = Data(6)
    data.labels.fill_(label)
    for x in value_and_gradients({**INTENDED, **RELEASED}[name](data), data):
        assert x.isfinite().all()


@pytest.mark.parametrize("name", [*INTENDED, *RELEASED])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_outputs_give_a_full_precision_loss(name: str, dtype: torch.dtype) -> None:
    data = Data(7)
    for key in ("logits", "old_logits", "features", "old_features"):
        setattr(data, key, getattr(data, key).to(dtype))
    data.prototypes = data.prototypes.float()
    value, *found = value_and_gradients({**INTENDED, **RELEASED}[name](data), data)
    assert value.dtype == torch.float32
    assert value.isfinite() and all(x.isfinite().all() for x in found)


@pytest.mark.parametrize(
    "name", [n for n in [*INTENDED, *RELEASED] if n.split()[-1] in ("matching", "attraction", "repulsion", "sparsity")]
)
@pytest.mark.parametrize("content", [0.0, 1.0])
def test_zero_distance_has_zero_gradient(name: str, content: float) -> None:
    data = Data(8)
    data.features.fill_(content)
    data.prototypes.fill_(content)
    value, _, found = value_and_gradients({**INTENDED, **RELEASED}[name](data), data)
    assert found.isfinite().all()
    if "sparsity" not in name:
        assert value == 0
        assert not found.any()


# --- distillation --------------------------------------------------------------------------------------------------


def test_distillation_of_a_model_with_itself_has_no_gradient() -> None:
    data = Data(9)
    data.old_logits = data.logits[:, :O].detach().clone()
    data.old_features = data.features.detach().clone()
    for name in ("kd", "features"):
        _, *found = value_and_gradients(INTENDED[name](data), data)
        assert max(x.abs().max() for x in found) < 1e-16


def test_unbiased_distillation_has_no_gradient_after_the_initialisation() -> None:
    data = Data(10)
    shared = data.old_logits[:, :1] - math.log(N + 1)
    data.logits = torch.cat([shared, data.old_logits[:, 1:], shared.expand(-1, N, -1, -1)], 1)
    _, found, _ = value_and_gradients(UnbiasedDistillation(), data)
    assert found.abs().max() < 1e-16


def test_distillation_sees_void() -> None:
    data = Data(11)
    _, found, _ = value_and_gradients(UnbiasedDistillation(), data)
    assert found.movedim(1, -1)[data.labels == VOID].any(-1).all()


# --- MiB -----------------------------------------------------------------------------------------------------------


def slow_unbiased(data: Data) -> tuple[Tensor, Tensor]:
    """Both losses from probabilities, pixel by pixel."""
    p, q = data.logits.softmax(1), data.old_logits.softmax(1)
    ce, kd = [], []
    for b, i, j in torch.cartesian_prod(*(torch.arange(n) for n in data.labels.shape)).tolist():
        y, here = int(data.labels[b, i, j]), p[b, :, i, j]
        own = y >= O or (data.step.setup == "sequential" and y > 0)
        if y != VOID:
            ce.append(-(here[y] if own else here[:O].sum()).log())
        mixed = torch.cat([(here[:1] + here[O:].sum()), here[1:O]])
        kd.append(-(q[b, :, i, j] * mixed.log()).sum() / O)
    return torch.stack(ce).mean(), torch.stack(kd).mean()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), setup=st.sampled_from(SETUPS), images=st.integers(1, 2))
def test_unbiased_losses_equal_their_definition(seed: int, setup: str, images: int) -> None:
    data = Data(seed, images, setup)
    data.labels[0, 0, 0] = 0
    data.logits.requires_grad_()
    for term, expected in zip((UnbiasedCrossEntropy(), UnbiasedDistillation()), slow_unbiased(data), strict=True):
        value = term(data.batch())
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(*(gradients(x, data.logits)[0] for x in (value, expected)), rtol=1e-10, atol=1e-15)


def test_unbiased_losses_in_pieces_equal_the_whole() -> None:
    """More pixels than a tile holds, several images to a tile, and both at once."""
    g = torch.Generator().manual_seed(0)
    for size in ((1, 3, 300, 700), (5, 3, 9, 7), (2, 3, 450, 450)):
        logits = torch.randn(*size, generator=g).requires_grad_()
        old = torch.randn(size[0], 2, *size[2:], generator=g)
        labels = torch.tensor([0, 2, VOID])[torch.randint(3, (size[0], *size[2:]), generator=g)]
        out = SegOutput(logits, logits[:, :1], logits[:, :1])
        batch = Batch(labels, labels, out, SegOutput(old, old, old), step(old=2, new=1))
        p = logits.softmax(1)
        target = torch.stack([p[:, :2].sum(1), p[:, 2]], 1).log()
        ce = F.nll_loss(target, labels.div(2, rounding_mode="floor").masked_fill(labels == VOID, -1), ignore_index=-1)
        kd = -(old.softmax(1) * torch.stack([p[:, 0] + p[:, 2], p[:, 1]], 1).log()).mean()
        for term, expected in ((UnbiasedCrossEntropy(), ce), (UnbiasedDistillation(), kd)):
            value = term(batch)
            torch.testing.assert_close(value, expected)
            torch.testing.assert_close(*(gradients(x, logits)[0] for x in (value, expected)), rtol=1e-4, atol=1e-9)


def test_unbiased_cross_entropy_without_old_classes_is_cross_entropy() -> None:
    data = Data(12, setup="sequential")
    data.step, data.old_logits = step(old=1, new=C - 1), data.old_logits[:, :1]
    for unbiased, plain in zip(
        value_and_gradients(UnbiasedCrossEntropy(), data), value_and_gradients(CrossEntropy(), data), strict=True
    ):
        torch.testing.assert_close(unbiased, plain, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_unbiased_losses_survive_extreme_logits(scale: float) -> None:
    data = Data(13)
    data.logits, data.old_logits = (data.logits * scale).float(), (data.old_logits * scale).float()
    for term in (UnbiasedCrossEntropy(), UnbiasedDistillation()):
        for x in value_and_gradients(term, data):
            assert x.isfinite().all()


@settings(max_examples=20, deadline=None)
@given(groups=st.lists(st.integers(1, 5), min_size=2, max_size=4), seed=st.integers(0, 1000))
def test_initialisation_keeps_the_old_probabilities(groups: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    groups[0] += 1  # background and at least one class
    blocks = nn.ModuleList(nn.Conv2d(7, n, 1, dtype=torch.float64) for n in groups)
    x, n_old = torch.randn(2, 7, 3, 3, dtype=torch.float64), sum(groups[:-1])
    before = torch.cat([block(x) for block in blocks[:-1]], 1).softmax(1)
    model = SimpleNamespace(classifier=SimpleNamespace(blocks=blocks))
    background_shares(model, step(index=len(groups) - 1, old=n_old, new=groups[-1]))
    after = torch.cat([block(x) for block in blocks], 1).softmax(1)
    torch.testing.assert_close(after[:, 1:n_old], before[:, 1:], rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(after[:, :1] + after[:, n_old:].sum(1, keepdim=True), before[:, :1])
    assert torch.equal(after[:, 0], after[:, -1])


# --- SDR -----------------------------------------------------------------------------------------------------------


def positions(data: Data) -> dict[int, Tensor]:
    """Features (n, D) of each class of the batch."""
    labels, flat = data.labels[:, ::2, ::2].flatten(), data.features.movedim(1, -1).flatten(0, 2)
    return {int(c): flat[labels == c] for c in labels.unique() if c != VOID}


def slow_attraction(data: Data) -> Tensor:
    trusted = 0 if data.step.setup == "sequential" else 1
    found = [(f - data.prototypes[c]).square().mean() for c, f in positions(data).items() if c >= trusted]
    return torch.stack(found).mean()


def slow_repulsion(data: Data) -> Tensor:
    means = [f.mean(0) for f in positions(data).values()]
    return torch.stack([1 / (a - b).norm() for i, a in enumerate(means) for b in means[:i]]).mean()


def slow_sparsity(data: Data) -> Tensor:
    ratios = [(f / f.max()) for f in positions(data).values()]
    return torch.cat([r.exp().sum(1) / r.sum(1) for r in ratios]).mean()


def slow_matching(data: Data) -> Tensor:
    labels, flat = data.labels[:, ::2, ::2].flatten(), data.features.movedim(1, -1).flatten(0, 2)
    guess = data.old_logits.argmax(1)[:, ::2, ::2].flatten()
    pseudo = labels if data.step.setup == "sequential" else torch.where(labels == 0, guess, 0)
    gaps = [(flat[pseudo == c].mean(0) - data.prototypes[c]).square().mean() for c in range(1, O) if c in pseudo]
    return torch.stack(gaps).mean()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), setup=st.sampled_from(SETUPS), images=st.integers(1, 4))
def test_latent_terms_equal_their_definition(seed: int, setup: str, images: int) -> None:
    data = Data(seed, images, setup)
    data.labels[0, :4, :4] = torch.tensor([0, O]).repeat_interleave(2)[:, None].expand(4, 4)
    data.old_logits[0, 1, :2, :4] = 50.0  # at least one old foreground class is predicted
    if setup == "sequential":
        data.labels[0, 4:, :2] = 1
    data.features.requires_grad_()
    slow = (slow_matching, slow_attraction, slow_repulsion, slow_sparsity)
    terms = (Matching(data.held()), Attraction(data.held()), Repulsion(), Sparsity())
    for term, oracle in zip(terms, slow, strict=True):
        value, expected = term(data.batch()), oracle(data)
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(*(gradients(x, data.features)[0] for x in (value, expected)), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 25, 26, 27, 101, 151])
def test_repulsion_is_exact_in_single_precision(classes: int) -> None:
    g = torch.Generator().manual_seed(classes)
    centroids = (1 + 0.01 * torch.randn(classes, 64, generator=g)).requires_grad_()  # close to each other, far from 0
    exact = centroids.detach().double().requires_grad_()
    i, j = torch.tril_indices(classes, classes, offset=-1)
    expected = (1 / (exact[i] - exact[j]).norm(dim=1)).mean()
    value = mean_inverse_distance(centroids, torch.ones(classes, dtype=torch.bool))
    torch.testing.assert_close(value.double(), expected, rtol=2e-4, atol=0)
    (want,) = gradients(expected, exact)
    (got,) = gradients(value, centroids)
    torch.testing.assert_close(got.double(), want, rtol=2e-4, atol=2e-5 * want.abs().max().item())


def test_repulsion_of_equal_centroids_counts_nothing() -> None:
    centroids = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 4.0]], requires_grad=True)
    value = mean_inverse_distance(centroids, torch.ones(3, dtype=torch.bool))
    assert value.item() == pytest.approx(2 * 0.5 / 3)
    (found,) = gradients(value, centroids)
    assert found.isfinite().all()


def test_sparsity_leaves_an_all_zero_vector_out() -> None:
    data, without = Data(14), Data(14)
    data.features[0, :, 0, 0] = 0
    without.labels[0, :2, :2] = VOID
    data.labels[0, :2, :2] = O
    value, _, found = value_and_gradients(Sparsity(), data)
    torch.testing.assert_close(value, Sparsity()(without.batch()))
    assert found.isfinite().all()
    assert not found[0, :, 0, 0].any()


def test_sparsity_prefers_sparse_features() -> None:
    data = Data(15)
    dense, sparse = torch.ones_like(data.features), torch.zeros_like(data.features)
    sparse[:, 0] = 1
    values = []
    for data.features in (dense, sparse):
        values.append(Sparsity()(data.batch()).item())
    assert values == pytest.approx([math.e, math.e + D - 1])


def test_sparsity_has_no_opinion_on_negative_features() -> None:
    data = Data(16)
    data.features = -data.features
    value, _, found = value_and_gradients(Sparsity(), data)
    assert value == 0
    assert not found.any()


@each_setup
@pytest.mark.parametrize("index", [0, 1])
def test_prototypes_are_the_mean_of_all_positions_seen(setup: str, index: int) -> None:
    batches = [Data(20 + k, 2, setup, index) for k in range(3)]
    term = Prototypes()
    for data in batches:
        assert term(data.batch()) is None
    seen = [positions(data) for data in batches]
    background = setup == "sequential" or (index == 0 and setup != "overlapped")
    for c in range(C):
        every = torch.cat([p[c] for p in seen if c in p] or [torch.zeros(0, D)])
        if len(every) and (c > 0 or background):
            torch.testing.assert_close(term.prototypes[c], every.mean(0), rtol=1e-12, atol=1e-14)
            assert term.counts[c] == len(every)
        else:
            assert term.counts[c] == 0
            assert not term.prototypes[c].any()


def test_prototypes_grow_and_survive_a_round_trip() -> None:
    model = nn.Linear(1, 1)
    term = Prototypes()
    term(Data(30, setup="sequential", index=0).batch())
    old = term.prototypes.clone()
    again = Prototypes()
    again.load_state_dict({k: v.clone() for k, v in term.state_dict().items()})
    again.begin_step(StepContext(step(old=C, new=3), model, model, list))
    assert again.prototypes.shape == (C + 3, D)
    assert torch.equal(again.prototypes[:C], old)
    assert again.counts.tolist() == [*term.counts.tolist(), 0, 0, 0]


def test_prototypes_carry_no_gradient() -> None:
    data = Data(31)
    data.features.requires_grad_()
    term = data.held()
    term(data.batch())
    assert not term.prototypes.requires_grad


def test_a_class_without_a_prototype_is_neither_attracted_nor_matched() -> None:
    data = Data(32)
    held = data.held()
    held.counts.zero_()
    for term in (Attraction(held), Matching(held)):
        value, _, found = value_and_gradients(term, data)
        assert value == 0
        assert not found.any()


# --- SDR as released: the findings, as literal facts ----------------------------------------------------------------


def mixed(counts: list[int]) -> Data:
    """Feature channel c is c everywhere; image b has ``counts[b]`` positions of class O, the rest is void."""
    data = Data(40, len(counts))
    data.features = torch.arange(D, dtype=torch.float64)[None, :, None, None].expand(len(counts), D, 3, 5).clone()
    labels = torch.full((len(counts), 15), VOID)
    for b, n in enumerate(counts):
        labels[b, :n] = O
    data.labels = labels.view(-1, 3, 5).repeat_interleave(2, 1).repeat_interleave(2, 2)
    return data


def test_released_reshape_mixes_channels_between_images() -> None:
    mean = mixed_sums(mixed([3, 2]).batch())[O] / 5
    torch.testing.assert_close(mean, torch.tensor([0.4, 2, 3.6, 3, 1.8, 4.2], dtype=torch.float64))
    mean = mixed_sums(mixed([5]).batch())[O] / 5
    torch.testing.assert_close(mean, torch.arange(D, dtype=torch.float64))


def test_released_repulsion_and_prototypes_are_right_for_one_image() -> None:
    data = Data(41, 1)
    torch.testing.assert_close(ReleasedRepulsion()(data.batch()), Repulsion()(data.batch()))
    data = Data(41, 1, "sequential")
    pair = Prototypes(), ReleasedPrototypes()
    for term in pair:
        term(data.batch())
    torch.testing.assert_close(pair[0].prototypes, pair[1].prototypes)


def test_released_attraction_weighs_the_newest_class_most() -> None:
    data = Data(42, 1, "sequential")
    data.labels = torch.arange(5).repeat_interleave(2).expand(1, 6, 10).clone()
    found = []
    for c in range(5):
        data.prototypes = torch.zeros(C, D, dtype=torch.float64)
        data.features = torch.zeros_like(data.features)
        data.features[:, :, :, c] = 1.0
        found.append(ReleasedAttraction(data.held())(data.batch()).item())
    assert found == pytest.approx([0.00032, 0.0016, 0.008, 0.04, 0.2])


def test_released_matching_is_not_zero_at_the_prototypes() -> None:
    data = Data(43, 1, "sequential")
    data.labels.fill_(2)
    data.features = data.prototypes[2][None, :, None, None].expand(1, D, 3, 5).clone()
    assert Matching(data.held())(data.batch()) < 1e-30
    assert ReleasedMatching(data.held())(data.batch()) > 0.01


def test_released_prototypes_skip_the_lowest_class_for_background() -> None:
    data = Data(44)
    data.labels = torch.where(data.labels == 0, O, data.labels)
    term = data.held(ReleasedPrototypes)
    term(data.batch())
    assert term.counts[O] == 1
    assert term.counts[O + 1] > 1


# --- recipes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["FT", "LwF", "ILT", "MiB"])
@pytest.mark.parametrize("formulation", ["intended", "released", "printed"])
def test_the_add_on_adds_its_four_terms(base: str, formulation: str) -> None:
    data = Data(50)
    plain, full = build_method(base), build_method(f"{base}+SDR[formulation={formulation}]")
    assert set(full.terms) - set(plain.terms) == {"prototypes", "matching", "attraction", "repulsion", "sparsity"}
    assert full.first["prototypes"] is full.terms["prototypes"]
    full.terms["prototypes"](data.batch())
    values, expected = full.losses(data.batch()), plain.losses(data.batch())
    assert list(values) == [*expected, "matching", "attraction", "repulsion", "sparsity"]
    for name, value in expected.items():
        assert torch.equal(values[name], value)


def test_each_latent_term_can_be_left_out() -> None:
    assert list(build_method("SDR[matching=none,attraction=0,repulsion=none,sparsity=none]").terms) == ["unce", "unkd"]
    assert list(build_method("FT+SDR[attraction=none,repulsion=none,sparsity=none]").terms) == [
        "ce",
        "prototypes",
        "matching",
    ]
    assert list(build_method("FT+SDR[matching=none,attraction=none]").terms) == ["ce", "repulsion", "sparsity"]


def test_weights_of_the_recipes() -> None:
    weights = {
        name: {n: t.weight for n, t in build_method(name).terms.items()} for name in ("LwF", "ILT", "MiB", "SDR")
    }
    latent = {"prototypes": 1, "matching": 1e-2, "attraction": 1e-3, "repulsion": 1e-3, "sparsity": 1e-3}
    assert weights == {
        "LwF": {"ce": 1, "kd": 100},
        "ILT": {"ce": 1, "kd": 100, "features": 100},
        "MiB": {"unce": 1, "unkd": 10},
        "SDR": {"unce": 1, "unkd": 100, **latent},
    }
    assert build_method("MiB").init is background_shares
    assert build_method("SDR").init is build_method("FT").init
