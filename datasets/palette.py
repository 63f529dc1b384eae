"""The colours of this suite: VOC's palette for label maps, and a short one for lines and few classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which colour-blind readers can tell apart."""
VOID_COLOUR = (224, 224, 192)


def voc_palette(n: int = 256) -> list[int]:
    """Red, green, blue of labels 0..n-1 as a flat list; every palette PNG of this field carries it.

    Rule of the VOC development kit (``VOClabelcolormap.m``): bit k of a label's octal digits gives bit 7-k of each
    colour.

    >>> voc_palette(3)
    [0, 0, 0, 128, 0, 0, 0, 128, 0]
    """
    return [
        sum(((label >> (3 * k + colour)) & 1) << (7 - k) for k in range(8)) for label in range(n) for colour in range(3)
    ]


def label_colours(n_labels: int) -> np.ndarray:
    """(256, 3) uint8, colours of raw labels in a figure: black background, pale void (255).

    ``COLOURS`` where they suffice for ``n_labels`` labels, background included; VOC's palette otherwise.
    """
    import numpy as np  # not needed to import this module

    table = np.zeros((256, 3), np.uint8)
    table[:n_labels] = np.reshape(voc_palette(n_labels), (-1, 3))
    if n_labels <= len(COLOURS):
        table[1:n_labels] = [tuple(bytes.fromhex(c[1:])) for c in COLOURS[: n_labels - 1]]
    table[255] = VOID_COLOUR
    return table
