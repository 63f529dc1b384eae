"""Joint transforms: against Pillow, torchvision and slow oracles; the law of the random window."""

import colorsys
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, RandomResizedCrop, Resize

from contseg.datasets.transforms import (
    EvalTransform,
    TrainTransform,
    cover,
    jittered,
    random_window,
    resized_window,
)

pytestmark = pytest.mark.numeric

RATIO = (3 / 4, 4 / 3)


def sample(height: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A photograph as data sets give it (channels last in memory), and labels."""
    rng = np.random.default_rng(seed)
    image = torch.from_numpy(rng.integers(0, 256, (height, width, 3), np.uint8)).permute(2, 0, 1)
    return image, torch.from_numpy(rng.choice([0, 1, 2, 20, 255], (height, width)).astype(np.uint8))


def positions(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An image that says of every pixel where it is: red is the row, green the column; labels are rows + columns."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([rows, columns, torch.zeros_like(rows)], dim=2).to(torch.uint8).permute(2, 0, 1)
    return image, (rows + columns).to(torch.uint8)


@pytest.mark.parametrize("size", [(24, 24), (40, 30), (7, 11), (20, 16)])
@pytest.mark.parametrize("window", [(3, 2, 20, 16), (0, 0, 31, 29), (30, 28, 1, 1), (0, 5, 31, 3)])
def test_resizing_is_pillows(window, size):
    """Labels exactly, photographs within one grey level (both round, at different places)."""
    image, label = sample(31, 29)
    top, left, h, w = window
    got_image, got_label = resized_window(image, label, window, size)
    cut = (left, top, left + w, top + h)
    there = Image.fromarray(image.permute(1, 2, 0).numpy()).crop(cut).resize(size[::-1], Image.Resampling.BILINEAR)
    labels = Image.fromarray(label.numpy()).crop(cut).resize(size[::-1], Image.Resampling.NEAREST)
    np.testing.assert_array_equal(got_label, np.array(labels))
    assert (got_image.permute(1, 2, 0).int() - torch.from_numpy(np.array(there)).int()).abs().max() <= 1
    assert got_image.dtype == got_label.dtype == torch.uint8


def test_a_window_of_the_right_size_is_only_cut():
    image, label = sample(31, 29)
    got_image, got_label = resized_window(image, label, (4, 5, 10, 12), (10, 12))
    assert torch.equal(got_image, image[:, 4:14, 5:17])
    assert torch.equal(got_label, label[4:14, 5:17])


def test_the_order_of_memory_changes_nothing():
    image, label = sample(31, 29)
    for window in ((0, 0, 31, 29), (3, 0, 20, 29), (3, 4, 20, 16)):
        a, _ = resized_window(image, label, window, (24, 24))
        b, _ = resized_window(image.contiguous(), label, window, (24, 24))
        assert torch.equal(a, b)


def test_labels_are_never_mixed():
    image, label = sample(37, 53)
    for seed in range(20):
        _, got = TrainTransform((64, 48))(image, label, np.random.default_rng(seed))
        assert set(got.unique().tolist()) <= {0, 1, 2, 20, 255}


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (512, 512), (100, 101), (64, 300)])
def test_crop_view_is_resize_and_center_crop(height, width):
    """The literature's test images: shorter side to S, centre crop, labels too."""
    image, label = sample(height, width)
    got_image, got_label = EvalTransform((96, 96))(image, label)
    resize, crop = Resize(96), CenterCrop(96)
    there = crop(resize(Image.fromarray(image.permute(1, 2, 0).numpy())))
    labels = crop(Resize(96, InterpolationMode.NEAREST)(Image.fromarray(label.numpy())))
    np.testing.assert_array_equal(got_label, np.array(labels))
    assert (got_image.permute(1, 2, 0).int() - torch.from_numpy(np.array(there)).int()).abs().max() <= 1


@pytest.mark.parametrize("size", [(96, 128), (128, 96), (50, 50)])
@pytest.mark.parametrize(("height", "width"), [(180, 240), (240, 180), (96, 128), (33, 200)])
def test_cover_fills_any_size_and_keeps_the_middle(size, height, width):
    image, label = positions(height, width)
    got_image, got_label = cover(image, label, size)
    assert (got_image.shape, got_label.shape) == ((3, *size), size)
    scale = max(size[0] / height, size[1] / width)
    for channel, axis, full in ((0, 0, height), (1, 1, width)):
        line = got_image[channel].double().mean(1 - axis)
        assert abs(line.mean() - (full - 1) / 2) < 1 / scale + 1  # the middle stays in the middle
        slope = (line[-1] - line[0]) / (len(line) - 1)
        assert slope == pytest.approx(1 / scale, rel=0.1)  # one scale for both sides


def test_full_view_is_the_image():
    image, label = sample(31, 29)
    got = EvalTransform()(image, label)
    assert got[0] is image
    assert got[1] is label


class TestRandomWindow:
    """torchvision's law, in distribution."""

    def draw(self, full: tuple[int, int], scale: tuple[float, float], n: int) -> np.ndarray:
        rng = np.random.default_rng(0)
        return np.array([random_window(full, scale, RATIO, rng) for _ in range(n)])

    @pytest.mark.parametrize("full", [(375, 500), (500, 375), (180, 240), (300, 40)])
    @pytest.mark.parametrize("scale", [(0.5, 2.0), (0.08, 1.0)])
    def test_same_moments_as_torchvision(self, full, scale):
        n = 4000
        mine = self.draw(full, scale, n).astype(float)
        torch.manual_seed(0)
        there = torch.empty(3, *full)
        theirs = np.array([RandomResizedCrop.get_params(there, list(scale), list(RATIO)) for _ in range(n)], float)
        for values in (
            (mine, theirs),
            (mine**2, theirs**2),
            (mine[:, :1] * mine[:, 2:], theirs[:, :1] * theirs[:, 2:]),
        ):
            error = np.sqrt((values[0].var(0) + values[1].var(0)) / n)
            assert (np.abs(values[0].mean(0) - values[1].mean(0)) <= 4.5 * error + 1e-9).all()

    @pytest.mark.parametrize("full", [(375, 500), (300, 40), (1, 1), (2, 90)])
    def test_never_leaves_the_image(self, full):
        top, left, h, w = self.draw(full, (0.5, 2.0), 500).T
        assert (top >= 0).all()
        assert (left >= 0).all()
        assert (h >= 1).all()
        assert (w >= 1).all()
        assert (top + h <= full[0]).all()
        assert (left + w <= full[1]).all()

    def test_area_and_shape_stay_within_bounds(self):
        _, _, h, w = self.draw((375, 500), (0.5, 2.0), 2000).T.astype(float)
        assert (h * w >= 0.5 * 375 * 500 - 500).all()
        assert (w / h >= 3 / 4 - 0.01).all()
        assert (w / h <= 4 / 3 + 0.01).all()

    def test_when_nothing_fits(self):
        """Twice the area never fits: the middle, cut to the bound of the ratio; an image within bounds is whole."""
        rng = np.random.default_rng(0)
        assert random_window((90, 100), (2.0, 3.0), RATIO, rng) == (0, 0, 90, 100)
        assert random_window((60, 200), (2.0, 3.0), RATIO, rng) == (0, 60, 60, 80)
        assert random_window((200, 60), (2.0, 3.0), RATIO, rng) == (60, 0, 80, 60)


class TestTrainTransform:
    def test_is_a_window_resized_and_flipped(self):
        """Each result is the window of the same random numbers, in one of its flips; all flips occur, evenly."""
        image, label = sample(40, 50)
        for flip, kinds in (("none", 1), ("h", 2), ("hv", 4)):
            counts = dict.fromkeys(range(4), 0)
            for seed in range(200):
                got = TrainTransform((24, 32), flip=flip)(image, label, np.random.default_rng(seed))
                window = random_window((40, 50), (0.5, 2.0), RATIO, np.random.default_rng(seed))
                plain = resized_window(image, label, window, (24, 32))
                flips = [(), (-1,), (-2,), (-1, -2)]
                same = [all(torch.equal(g, p.flip(f)) for g, p in zip(got, plain, strict=True)) for f in flips]
                assert sum(same) == 1
                counts[same.index(True)] += 1
            assert sum(c > 0 for c in counts.values()) == kinds
            used = [c for c in counts.values() if c]
            assert max(abs(c - 200 / kinds) for c in used) < 5 * math.sqrt(200 * (1 / kinds) * (1 - 1 / kinds)) + 1

    def test_image_and_label_stay_together(self):
        """Where the image says (row, column), the label says row + column, up to the rounding of the resize."""
        image, label = positions(100, 90)
        for seed in range(10):
            got_image, got_label = TrainTransform((160, 150), flip="hv")(image, label, np.random.default_rng(seed))
            assert (got_image[0].int() + got_image[1].int() - got_label.int()).abs().max() <= 2

    def test_without_a_window_drawn_images_are_only_flipped(self):
        image, label = sample(24, 24)
        seen = set()
        for seed in range(30):
            got, _ = TrainTransform((24, 24), scale=None, flip="h")(image, label, np.random.default_rng(seed))
            assert torch.equal(got, image) or torch.equal(got, image.flip(-1))
            seen.add(torch.equal(got, image))
        assert seen == {True, False}

    def test_random_numbers_come_from_the_generator_alone(self):
        image, label = sample(40, 50)
        transform = TrainTransform((24, 24), flip="hv")
        torch.manual_seed(0)
        np.random.seed(0)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist()
        first = transform(image, label, np.random.default_rng(5))
        torch.rand(3)
        second = transform(image, label, np.random.default_rng(5))
        torch.set_rng_state(before[0])
        transform(image, label, np.random.default_rng(6))
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1]


