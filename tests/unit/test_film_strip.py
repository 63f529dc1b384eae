"""A strip of label maps: which columns stand in it, in what order, and in what colours."""

import numpy as np

from contseg.benchmark.report.predictions import draw_strip
from contseg.datasets.palette import label_colours

NAMES = ("background", "cat", "dog")


def test_label_then_step_0_then_every_method_and_joint_last() -> None:
    label = {"a": np.full((2, 3), 1, np.uint8), "b": np.full((2, 3), 255, np.uint8)}
    step_0, last, joint = ({i: np.full((2, 3), k, np.uint8) for i in label} for k in (1, 2, 0))
    seen = {"Joint": {1: joint}, "FT": {0: step_0, 1: last}, "Gone": {}}
    figure = draw_strip(label, seen, NAMES, "photos/8-6")
    axes = np.array(figure.axes).reshape(len(label), 4)
    assert [ax.get_title() for ax in axes[0]] == ["label", "step 0", "FT", "Joint"]
    shown = [ax.images[0].get_array()[0, 0].tolist() for ax in axes[0]]
    assert shown == label_colours(len(NAMES))[[1, 1, 2, 0]].tolist()
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["cat", "dog", "void"]


def test_without_any_network_the_labels_stand_alone() -> None:
    label = {"a": np.zeros((2, 2), np.uint8)}
    assert [ax.get_title() for ax in draw_strip(label, {"FT": {}}, NAMES, "").axes] == ["label"]
