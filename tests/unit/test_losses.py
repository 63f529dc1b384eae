"""What must hold of every term of FT, LwF, ILT, MiB and SDR on any input."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from contseg.datasets.scenario import VOID
from contseg.tests.unit.terms import (
    INTENDED,
    RELEASED,
    SUPERVISED,
    Data,
    O,
    each_setup,
    each_term,
    gradients,
    value_and_gradients,
)

pytestmark = pytest.mark.numeric


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
