"""Downloads and builds VOC 2012 with the augmented labels, and ADE20K, from their official sources.

``SegmentationClassAug`` is built by rule: the class maps of SBD (Hariharan et al., ICCV 2011), and VOC's own map where
both exist. The training list is SBD train + val and VOC train, minus VOC val: 10 582 ids, ascending.
Addresses and checksums of VOC and SBD are torchvision's; ADE20K's checksum is that of GluonCV's
``scripts/datasets/ade20k.py``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from contseg.datasets.errors import UserError
from contseg.datasets.tools.archive import unpack
from contseg.datasets.tools.download import Source, fetch, no_space

VOC_FOLDERS = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")
"""The folders kept of VOC 2012. Not ``Annotations``: its XML files name objects that were never segmented."""

Say = Callable[[str], None]


def voc_source() -> Source:
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    voc = DATASET_YEAR_DICT["2012"]
    page = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/index.html"
    return Source(voc["url"], voc["filename"], f"md5:{voc['md5']}", page)


def sbd_source() -> Source:
    from torchvision.datasets.sbd import SBDataset

    page = "http://home.bharathh.info/pubs/codes/SBD/download.html"
    return Source(SBDataset.url, SBDataset.filename, f"md5:{SBDataset.md5}", page)


def ade_source() -> Source:
    return Source(
        "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
        "ADEChallengeData2016.zip",
        "sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
        "http://sceneparsing.csail.mit.edu/",
    )


def prepare_voc(
    root: Path, aug: Path | None = None, say: Say = print, voc: Source | None = None, sbd: Source | None = None
) -> Path:
    """``ROOT/VOC2012`` with images, both label folders and ``train_aug.txt``; existing parts are kept.

    ``aug``: a ready-made ``SegmentationClassAug`` archive in place of SBD; VOC's own maps still take precedence.
    """
    folder = root / "VOC2012"
    if not folder.exists():
        archive = fetch(voc or voc_source(), root / "downloads", say)
        say(f"unpacking {archive}")
        with _unpacked(archive, folder, _voc_member) as new:
            _require(new, *VOC_FOLDERS, archive=archive)
            new.replace(folder)
    _require(folder, *VOC_FOLDERS, archive=None)
    lists = folder / "ImageSets" / "Segmentation"
    maps = folder / "SegmentationClassAug"
    if maps.exists() and (lists / "train_aug.txt").exists():
        say(f"{maps} is there already")
        return folder
    train, val = _ids(lists / "train.txt"), _ids(lists / "val.txt")
    archive = aug or fetch(sbd or sbd_source(), root / "downloads", say)
    say(f"unpacking {archive}")
    with _unpacked(archive, root / "augmented", _map_member if aug else _sbd_member) as new:
        files = {p.stem: p for p in sorted(new.rglob("*")) if p.suffix in (".mat", ".png")}
        listed = set(files) if aug else set(_ids(new / "train.txt")) | set(_ids(new / "val.txt"))
        ids = sorted((listed | set(train)) - set(val))
        _write_maps(files, [*ids, *val], folder, new / maps.name, say)
        (new / "train_aug.txt").write_text("".join(f"{i}\n" for i in ids))
        if maps.exists():
            shutil.rmtree(maps)  # left without its list by an earlier attempt
        (new / maps.name).replace(maps)
        (new / "train_aug.txt").replace(lists / "train_aug.txt")
    say(f"{folder}: {len(ids)} training ids, {len(val)} validation ids")
    return folder


def prepare_ade(root: Path, say: Say = print, ade: Source | None = None) -> Path:
    """``ROOT/ADEChallengeData2016`` with ``images`` and ``annotations``."""
    folder = root / "ADEChallengeData2016"
    if folder.exists():
        say(f"{folder} is there already")
        return folder
    archive = fetch(ade or ade_source(), root / "downloads", say)
    say(f"unpacking {archive}")
    with _unpacked(archive, folder, lambda name: _below(name, folder.name)) as new:
        _require(
            new, *(f"{a}/{b}" for a in ("images", "annotations") for b in ("training", "validation")), archive=archive
        )
        new.replace(folder)
    say(f"{folder}: complete")
    return folder


def sbd_map(path: Path):
    """Class map of an SBD ``.mat`` file, (H, W) uint8, labels 0..20."""
    from scipy.io import loadmat

    try:
        classes = loadmat(path, variable_names=["GTcls"])["GTcls"][0]["Segmentation"][0]
    except Exception as e:  # any error of a foreign format is about this file
        raise UserError(f"{path.name} is not an SBD class file ({type(e).__name__}: {e})") from e
    if classes.ndim != 2 or classes.max(initial=0) > 20:
        raise UserError(
            f"{path.name} does not hold a map of the 20 classes: shape {classes.shape}, up to {classes.max()}"
        )
    return classes.astype("uint8")


def _write_maps(files: dict[str, Path], ids: list[str], folder: Path, into: Path, say: Say) -> None:
    """Write one map for each id: VOC's own if there is one, else the one in ``files``."""
    from PIL import Image

    from contseg.datasets.palette import voc_palette
    from contseg.datasets.progress import progress

    own = folder / "SegmentationClass"
    without = [i for i in ids if i not in files and not (own / f"{i}.png").exists()]
    if without:
        raise UserError(f"no label map for {len(without)} of {len(ids)} ids ({', '.join(without[:3])}, ...)")
    into.mkdir()
    palette = voc_palette()
    say(f"writing {len(ids)} label maps")
    for image_id in progress(ids, into.name, unit="image"):
        name = f"{image_id}.png"
        if (own / name).exists():
            shutil.copyfile(own / name, into / name)
        elif files[image_id].suffix == ".png":
            _require_labels(files[image_id])
            files[image_id].replace(into / name)
        else:
            image = Image.fromarray(sbd_map(files[image_id]))
            image.putpalette(palette)
            image.save(into / name)


