"""The colours of label maps: VOC's palette, which every palette PNG of this field carries."""


def voc_palette(n: int = 256) -> list[int]:
    """Red, green, blue of labels 0..n-1, flat: bit k of a label's octal digits gives bit 7-k of each colour.

    Rule of the VOC development kit (``VOClabelcolormap.m``).

    >>> voc_palette(3)
    [0, 0, 0, 128, 0, 0, 0, 128, 0]
    """
    return [
        sum(((label >> (3 * k + colour)) & 1) << (7 - k) for k in range(8)) for label in range(n) for colour in range(3)
    ]
