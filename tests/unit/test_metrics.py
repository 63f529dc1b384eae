"""Metrics against counting pixels one by one, and against numbers worked out by hand."""

import numpy as np
import pytest
import torch

from contseg.benchmark.plan.protocol import PROTOCOLS, Protocol, parse_protocol
from contseg.benchmark.score import scores
from contseg.benchmark.score.leaderboard import leaderboard
from contseg.benchmark.score.metrics import RunScore, class_iou, harmonic, score_run, score_step, scored_counts
from contseg.benchmark.train.confusion import count_pairs, void_last
from contseg.tests.records import make_run

VOID = 255


def drawn(seed: int, n: int = 5, images: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Labels 0..n and void, and predictions of 4 channels, for a few small images."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([*range(n + 1), VOID], size=(images, 6, 7))
    return labels, rng.integers(0, 4, size=labels.shape)


def confusion(labels: torch.Tensor, prediction: torch.Tensor, n_rows: int, n_cols: int) -> torch.Tensor:
    """Counts of (label, prediction) as an evaluation makes them; void is the last row."""
    return count_pairs(void_last(labels, n_rows - 1), prediction, n_rows, n_cols)


def test_confusion_counts_every_pixel_where_it_belongs() -> None:
    labels, prediction = drawn(0)
    slow = np.zeros((7, 4), dtype=int)
    for truth, channel in zip(labels.flat, prediction.flat, strict=True):
        slow[6 if truth == VOID else truth, channel] += 1
    fast = confusion(torch.from_numpy(labels), torch.from_numpy(prediction), 7, 4)
    assert fast.dtype == torch.int64
    assert fast.tolist() == slow.tolist()


def test_confusion_takes_bytes_and_keeps_its_shape_when_nothing_is_there() -> None:
    labels = torch.full((1, 2, 2), VOID, dtype=torch.uint8)
    assert confusion(labels, torch.zeros(1, 2, 2, dtype=torch.uint8), 4, 2).tolist() == [[0, 0]] * 3 + [[4, 0]]


def record_of(labels: np.ndarray, prediction: np.ndarray, channels: list[int], dataset: str = "toy") -> dict:
    """A record whose matrices are counted image by image, with 5 foreground labels."""
    parts = {"seen": np.zeros((7, 4), dtype=int), "unseen": np.zeros((7, 4), dtype=int)}
    for truth, channel in zip(labels, prediction, strict=True):
        part = "seen" if np.isin(truth, channels[1:]).any() else "unseen"
        parts[part] += confusion(torch.from_numpy(truth), torch.from_numpy(channel), 7, 4).numpy()
    return {"dataset": dataset, "channels": channels, "matrix": {k: v.tolist() for k, v in parts.items()}}


def slow_iou(labels: np.ndarray, prediction: np.ndarray, channels: list[int], p: Protocol, dataset: str) -> dict:
    """The protocol's rules, pixel by pixel."""
    pixels = []
    for truth, channel in zip(labels, prediction, strict=True):
        if p.test_images == "any_seen" and not np.isin(truth, channels[1:]).any():
            continue
        for t, c in zip(truth.flat, channel.flat, strict=True):
            if t not in channels and t != VOID and p.future_at_test == "background":
                t = 0
            if t in channels and not (t == 0 and not p.counts_class0(dataset)):
                pixels.append((t, channels[c]))
    ious = {}
    for k in channels:
        both = sum(t == k and c == k for t, c in pixels)
        either = sum(t == k or c == k for t, c in pixels)
        present = any(t == k for t, _ in pixels)
        ious[k] = 100 * both / either if present else 0.0 if p.absent_classes == "zero" else float("nan")
    return ious


@pytest.mark.parametrize("dataset", ["voc", "ade"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("profile", [*PROTOCOLS, "plop[absent_classes=zero]", "strict[future_at_test=background]"])
def test_scores_equal_the_rules_applied_pixel_by_pixel(profile: str, seed: int, dataset: str) -> None:
    labels, prediction = drawn(seed)
    labels[0] = 4  # an image without a seen class
    labels[labels == 5] = 2 if seed == 1 else 5
    if seed == 2:
        labels[labels == 3] = 0  # a seen class without a pixel
    channels = [0, 3, 1, 2]  # in the order of learning
    protocol = parse_protocol(profile)
    got = score_step(record_of(labels, prediction, channels, dataset), protocol)
    slow = slow_iou(labels, prediction, channels, protocol, dataset)
    assert list(got.iou) == channels
    assert got.iou == pytest.approx(slow, nan_ok=True)
    counted = 0 not in got.in_mean
    assert counted == (protocol.background_in_mean == "no" or not protocol.counts_class0(dataset))


def test_iou_by_hand() -> None:
    # class 0: 3 right of 4, taken 1 too often: 3/5; class 1: 1 right of 2 and 1 too often: 1/3; class 2 never labelled
    counts = np.array([[3, 1, 0], [1, 1, 0], [0, 0, 0]])
    assert class_iou(counts) == pytest.approx([60, 100 / 3, np.nan], nan_ok=True)


def test_ignored_pixels_are_no_false_positives() -> None:
    (record,) = make_run(groups=((1, 2),))
    clean = score_step(record, PROTOCOLS["sdr"])
    record["matrix"]["seen"][-1] = [0, 1000, 0]  # void taken for class 1
    assert score_step(record, PROTOCOLS["sdr"]) == clean
    assert scored_counts(record, PROTOCOLS["sdr"]).sum() == 300


def test_background_belongs_to_old_and_can_leave_the_mean() -> None:
    # background: 100 of 100 right and 50 + 0 + 20 pixels too many; class 1: .5, class 2: 1, class 3: .8
    hits = {0: 1.0, 1: 0.5, 2: 1.0, 3: 0.8}
    records = make_run(hit=lambda step, label: hits[label])
    background = 100 * 100 / 170
    inside = score_run(records, PROTOCOLS["sdr"], [[1, 2], [3]]).summary()
    outside = score_run(records, PROTOCOLS["mib"], [[1, 2], [3]]).summary()
    assert inside["old"] == pytest.approx((background + 50 + 100) / 3)
    assert outside["old"] == pytest.approx(75) == inside["old_foreground"]
    assert inside["new"] == outside["new"] == pytest.approx(80)
    assert inside["all"] == pytest.approx((background + 50 + 100 + 80) / 4)
    assert outside["all"] == pytest.approx((50 + 100 + 80) / 3) == inside["all_foreground"]
    assert inside["accuracy"] == pytest.approx(330 / 4)


def test_the_printed_triple_fits_the_arithmetic_of_its_reading() -> None:
    rng = np.random.default_rng(0)
    hits = rng.random(21)
    groups = [list(range(1, 16)), [16], [17], [18], [19], [20]]
    records = make_run(groups=groups, hit=lambda step, label: hits[label])
    for profile, extra in (("sdr", 1), ("mib", 0)):
        s = score_run(records, PROTOCOLS[profile], groups).summary()
        assert s["all"] == pytest.approx(((15 + extra) * s["old"] + 5 * s["new"]) / (20 + extra))


def test_what_compares_steps_by_hand() -> None:
    # share of each class found after steps 0, 1, 2; everything is missed into background only
    found = {1: (0.8, 0.9, 0.3), 2: (None, 0.6, 0.4), 3: (None, None, 0.7)}
    groups = [[1], [2], [3]]
    records = make_run(groups=groups, hit=lambda step, label: 1.0 if label == 0 else found[label][step])
    s = score_run(records, PROTOCOLS["mib"], groups).summary()
    assert s["forgetting"] == pytest.approx(((90 - 30) + (60 - 40)) / 2)
    assert s["backward_transfer"] == pytest.approx(((30 - 80) + (40 - 60)) / 2)
    assert s["plasticity"] == pytest.approx((60 + 70) / 2)
    assert s["step0"] == pytest.approx(80)
    assert s["avg"] == pytest.approx((80 + 75 + 140 / 3) / 3)
    assert s["harmonic"] == pytest.approx(2 * 30 * 55 / 85)


def test_forgetting_is_negative_where_a_class_is_found_better_at_the_end() -> None:
    """The best of the steps before the last counts, not the last itself."""
    found = {1: (0.5, 0.4, 0.9), 2: (None, 0.6, 0.7), 3: (None, None, 0.7)}
    groups = [[1], [2], [3]]
    records = make_run(groups=groups, hit=lambda step, label: 1.0 if label == 0 else found[label][step])
    s = score_run(records, PROTOCOLS["mib"], groups).summary()
    assert s["forgetting"] == pytest.approx(((50 - 90) + (60 - 70)) / 2)


def test_joint_is_scored_under_any_groups_and_has_no_steps_to_compare() -> None:
    (record,) = make_run("Joint", groups=((2, 3, 1),), hit=lambda step, label: 1 - label / 10)
    s = score_run([record], PROTOCOLS["mib"], [[1], [2, 3]]).summary()
    assert (s["old"], s["new"], s["all"]) == pytest.approx((90, 75, 80))
    assert all(np.isnan(s[name]) for name in ("avg", "step0", "forgetting", "backward_transfer", "plasticity"))


def test_a_class_that_the_test_set_does_not_have_leaves_the_mean_or_counts_as_zero() -> None:
    (record,) = make_run(groups=((1, 2),))
    record["matrix"]["seen"][2] = [0, 0, 0]
    drop = score_step(record, PROTOCOLS["mib"])
    zero = score_step(record, parse_protocol("mib[absent_classes=zero]"))
    assert (drop.miou([1, 2]), zero.miou([1, 2])) == (100, 50)


def test_data_without_background_pixels_lose_class_0_from_the_mean() -> None:
    (record,) = make_run(groups=((1, 2),))
    record["matrix"]["seen"][0] = [0, 0, 0]
    assert score_step(record, PROTOCOLS["sdr"]).miou([0, 1, 2]) == 100


def test_harmonic_mean_at_zero() -> None:
    assert harmonic(0, 0) == 0
    assert harmonic(0, 50) == 0
    assert np.isnan(harmonic(float("nan"), 50))


def test_a_metric_that_is_added_at_the_end_has_its_column(monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/architecture.md says: computed in ``RunScore.summary``, named in ``METRICS``."""
    summary = RunScore.summary
    monkeypatch.setattr(RunScore, "summary", lambda self: {**summary(self), "mine": 0.5})
    monkeypatch.setattr(scores, "METRICS", [*scores.METRICS, "mine"])
    monkeypatch.setattr(scores, "COLUMNS", [*scores.COLUMNS, "mine"])
    cells = leaderboard(make_run("FT") + make_run("MiB"), PROTOCOLS["sdr"]).frame
    assert cells["mine"].tolist() == [0.5, 0.5] and cells["to_ft"].tolist() == [0, 0]
