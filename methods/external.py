"""External data: what a row knows besides the images and labels of its task's steps.

A term or hook that brings such data declares ``external``, a tuple of codes. The network's codes follow from its
weights (``benchmark.plan.external``). Rows of different codes are not ranked together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

from contseg.datasets.errors import UserError, unknown

CODES = {
    "in1k": "weights trained on ImageNet-1k",
    "in21k": "weights trained on ImageNet-21k, or on its 12k classes",
    "coco": "weights trained on COCO",
    "fm": "a network trained on other images in great number (SAM, CLIP, DINO)",
    "web": "images from the web, or generated ones",
    "sal": "saliency maps of another network",
    "prop": "mask proposals of another network",
    "n_classes": "the number of classes to come, known at step 0",
    "mem": "mem=N: N images of earlier steps are kept",
    "unknown": "weights, or a method, of which it is not known what they saw",
}


def external_of(method: Any) -> tuple[str, ...]:
    """The codes of a ``Method``, by its terms, hooks and memory. Raises ``UserError`` for a code that is none."""
    return ordered(code for part in _parts(method) for code in _declared(part))


def _parts(method: Any) -> Iterator[Any]:
    for value in (getattr(method, f.name) for f in fields(method)):
        if isinstance(value, dict):
            yield from value.values()
        elif isinstance(value, tuple):
            yield from value
        else:
            yield value


def _declared(part: Any) -> tuple[str, ...]:
    codes = getattr(part, "external", ())
    if not isinstance(codes, tuple):
        raise UserError(f"{type(part).__name__}.external is {codes!r}: write a tuple of codes, such as ('sal',)")
    return codes


def ordered(codes: Iterable[str]) -> tuple[str, ...]:
    """Codes once each, in the order of ``CODES``. Raises ``UserError`` for a code that is none."""
    found = {*codes}
    for code in found:
        name, _, number = code.partition("=")
        if name not in CODES:
            raise unknown("code of external data", code, CODES)
        if (name == "mem") is not bool(re.fullmatch(r"\d+|\?", number)):
            raise UserError(f"code of external data {code!r}: write {'mem=N' if name == 'mem' else name}")
    return tuple(sorted(found, key=lambda code: ([*CODES].index(code.partition("=")[0]), code)))
