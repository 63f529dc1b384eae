"""F-MIOU: confusion matrix and mIoU of the released evaluation, through the suite's own path from labels to score."""

import numpy as np

from contseg.benchmark.plan.protocol import PROTOCOLS
from contseg.benchmark.score.metrics import class_iou, mean, pixel_accuracy, scored_counts
from contseg.benchmark.train.confusion import count_pairs, void_last
from contseg.tests.golden.harness import Fixture, operation

EPS = 1e-6  # of the released code; the suite's metrics have none, and are in per cent


@operation("miou")
def miou(fixture: Fixture) -> None:
    n = fixture["cfg_n_classes"]
    updates = [k for k in range(10) if f"in_labels_{k}" in fixture]
    # a row for every label a uint8 map can hold: future classes and void included, as in a record
    pairs = [(fixture.tensor(f"in_labels_{k}"), fixture.tensor(f"in_preds_{k}")) for k in updates]
    matrix = sum(count_pairs(void_last(labels, 255), prediction, 256, n) for labels, prediction in pairs)
    record = {"dataset": "voc", "matrix": {"seen": matrix.tolist()}, "channels": list(range(n))}
    counts = scored_counts(record, PROTOCOLS["sdr"])
    fixture.check("released_confusion", counts)
    fixture.check("released_class_iou", class_iou(counts, EPS) / 100)
    fixture.check("released_mean_iou", mean(class_iou(counts, EPS)) / 100)
    fixture.check("paper_mean_iou_noeps", mean(class_iou(counts)) / 100)
    fixture.check("released_overall_acc", pixel_accuracy(counts) / 100)
    for key in ("released_class_acc", "released_mean_acc", "released_freqw_acc"):
        fixture.no_counterpart(key, "no table of the field prints it")
    assert np.isnan(class_iou(counts)[counts.sum(1) == 0]).all()
