"""Sparsity: the published ratio where no feature is negative, and bounded where some are."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from contseg.datasets.scenario import VOID
from contseg.methods.base import Batch, SegOutput
from contseg.methods.sdr import TINY, Sparsity, class_peaks, scaled_sums
from contseg.methods.sdr_variants import ReleasedSparsity
from contseg.tests.unit.terms import C, D, Data, O, gradients, positions, step, value_and_gradients
from contseg.tests.unit.test_losses import Recorded, in_processes

pytestmark = pytest.mark.numeric


def slow_sparsity(data: Data) -> Tensor:
    """Class by class, with sizes, and the constant that negative features add to the denominator."""
    ratios = []
    for f in positions(data).values():
        peak = f.abs().max()
        phi = (-f.min()).clamp(min=0).detach() / peak.detach()
        a = f.abs() / peak
        ratios.append(a.exp().sum(1) / (a.sum(1) + phi))
    return torch.cat(ratios).mean()


def signed(seed: int, images: int = 3, setup: str = "disjoint", index: int = 1) -> Data:
    data = Data(seed, images, setup, index)
    data.features = data.old_features.clone()  # normal numbers
    return data


@pytest.mark.parametrize("make", [Data, signed])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_its_definition(make: type[Data], seed: int) -> None:
    data = make(seed)
    data.features.requires_grad_()
    value, expected = Sparsity()(data.batch()), slow_sparsity(data)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(*(gradients(x, data.features)[0] for x in (value, expected)), rtol=1e-9, atol=1e-13)


def published(batch: Batch) -> Tensor:
    """The ratio of the features as they are, signs and all: what the term was before features could be negative."""
    peaks = class_peaks(batch, batch.class_hot, signed=True)
    scale = torch.where(peaks > 0, 1 / torch.where(peaks > 0, peaks, 1), 0)
    exponentials, sums = scaled_sums(batch.flat_features, batch.class_hot, scale, signed=True)
    counted = sums > TINY
    ratios = torch.where(counted, exponentials / torch.where(counted, sums, 1), 0)
    return batch.reduce(ratios.sum()) / batch.reduce(counted.sum().to(ratios.dtype)).clamp(min=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["dense", "ReLU", "sparse", "tiny", "small vectors", "zero"])
def test_without_a_negative_feature_it_is_the_published_ratio_to_the_last_bit(kind: str, dtype: torch.dtype) -> None:
    data, g = signed(3, 4), torch.Generator().manual_seed(0)
    f = data.features.to(dtype)
    few = torch.rand(f.shape, generator=g) < 0.2
    shrunk = 10.0 ** (-8 * torch.rand(4, 1, 3, 5, generator=g, dtype=dtype))
    data.features = {
        "dense": f.abs(),
        "ReLU": f.relu(),
        "sparse": f.relu() * few,
        "tiny": f.abs() * 1e-16,
        "small vectors": f.abs() * shrunk,
        "zero": f * 0,
    }[kind].requires_grad_()
    a, b = Sparsity()(data.batch()), published(data.batch())
    assert torch.equal(a, b)
    assert torch.equal(*(gradients(x, data.features)[0] for x in (a, b)))


def bounds(data: Data) -> tuple[float, Tensor]:
    """Of the value, and of each element of the gradient: (B, D, h, w)."""
    value, features = 0.0, data.features.detach().double()
    gradient = torch.full(features.shape, torch.inf, dtype=torch.float64)
    small = data.labels[:, ::2, ::2]
    for c in set(small.unique().tolist()) - {VOID}:
        here = (small == c)[:, None].expand_as(features)
        peak = features[here].abs().max().item()
        phi = max(max(0.0, -features[here].min().item()) / peak, TINY) if peak else 1.0
        value = max(value, math.e * D / phi)
        gradient[here] = 2 * math.e * (D + 1) / (phi**2 * peak) if peak else 0.0
    gradient[(small == VOID)[:, None].expand_as(features)] = 0.0
    return value, gradient


KINDS = ("signed", "hard swish", "sparse", "tiny", "cancelling", "small vectors", "one negative")


def odd_features(kind: str, seed: int, dtype: torch.dtype, exponent: float) -> Data:
    data, g = signed(seed, 2), torch.Generator().manual_seed(seed)
    f = data.features
    few = torch.rand(f.shape, generator=g, dtype=torch.float64) < 0.1
    cancelling = f - f.mean(1, keepdim=True) + 10.0**-exponent / D  # each position sums to 10^-exponent
    shrunk = 10.0 ** (-exponent * torch.rand(2, 1, 3, 5, generator=g, dtype=torch.float64))
    one = f.abs()
    one[0, 0, 0, 0] *= -(10.0**-exponent)
    data.features = {
        "signed": f,
        "hard swish": f * (f + 3).clamp(0, 6) / 6,
        "sparse": f * few,
        "tiny": f * 10.0**-exponent,
        "cancelling": cancelling,
        "small vectors": f * shrunk,
        "one negative": one,
    }[kind].to(dtype)
    return data


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    exponent=st.floats(0, 12),
)
@example(kind="cancelling", seed=0, dtype=torch.float64, exponent=3.99)
@example(kind="tiny", seed=0, dtype=torch.float16, exponent=7.5)
def test_value_and_gradient_are_bounded(kind: str, seed: int, dtype: torch.dtype, exponent: float) -> None:
    data = odd_features(kind, seed, dtype, exponent)
    value, _, found = value_and_gradients(Sparsity(), data)
    largest, steepest = bounds(data)
    assert value.isfinite() and 0 <= value <= largest * 1.0001
    size = found.double().abs()
    ceiling = torch.finfo(dtype).max  # a gradient in half precision is cut where that ends
    assert (size.isfinite() | (steepest > ceiling)).all()
    assert (size.nan_to_num(posinf=ceiling) <= steepest * 1.01).all()


def test_a_sum_that_nearly_cancels_is_no_reason_to_move() -> None:
    """D / S and D / S^2 at a sum of 1.01e-4: what the ratio of signed features had for value and gradient."""
    data = Data(4, 1)
    data.labels.fill_(O)
    data.features = torch.zeros_like(data.features)
    data.features[:, 0], data.features[:, 1] = 1.0, -1 + 1.01e-4
    value, _, found = value_and_gradients(Sparsity(), data)
    assert 1 < value < 4 and found.abs().max() < 1
    data.features.requires_grad_()
    before = published(data.batch())
    assert before > 1e4 and gradients(before, data.features)[0].abs().max() > 1e6


def test_negative_features_count_by_their_size() -> None:
    data = Data(16)
    data.features = -data.features
    value, _, found = value_and_gradients(Sparsity(), data)
    ratios = [f / f.min() for f in positions(data).values()]
    expected = torch.cat([r.exp().sum(1) / (r.sum(1) + 1) for r in ratios]).mean()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    assert found.any()


def test_it_is_continuous_where_the_first_feature_turns_negative() -> None:
    data = Data(17)
    values = []
    for x in (1e-9, 0.0, -1e-9):
        data.features[0, 0, 0, 0] = x
        values.append(Sparsity()(data.batch()).item())
    assert values == pytest.approx([values[1]] * 3, rel=1e-7)


@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1e6])
def test_the_unit_of_the_features_does_not_matter(scale: float) -> None:
    data, other = signed(18), signed(18)
    other.features = other.features * scale
    (a, _, da), (b, _, db) = (value_and_gradients(Sparsity(), x) for x in (data, other))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    torch.testing.assert_close(da, db * scale, rtol=1e-10, atol=1e-14)


def test_a_class_whose_largest_feature_squared_is_no_number_is_left_out() -> None:
    data = Data(19, 1)
    data.labels.fill_(O)
    data.features = torch.full_like(data.features, 1e-25).float()
    value, _, found = value_and_gradients(Sparsity(), data)
    assert value == 0 and not found.any()


@pytest.mark.parametrize("parts", [(2, 2), (1, 3), (1, 1, 2)], ids=str)
def test_processes_find_the_same_peaks(parts: tuple[int, ...]) -> None:
    data = signed(5, sum(parts))
    expected = value_and_gradients(Sparsity(), data)

    def process(rank: int, reduce: Recorded) -> Tensor:
        images = slice(sum(parts[:rank]), sum(parts[: rank + 1]))
        return Sparsity()(data.cut(images).batch(reduce))

    values = in_processes(process, len(parts))
    for value in values:
        torch.testing.assert_close(value.detach(), expected[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(values[-1], data.features)[0], expected[2], rtol=1e-10, atol=1e-13)


def test_more_positions_than_a_tile() -> None:
    g = torch.Generator().manual_seed(0)
    f = torch.randn(3, 40, 200, 220, generator=g, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([0, O, C - 1, VOID])[torch.randint(4, (3, 200, 220), generator=g)]
    out = SegOutput(f[:, :1], f, f)
    value = Sparsity()(Batch(labels, labels, out, None, step()))
    flat, y = f.movedim(1, -1).flatten(0, 2), labels.flatten()
    ratios = []
    for c in (0, O, C - 1):
        a = flat[y == c].abs() / flat[y == c].abs().max()
        phi = (-flat[y == c].min() / flat[y == c].abs().max()).detach()
        ratios.append(a.exp().sum(1) / (a.sum(1) + phi))
    expected = torch.cat(ratios).mean()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(*(gradients(x, f)[0] for x in (value, expected)), rtol=1e-9, atol=1e-15)


def test_an_all_zero_vector_is_left_out() -> None:
    data, without = Data(14), Data(14)
    data.features[0, :, 0, 0] = 0
    without.labels[0, :2, :2] = VOID
    data.labels[0, :2, :2] = O
    value, _, found = value_and_gradients(Sparsity(), data)
    torch.testing.assert_close(value, Sparsity()(without.batch()))
    assert found.isfinite().all()
    assert not found[0, :, 0, 0].any()


def test_value_of_equal_features_and_of_a_single_one() -> None:
    data = Data(15)
    dense, single = torch.ones_like(data.features), torch.zeros_like(data.features)
    single[:, 0] = 1
    values = []
    for data.features in (dense, single):
        values.append(Sparsity()(data.batch()).item())
    assert values == pytest.approx([math.e, math.e + D - 1])


def test_the_release_keeps_its_signs() -> None:
    data = signed(16)
    data.labels.clamp_(max=O)  # no void, which would be a class of its own
    value, _, _ = value_and_gradients(ReleasedSparsity(), data)
    ratios = [f / (f.max() + 1e-15) for f in positions(data).values()]
    expected = torch.cat([r.exp().sum(1) / (r.sum(1) + 1e-15) for r in ratios]).mean()
    normalised_sum = torch.cat([r.sum(1) for r in ratios]).sum()
    torch.testing.assert_close(value, expected * (normalised_sum > 0), rtol=1e-9, atol=0)
    assert ReleasedSparsity.revision == 1 and Sparsity.revision == 2
