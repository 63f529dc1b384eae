"""A trained step on a user's own images: a palette PNG of labels and an overlay with a legend for each of them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from torch import Tensor

from contseg.datasets.atomic import replacing
from contseg.datasets.errors import UserError
from contseg.datasets.formats.paired import IMAGES
from contseg.datasets.images import decode_upright, read_bytes
from contseg.datasets.palette import label_colours
from contseg.datasets.progress import progress
from contseg.datasets.scenario import BACKGROUND

Pixels = NDArray[np.uint8]
STRENGTH = 0.6  # of a class's colour over the image
SMALL, FONT = 480, 16  # pixels: an overlay has at least this width; the height of the legend's letters
LARGE = 8 * SMALL  # pixels: the image in it is enlarged to at most this side


def images_of(paths: Iterable[Path]) -> list[Path]:
    """The images that files and folders name; of a folder, those directly in it, by name.

    Raises ``UserError`` for a path that is not there, a folder without images, a file that is no image (its header is
    read), or two images of one name.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGES and not p.name.startswith("."))
            if not inside:
                raise UserError(f"{path} holds no image: files that end in {', '.join(IMAGES)} are read")
            found += inside
        elif path.is_file():
            found.append(path)
        elif path.exists():
            raise UserError(f"cannot read {path}: it is not a regular file")
        else:
            raise UserError(f"there is no image {path}")
    by_name: dict[str, Path] = {}
    for path in found:
        other = by_name.setdefault(path.stem, path)
        if other.resolve() != path.resolve():
            raise UserError(f"{other} and {path} would both be {path.stem}.png: predict them into two folders")
    for path in by_name.values():
        _check_header(path)
    return list(by_name.values())


def _check_header(path: Path) -> None:
    try:
        with Image.open(path):
            pass
    except UnidentifiedImageError as error:
        raise UserError(f"cannot read image {path}: it is of no format that Pillow knows") from error
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise UserError(f"cannot read image {path}: more than {most / 1e6:.0f} million pixels: reduce it") from error


def predict_images(
    predict: Callable[[Tensor], Tensor],
    images: Sequence[Path],
    out: Path,
    *,
    channels: Sequence[int],
    names: Sequence[str] = (),
    longest: int = 0,
) -> dict[int, int]:
    """Write ``labels/NAME.png`` and ``overlays/NAME.png`` below ``out``; gives the number of pixels of each label.

    ``predict``: images (1, 3, H, W) of bytes -> channels (1, H, W). ``channels``: the label of each. ``names``: of
    classes by label. ``longest``: larger images are reduced to this side for the network; the labels are enlarged
    again. Raises ``UserError`` for an image that cannot be read; what was written before it stays.
    """
    n_labels = max(len(names), max(channels) + 1)
    colours, table = label_colours(n_labels), np.array(channels, dtype=np.uint8)
    counts = np.zeros(256, np.int64)
    for path in progress(images, "predict", unit="image"):
        pixels = decode_upright(read_bytes(path), path)
        try:
            labels = _labels(predict, pixels, table, longest)
        except torch.OutOfMemoryError as error:
            height, width = pixels.shape[:2]
            half = min(longest or max(height, width), max(height, width)) // 2
            raise UserError(
                f"{path}, {width} x {height} pixels, needs more memory than the GPU has: reduce it, --longest {half} "
                "or less"
            ) from error
        counts += np.bincount(labels.ravel(), minlength=256)
        _write(out / "labels" / f"{path.stem}.png", palette_image(labels, colours))
        said = [(colours[k], names[k] if k < len(names) else f"class {k}") for k in np.unique(labels) if k]
        _write(out / "overlays" / f"{path.stem}.png", overlay(pixels, labels, colours, said))
    return {int(k): int(counts[k]) for k in np.flatnonzero(counts)}


def _labels(predict: Callable[[Tensor], Tensor], pixels: Pixels, table: Pixels, longest: int) -> Pixels:
    """(H, W): labels of an image (H, W, 3)."""
    image = Image.fromarray(pixels)
    if longest and max(image.size) > longest:
        share = longest / max(image.size)
        image = image.resize([max(1, round(n * share)) for n in image.size], Image.Resampling.BILINEAR)
    given = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    labels: Pixels = table[predict(given)[0].cpu().numpy()]
    if labels.shape != pixels.shape[:2]:
        whole = Image.fromarray(labels).resize((pixels.shape[1], pixels.shape[0]), Image.Resampling.NEAREST)
        labels = np.array(whole)
    return labels


def palette_image(labels: Pixels, colours: Pixels) -> Image.Image:
    """A label map (H, W) with colours (256, 3): its pixel values are the labels."""
    image = Image.fromarray(labels)
    image.putpalette(colours.tobytes())
    return image


def overlay(pixels: Pixels, labels: Pixels, colours: Pixels, said: Sequence[tuple[Pixels, str]]) -> Image.Image:
    """The image (H, W, 3) with its classes in colour, over a legend of (colour, name); background stays as it is."""
    mixed = (1 - STRENGTH) * pixels + STRENGTH * colours[labels]
    drawn = np.where((labels == BACKGROUND)[..., None], pixels, mixed.round()).astype(np.uint8)
    image = Image.fromarray(drawn)
    times = max(1, min(-(-SMALL // image.width), LARGE // max(image.size)))
    image = image.resize((times * image.width, times * image.height), Image.Resampling.NEAREST)
    size = max(FONT, image.width // 60)
    legend = _legend(said or [(np.zeros(3, np.uint8), "background only")], max(SMALL, image.width), size)
    whole = Image.new("RGB", (legend.width, image.height + legend.height), "white")
    whole.paste(image, (0, 0))
    whole.paste(legend, (0, image.height))
    return whole


def _legend(said: Sequence[tuple[Pixels, str]], width: int, size: int) -> Image.Image:
    """Patches with names, in as many lines as the width asks for; ``size``: the height of the letters."""
    font, gap = ImageFont.load_default(size), size // 2
    placed: list[tuple[int, int, Pixels, str]] = []
    x, y = gap, gap
    for colour, name in said:
        needed = size + gap + int(font.getlength(name)) + 2 * gap
        if x > gap and x + needed > width:
            x, y = gap, y + size + gap
        placed.append((x, y, colour, name))
        x += needed
    image = Image.new("RGB", (width, y + size + gap), "white")
    draw = ImageDraw.Draw(image)
    for left, top, colour, name in placed:
        draw.rectangle((left, top, left + size, top + size), fill=tuple(int(c) for c in colour))
        draw.text((left + size + gap, top + size / 2), name, fill="black", font=font, anchor="lm")
    return image


def _write(path: Path, image: Image.Image) -> None:
    file = io.BytesIO()
    image.save(file, "png")
    with replacing(path) as temporary:
        temporary.write_bytes(file.getvalue())
