"""SDR's latent terms against their definitions, its prototypes, and the recipes that hold them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from contseg.methods.base import StepContext, shrink_labels
from contseg.methods.mib import background_shares
from contseg.methods.registry import build_method
from contseg.methods.sdr import (
    Attraction,
    Matching,
    Prototypes,
    Repulsion,
    Sparsity,
    mean_inverse_distance,
    pseudo_labels,
)
from contseg.methods.ucd import pair_labels
from contseg.tests.unit.networks import make_batch, make_steps, student_of, taught
from contseg.tests.unit.terms import (
    SETUPS,
    C,
    D,
    Data,
    O,
    each_setup,
    gradients,
    positions,
    step,
    value_and_gradients,
)

pytestmark = pytest.mark.numeric


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


@pytest.mark.parametrize("base", ["MiB", "DKD", "STAR"])
def test_background_is_matched_by_the_base_s_own_prediction(base: str) -> None:
    """Sigmoid methods predict background where no class exceeds 1/2, not where their first row is the largest."""
    method, (first, second) = build_method(f"{base}+SDR"), make_steps(3, 2)
    old = taught(method, first)
    with torch.no_grad():
        rows = old.classifier.blocks[0]
        rows.bias[0] -= 10  # as DKD's auxiliary row learns; STAR's is as drawn
        rows.bias[1:] -= make_batch(old, None, first).out.logits[:, 1:].amax(1).median()
        batch = make_batch(student_of(old, method, second), old, second)
    whole, small = (method.predict(batch.old, size) for size in (batch.labels.shape[1:], batch.old.logits.shape[2:]))
    unlabelled = batch.feature_labels == 0
    assert base == "MiB" or 0 < (whole == 0).sum() < whole.numel()
    expected = torch.where(unlabelled, shrink_labels(whole, batch.features.shape[2:]), 0)
    assert torch.equal(pseudo_labels(batch), expected)
    pairs = pair_labels(batch.labels, batch.old.logits)
    assert torch.equal(pairs[unlabelled], small[unlabelled])


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
