"""Decoding of images and label maps, with errors that name the file. H, W: height and width in pixels."""

from __future__ import annotations

import io
import os
import stat
import struct
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from contseg.datasets.errors import UserError

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # of EXIF's orientation
_SIDEWAYS = [_TURNS[k] for k in (5, 6, 7, 8)]  # they exchange height and width
_NOTES = (b"eXIf", b"Raw profile type exif", b"tiff:Orientation")  # where a PNG may say how to turn it


def read_bytes(path: Path) -> bytes:
    """The bytes of a file; ``UserError`` if it is not a regular file (reading a pipe could block)."""
    try:
        with open(path, "rb", opener=_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"cannot read {path}: it is not a regular file")
            return file.read()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def decode_image(data: bytes, path: Path) -> np.ndarray:
    """(H, W, 3) uint8, RGB."""
    return np.array(_rgb(_decode(data, path), path))


def decode_upright(data: bytes, path: Path) -> np.ndarray:
    """(H, W, 3) uint8, RGB, turned as the camera noted it (EXIF)."""
    return np.array(_rgb(_upright(_decode(data, path)), path))


def decode_label(data: bytes, path: Path) -> np.ndarray:
    """(H, W) uint8: the raw labels."""
    return np.array(_label(data, path))


def _upright(image: Image.Image) -> Image.Image:
    """The image, turned. Of EXIF only the orientation is read: ``ImageOps.exif_transpose`` writes all of it anew, and
    fails where a camera or a program wrote what Pillow cannot."""
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How EXIF says to turn an image; of a TIFF, which Pillow turns itself while it decodes, nothing is left to do."""
    if image.format == "TIFF":
        return None
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (*_BROKEN, TypeError, KeyError):  # it cannot be read: then nothing says how to turn
        return None


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    _eight_bits(image.mode, path)
    return image if image.mode == "RGB" else image.convert("RGB")  # which copies what is RGB already


def _eight_bits(mode: str, path: Path) -> None:
    if mode[0] in "IF":
        raise UserError(
            f"image {path} has mode {mode}, more than 8 bits a pixel: values above 255 would all be white; "
            "scale its values to 0..255 and save it as 8-bit grey or RGB"
        )


def looked_up(table: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """``table[raw]``, both uint8, ``table`` (256,): an index array of NumPy would be eight times as large."""
    return np.frombuffer(bytearray(raw).translate(table.tobytes()), np.uint8).reshape(raw.shape)


def inspect(image: Path, label: Path, image_data: bytes, label_data: bytes) -> tuple[list[int], tuple[int, int]]:
    """How often each of the 256 raw labels occurs, and (H, W); pixels of a JPEG or of a whole PNG are not decoded.

    Images are read as they are stored, whatever EXIF says: ``UserError`` unless the map's size says that it lies so.
    """
    try:
        with Image.open(io.BytesIO(image_data)) as header:
            size, kind, mode = header.size, header.format, header.mode
            noted = kind != "PNG" or any(word in image_data for word in _NOTES)  # without them, it would be decoded
            turn = _turn(header) if noted else None
    except _BROKEN as error:
        raise _unreadable(image, error) from error
    _eight_bits(mode, image)
    if kind in ("JPEG", "MPO"):
        if not _ends(image_data):
            raise UserError(f"cannot read image {image}: the file is truncated")
    elif kind != "PNG" or not _sums_agree(image_data):
        _decode(image_data, image)
    map_ = _label(label_data, label)
    same_size(size[::-1], map_.size[::-1], image, label)
    if turn is not None and (turn not in _SIDEWAYS or size[0] == size[1]):
        raise UserError(
            f"image {image} is to be turned, as its EXIF says, and its size does not tell whether its label map "
            f"{label} is so already: save the image as the map shows it, without EXIF"
        )
    return map_.histogram(), size[::-1]


def _ends(jpeg: bytes) -> bool:
    """Whether the end-of-image marker follows the first scan. A thumbnail in the header has its own marker."""
    at = 2
    while jpeg[at : at + 1] == b"\xff" and jpeg[at + 1 : at + 2] != b"\xda":  # a segment: marker, length, content
        at += 2 + max(2, int.from_bytes(jpeg[at + 2 : at + 4], "big"))
    return b"\xff\xd9" in jpeg[at if jpeg[at : at + 2] == b"\xff\xda" or at >= len(jpeg) else 0 :]


def _sums_agree(png: bytes) -> bool:
    """Whether the file goes on to its end marker, and each part has the checksum that it names."""
    try:
        Image.open(io.BytesIO(png)).verify()
    except _BROKEN:
        return False
    return True


def same_size(image_size: tuple[int, ...], label_size: tuple[int, ...], image: Path, label: Path) -> None:
    """Both (H, W)."""
    if image_size != label_size:
        written = [f"{w}x{h}" for h, w in (label_size, image_size)]
        said = f"label map {label} is {written[0]} pixels, but its image {image} is {written[1]}"
        if image_size == label_size[::-1] and decode_upright(read_bytes(image), image).shape[:2] == label_size:
            said += ": it is stored sideways, and only its EXIF says how to turn it; save it turned"
        raise UserError(said)


def _label(data: bytes, path: Path) -> Image.Image:
    image = _open(data, path)
    stored = _raw_mode(image)
    _load(image, path)
    if image.mode not in ("P", "L"):
        raise UserError(
            f"label map {path} has mode {image.mode}: it must be 8-bit, palette or grey, with labels as pixel values"
        )
    if stored[:3] in ("L;2", "L;4"):
        raise UserError(
            f"label map {path} has {stored[2]} bits of grey a pixel, which are read as shades from 0 to 255, not as "
            "labels: save it as 8-bit, palette or grey"
        )
    return image


def _decode(data: bytes, path: Path) -> Image.Image:
    image = _open(data, path)
    _load(image, path)
    return image


def _open(data: bytes, path: Path) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data))
    except _BROKEN as error:
        raise _unreadable(path, error) from error


def _load(image: Image.Image, path: Path) -> None:
    try:
        image.load()
    except _BROKEN as error:
        raise _unreadable(path, error) from error


def _raw_mode(image: Image.Image) -> str:
    """How the pixels of a file are stored, before it is decoded."""
    tile = getattr(image, "tile", None)  # of an image that is open as a file
    arguments = tile[0][3] if tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _unreadable(path: Path, error: Exception) -> UserError:
    unknown = isinstance(error, UnidentifiedImageError)  # its message names a stream, not the file
    return UserError(f"cannot read image {path}: {'not an image that Pillow knows' if unknown else error}")
