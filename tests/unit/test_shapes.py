"""The embedded data set: what demo.toml's story rests on, and that the drawing never moves unnoticed."""

import colorsys
import hashlib

import numpy as np
import pytest
import torch

from contseg.datasets.formats.shapes import COUNTS, KINDS, SEEDS, SIDE, Shapes, _rgb, draw_image, draw_label, layout

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def counts() -> np.ndarray:
    """(800, 7): pixels of each label in each training image."""
    return np.stack([np.bincount(draw_label(SEEDS["train"], i).ravel(), minlength=7) for i in range(COUNTS["train"])])


def test_statistics_are_those_of_the_recipe(counts: np.ndarray) -> None:
    share = counts.sum(0) / counts.sum()
    assert 0.77 < share[0] < 0.80
    assert ((share[1:] > 0.026) & (share[1:] < 0.048)).all()
    present = counts > 0
    assert present.sum(0).tolist() == [800, 346, 331, 315, 331, 325, 341]
    base, new = present[:, 1:4].any(1), present[:, 4:].any(1)
    assert (base.sum(), new.sum(), (base & new).sum()) == (655, 641, 496)  # the last: the background shift


def test_the_drawing_is_what_it_was() -> None:
    # a change here needs a new VERSION, since fingerprints do not look at pixels
    digest = hashlib.sha256()
    for split, seed in SEEDS.items():
        for i in range(3):
            digest.update(split.encode() + draw_image(seed, i).tobytes() + draw_label(seed, i).tobytes())
    assert digest.hexdigest()[:16] == "95209aea6b0e2ea2"


def test_objects_are_distinct_and_one_to_four() -> None:
    for i in range(50):
        labels = [label for label, _, _ in layout(7, i) if label]
        assert 1 <= len(labels) <= 4
        assert len(set(labels)) == len(labels)


def test_square_and_cross_share_their_hue() -> None:
    hue = {name: hue for name, hue, _ in KINDS}
    assert hue["square"] == hue["cross"]
    assert len(set(hue.values())) == 5


# in units of the radius squared
AREAS = {"disk": 0.9 * np.pi, "square": 1.6**2, "triangle": 3 * 3**0.5 * 0.6**2, "ring": 0.9 * np.pi, "cross": 1.95}


@pytest.mark.parametrize(("name", "area"), AREAS.items())
def test_shapes_have_the_area_of_their_formula(name: str, area: float) -> None:
    inside = next(shape for kind, _, shape in KINDS if kind == name)
    v, u = np.mgrid[-1.5:1.5:600j, -1.5:1.5:600j]
    assert inside(u, v).sum() * (3 / 599) ** 2 == pytest.approx(area, rel=0.01)


def test_star_is_the_polygon_of_its_ten_corners() -> None:
    from matplotlib.path import Path

    radius = np.where(np.arange(10) % 2 == 0, 1.15, 0.6)
    angle = np.arange(10) * np.pi / 5
    polygon = Path(np.stack([radius * np.sin(angle), radius * np.cos(angle)], 1))
    rng = np.random.default_rng(0)
    points = rng.uniform(-1.2, 1.2, (5000, 2))
    inside = next(shape for kind, _, shape in KINDS if kind == "star")
    assert (inside(points[:, 0], points[:, 1]) == polygon.contains_points(points)).all()


@pytest.mark.parametrize("hue", np.linspace(-0.1, 1.1, 25))
def test_colours_agree_with_colorsys(hue: float) -> None:
    np.testing.assert_allclose(_rgb(hue, 0.7, 0.8), colorsys.hsv_to_rgb(hue % 1, 0.7, 0.8), atol=1e-12)


def test_as_a_data_set() -> None:
    shapes = Shapes("shapes")
    assert shapes.class_names == ("background", "disk", "square", "triangle", "ring", "cross", "star")
    assert shapes.ids("val")[:2] == ("val_0000", "val_0001")
    assert [len(shapes.ids(split)) for split in ("train", "val")] == [800, 200]
    image, label = shapes.load("val_0003", "val")
    assert image.shape == (3, SIDE, SIDE)
    assert label.shape == (SIDE, SIDE)
    again = shapes.load("val_0003", "val")
    image.zero_()  # what is handed out is the caller's own
    assert torch.equal(shapes.load("val_0003", "val")[0], again[0])
    present = shapes.presence("val")
    assert present[3].nonzero()[0].tolist() == label.unique().tolist()
    prints = {shapes.fingerprint(i, s) for s in ("train", "val") for i in shapes.ids(s)}
    assert len(prints) == 1000
    assert shapes.fingerprint("val_0003", "val") == Shapes("shapes").fingerprint("val_0003", "val")