def _require_labels(path: Path) -> None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            mode = image.mode
    except UnidentifiedImageError as e:
        raise UserError(f"{path.name} in the archive is not an image") from e
    if mode not in ("P", "L"):
        raise UserError(
            f"{path.name} in the archive is a {mode} image, not a map of class indices (8-bit, grey or palette): "
            "some archives hold coloured maps for display; use the other one"
        )


@contextmanager
def _unpacked(archive: Path, target: Path, keep: Callable[[str], str | None]) -> Iterator[Path]:
    """The archive unpacked in a temporary folder next to ``target``, which is removed afterwards."""
    work = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(work, ignore_errors=True)
    try:
        unpack(archive, work, keep)
        yield work
    except OSError as e:
        raise no_space(e, target.parent) from e
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _voc_member(name: str) -> str | None:
    inside = _below(name, "VOC2012")
    return inside if inside and inside.startswith(tuple(f"{f}/" for f in VOC_FOLDERS)) else None


def _sbd_member(name: str) -> str | None:
    inside = _below(name, "dataset")
    return inside if inside and (inside.startswith("cls/") or inside in ("train.txt", "val.txt")) else None


def _map_member(name: str) -> str | None:
    """Label maps in any folder, except macOS's metadata files (``__MACOSX/._ID.png``)."""
    base = name.rsplit("/", 1)[-1]
    return base if base.endswith(".png") and not base.startswith(".") else None


def _below(name: str, folder: str) -> str | None:
    """``VOCdevkit/VOC2012/x/y`` below ``VOC2012`` -> ``x/y``."""
    before, found, inside = f"/{name}".partition(f"/{folder}/")
    return inside if found and inside and "__MACOSX" not in before else None


def _require(folder: Path, *parts: str, archive: Path | None) -> None:
    for part in parts:
        if not (folder / part).is_dir():
            what = f"{archive} does not hold" if archive else f"{folder} exists without"
            raise UserError(f"{what} {part}: {'is it the right archive?' if archive else 'move it away and run again'}")


def _ids(path: Path) -> list[str]:
    if not path.is_file():
        raise UserError(f"no list {path.name} in {path.parent}: is it the right archive?")
    return path.read_text().split()
