"""The latent space: one plane and one range for every method and step of a figure."""

import numpy as np

from contseg.benchmark.report.latent import draw

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
