"""SDR as released: the findings, as literal facts."""

import pytest
import torch

from contseg.datasets.scenario import VOID
from contseg.methods.mib import UnbiasedCrossEntropy
from contseg.methods.registry import build_method
from contseg.methods.sdr import Matching, Prototypes, Repulsion
from contseg.methods.sdr_variants import (
    ReleasedAttraction,
    ReleasedCrossEntropy,
    ReleasedMatching,
    ReleasedPrototypes,
    ReleasedRepulsion,
    mixed_sums,
)
from contseg.tests.unit.terms import (
    C,
    D,
    Data,
    O,
)

pytestmark = pytest.mark.numeric


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


def test_released_cross_entropy_folds_kept_old_labels_into_background() -> None:
    """F-UNCE as the release has it: every old label is background, in the sequential setup too."""
    data = Data(45, 2, "sequential")
    log_p, total = data.logits.log_softmax(1), []
    for b, i, j in (data.labels != VOID).nonzero().tolist():
        y = int(data.labels[b, i, j])
        total.append(-log_p[b, y, i, j] if y >= O else -log_p[b, :O, i, j].logsumexp(0))
    value = ReleasedCrossEntropy()(data.batch())
    torch.testing.assert_close(value, torch.stack(total).mean(), rtol=1e-12, atol=0)
    assert ((data.labels > 0) & (data.labels < O)).any()
    assert not torch.isclose(value, UnbiasedCrossEntropy()(data.batch()))


@pytest.mark.parametrize("setup", ["disjoint", "overlapped"])
def test_released_cross_entropy_is_the_usual_one_where_no_old_label_is_kept(setup: str) -> None:
    data = Data(46, 2, setup)
    assert torch.equal(ReleasedCrossEntropy()(data.batch()), UnbiasedCrossEntropy()(data.batch()))


def test_only_the_released_preset_folds() -> None:
    kinds = {f: type(build_method(f"SDR[formulation={f}]").terms["unce"]) for f in ("intended", "released", "printed")}
    assert kinds["released"] is ReleasedCrossEntropy
    assert kinds["intended"] is kinds["printed"] is UnbiasedCrossEntropy
    data = Data(47, 2, "sequential")
    method = build_method("SDR[formulation=released]")
    method.terms["prototypes"](data.batch())
    shared, alone = data.batch(), data.batch()  # the distillation is the same, whoever asks first
    values = method.losses(shared)
    assert torch.equal(values["unkd"], 100 * method.terms["unkd"](alone))
