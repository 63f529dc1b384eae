"""Decoding of photographs and label maps, with errors that name the file. H, W: height and width in pixels."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.errors import UserError

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def read_bytes(path: Path) -> bytes:
    """The file as it is."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def decode_image(data: bytes, path: Path) -> np.ndarray:
    """(H, W, 3) uint8, RGB."""
    return np.array(_decode(data, path).convert("RGB"))


def decode_label(data: bytes, path: Path) -> np.ndarray:
    """(H, W) uint8: the raw labels."""
    return np.array(_label(data, path))


def inspect(image: Path, label: Path, image_data: bytes, label_data: bytes) -> tuple[list[int], tuple[int, int]]:
    """How often each of the 256 raw labels occurs, and (H, W); the photograph's pixels are not decoded."""
    try:
        with Image.open(io.BytesIO(image_data)) as header:
            size, kind = header.size, header.format
    except _BROKEN as error:
        raise UserError(f"cannot read picture {image}: {error}") from error
    if kind == "JPEG" and b"\xff\xd9" not in image_data:  # the end-of-image marker; it occurs nowhere else
        raise UserError(f"cannot read picture {image}: the file is truncated")
    map_ = _label(label_data, label)
    same_size(size[::-1], map_.size[::-1], image, label)
    return map_.histogram(), size[::-1]


def same_size(image_size: tuple[int, ...], label_size: tuple[int, ...], image: Path, label: Path) -> None:
    """Both (H, W)."""
    if image_size != label_size:
        written = [f"{w}x{h}" for h, w in (label_size, image_size)]
        raise UserError(f"label map {label} is {written[0]} pixels, but its picture {image} is {written[1]}")


def _label(data: bytes, path: Path) -> Image.Image:
    image = _decode(data, path)
    if image.mode not in ("P", "L"):
        raise UserError(
            f"label map {path} has mode {image.mode}: needed is 8-bit palette or grey whose pixels are labels"
        )
    return image


def _decode(data: bytes, path: Path) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except _BROKEN as error:
        raise UserError(f"cannot read picture {path}: {error}") from error
    return image
