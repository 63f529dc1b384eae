"""The latent space: one plane and one range for every method and step of a figure."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from contseg.benchmark.report.latent import draw, prototypes
from contseg.benchmark.store.files import Store, write_tensors
from contseg.methods.base import Term
from contseg.methods.sdr import Prototypes
from contseg.methods.star import ClassStatistics

NAMES = ["background", "cat", "dog"]
RNG = np.random.default_rng(0)
LABELS = np.repeat([1.0, 2.0], 20)


def points(length: int) -> np.ndarray:
    return RNG.normal(size=(40, length)) + 3 * LABELS[:, None]


def test_equal_features_of_two_methods_stand_in_the_same_place() -> None:
    same, left, right = points(8), points(8), points(8) * 5
    panels = {"FT": [(same, LABELS, {}), (left, LABELS, {})], "MiB": [(same, LABELS, {}), (right, LABELS, {})]}
    axes = np.array(draw(panels, NAMES, [0, 1], "toy").axes).reshape(2, 2)
    shown = [ax.collections[0].get_offsets().data for ax in axes[:, 0]]
    assert np.array_equal(*shown)
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in axes.ravel()}) == 1
    assert all(len(ax.get_xticks()) > 1 and len(ax.get_yticks()) > 1 for ax in axes.ravel())
    low, high = axes[0, 0].get_xlim()
    every = np.concatenate([ax.collections[0].get_offsets().data[:, 0] for ax in axes.ravel()])
    assert low < every.min() and every.max() < high


def test_features_of_another_length_have_a_plane_of_their_own() -> None:
    panels = {"FT": [(points(8), LABELS, {})], "Wide": [(points(12), LABELS, {1: np.ones(12)})]}
    for ax in draw(panels, NAMES, [0], "toy").axes:
        assert ax.collections[0].get_offsets().shape == (40, 2)


@pytest.mark.parametrize("with_sdr", [False, True])
def test_prototypes_are_sdr_s_and_not_those_of_star(tmp_path: Path, with_sdr: bool) -> None:
    """STAR keeps unit vectors of the embedding, without background; both may observe one step."""
    counts = torch.tensor([9, 5, 4])
    star, sdr = ClassStatistics(), Prototypes()
    star.load_state_dict(
        {"prototypes": torch.eye(2, 6), "norms": torch.ones(2, 2), "noise": torch.ones(2, 6), "counts": counts}
    )
    sdr.load_state_dict({"prototypes": torch.full((3, 8), 2.0), "counts": counts})
    observers: dict[str, Term] = {"0star": star, **({"1sdr": sdr} if with_sdr else {})}
    for key, term in observers.items():
        write_tensors(Store(tmp_path).observer("ab", key), term.state_dict(), {})
    record = {"step_key": "ab", "key": "ab", "channels": [0, 7, 5]}
    found = prototypes(cast(Any, SimpleNamespace(out=tmp_path)), cast(Any, record))
    assert {k: v.shape for k, v in found.items()} == ({7: (8,), 5: (8,)} if with_sdr else {})