def test_a_window_may_be_as_wide_as_the_image():
    """Half of an image twice as high as wide, as a square: as wide as the image, anywhere in height."""
    rng = np.random.default_rng(0)
    windows = [random_window((20, 10), (0.5, 0.5), (1.0, 1.0), rng) for _ in range(200)]
    assert {w[1:] for w in windows} == {(0, 10, 10)}
    assert {w[0] for w in windows} == set(range(11))


class TestJitter:
    """Against a slow oracle, a pixel at a time; the law of the random numbers."""

    @staticmethod
    def changed(image: torch.Tensor, **strength: float) -> np.ndarray:
        """Some results, in 0..1."""
        names = ("brightness", "contrast", "saturation", "hue")
        chosen = tuple(strength.get(name, 0.0) for name in names)
        made = [jittered(image, chosen, np.random.default_rng(seed)) for seed in range(40)]
        assert all(m.dtype == torch.uint8 and m.shape == image.shape for m in made)
        return np.stack([m.permute(1, 2, 0).numpy() for m in made]) / 255

    @staticmethod
    def numbers(low: float, high: float) -> list[float]:
        """The random numbers of ``changed``: an order is drawn first."""
        drawn = [np.random.default_rng(seed) for seed in range(40)]
        return [rng.uniform(low, high) for rng in drawn if len(rng.permutation(4))]

    @pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
    @pytest.mark.parametrize("strength", [0.3, 1.5])
    def test_factors(self, name, strength):
        image, _ = sample(6, 7)
        pixels = image.permute(1, 2, 0).numpy() / 255
        grey = pixels @ [0.2989, 0.587, 0.114]
        other = {"brightness": 0.0, "contrast": grey.mean(), "saturation": grey[..., None]}[name]
        got = self.changed(image, **{name: strength})
        factors = self.numbers(max(0, 1 - strength), 1 + strength)
        assert max(factors) > 1 + 0.8 * strength and min(factors) < max(0.2, 1 - 0.8 * strength)
        for factor, result in zip(factors, got, strict=True):
            want = np.clip(other + factor * (pixels - other), 0, 1)
            assert np.abs(result - want).max() <= 2.5 / 255

    def test_the_hue_is_turned(self):
        image, _ = sample(6, 7)
        got = self.changed(image, hue=0.5)
        for turn, result in zip(self.numbers(-0.5, 0.5), got, strict=True):
            for row, column in ((0, 0), (2, 3), (5, 6), (4, 1)):
                h, s, v = colorsys.rgb_to_hsv(*(image[:, row, column].numpy() / 255))
                want = colorsys.hsv_to_rgb((h + turn) % 1, s, v)
                assert np.abs(result[row, column] - want).max() <= 2.5 / 255

    def test_the_order_is_random(self):
        """Brightness then contrast, or the other way round: two results for the same factors."""
        image, _ = sample(6, 7)
        orders = {tuple(i for i in np.random.default_rng(seed).permutation(4) if i < 2) for seed in range(40)}
        assert orders == {(0, 1), (1, 0)}
        for seed in range(10):
            rng = np.random.default_rng(seed)
            order, factors = [i for i in rng.permutation(4) if i < 2], rng.uniform(0, 2, 2)
            want = image.permute(1, 2, 0).numpy() / 255
            for i, factor in zip(order, factors, strict=True):
                mean = (want @ [0.2989, 0.587, 0.114]).mean() if i else 0.0
                want = np.clip(mean + factor * (want - mean), 0, 1)
            got = jittered(image, (1.0, 1.0, 0.0, 0.0), np.random.default_rng(seed))
            assert np.abs(got.permute(1, 2, 0).numpy() / 255 - want).max() <= 4 / 255

    def test_grey_stays_grey_and_strength_0_changes_nothing(self):
        image, _ = sample(6, 7)
        grey = image[:1].expand(3, -1, -1).contiguous()
        assert np.ptp(self.changed(grey, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.5), axis=-1).max() < 0.01
        assert torch.equal(jittered(image, (0.0,) * 4, np.random.default_rng(0)), image)

    def test_window_flips_and_labels_are_those_without_it(self):
        image, label = sample(40, 50)
        plain, colourful = (TrainTransform((24, 32), flip="hv", jitter=j) for j in ((), (0.5, 0.5, 0.5, 0.2)))
        for seed in range(20):
            a, b = (t(image, label, np.random.default_rng(seed)) for t in (plain, colourful))
            assert torch.equal(a[1], b[1])
            assert not torch.equal(a[0], b[0])
            again = colourful(image, label, np.random.default_rng(seed))
            assert torch.equal(again[0], b[0])
            rng = np.random.default_rng(seed)
            plain(image, label, rng)
            assert torch.equal(jittered(a[0], (0.5, 0.5, 0.5, 0.2), rng), b[0])
