"""Small archives with the names and the inner structure of the official ones, made by the tests."""

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from contseg.datasets.palette import voc_palette
from contseg.datasets.tools.download import Source

# ids by what they are: VOC train 2, VOC val 2; SBD knows one of each and three more
VOC_TRAIN, VOC_VAL = ("2007_000032", "2007_000039"), ("2007_000033", "2007_000042")
SBD_TRAIN, SBD_VAL = ("2008_000008", "2007_000032", "2007_000033"), ("2008_000002", "2010_000001")
TRAIN_AUG = ("2007_000032", "2007_000039", "2008_000002", "2008_000008", "2010_000001")
SIZE = (6, 8)


def own_map(image_id: str) -> np.ndarray:
    """VOC's map: a class that depends on the id, and a void border."""
    label = np.full(SIZE, 1 + int(image_id[-1]), np.uint8)
    label[0] = 255
    return label


def sbd_map(image_id: str) -> np.ndarray:
    """SBD's map of the same id: another class, no void."""
    label = np.zeros(SIZE, np.uint8)
    label[2:] = 11 + int(image_id[-1])
    return label


def png(label: np.ndarray) -> bytes:
    image = Image.fromarray(label)
    image.putpalette(voc_palette())
    return _bytes(image, "PNG")


def jpg(image_id: str) -> bytes:
    return _bytes(Image.new("RGB", SIZE[::-1], (int(image_id[-2:]), 90, 200)), "JPEG")


def mat(label: np.ndarray) -> bytes:
    """As in SBD: a struct ``GTcls`` with the field ``Segmentation``."""
    out = io.BytesIO()
    savemat(
        out, {"GTcls": {"Segmentation": label, "CategoriesPresent": np.unique(label[label > 0])}}, do_compression=True
    )
    return out.getvalue()


def voc_files() -> dict[str, bytes]:
    top = "VOCdevkit/VOC2012"
    files = {f"{top}/JPEGImages/{i}.jpg": jpg(i) for i in sorted({*VOC_TRAIN, *VOC_VAL, *SBD_TRAIN, *SBD_VAL})}
    files |= {f"{top}/SegmentationClass/{i}.png": png(own_map(i)) for i in (*VOC_TRAIN, *VOC_VAL)}
    files |= {f"{top}/SegmentationObject/{i}.png": png(own_map(i)) for i in VOC_TRAIN}
    files |= {f"{top}/Annotations/{i}.xml": b"<annotation/>" for i in VOC_TRAIN}
    for name, ids in (("train", VOC_TRAIN), ("val", VOC_VAL), ("trainval", (*VOC_TRAIN, *VOC_VAL))):
        files[f"{top}/ImageSets/Segmentation/{name}.txt"] = "".join(f"{i}\n" for i in sorted(ids)).encode()
    return files


def sbd_files() -> dict[str, bytes]:
    top = "benchmark_RELEASE/dataset"
    files = {f"{top}/cls/{i}.mat": mat(sbd_map(i)) for i in (*SBD_TRAIN, *SBD_VAL)}
    files |= {f"{top}/inst/{i}.mat": b"not needed" for i in SBD_TRAIN}
    files |= {f"{top}/train.txt": "\n".join(SBD_TRAIN).encode(), f"{top}/val.txt": "\n".join(SBD_VAL).encode()}
    return files


def ade_files() -> dict[str, bytes]:
    top, files = "ADEChallengeData2016", {}
    for folder, split, n in (("training", "train", 3), ("validation", "val", 2)):
        for k in range(1, n + 1):
            files[f"{top}/images/{folder}/ADE_{split}_{k:08d}.jpg"] = jpg(f"{k:02d}")
            files[f"{top}/annotations/{folder}/ADE_{split}_{k:08d}.png"] = png(np.full(SIZE, k, np.uint8))
    files[f"{top}/objectInfo150.txt"] = (
        b"Idx\tRatio\tTrain\tVal\tName\n1\t0.5\t1\t1\twall\n2 \t0.3\t1\t1\tsky, heaven\n3\t0.2\t1\t0\ttree\n"
    )
    return files


def tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as t:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            t.addfile(info, io.BytesIO(content))
    return out.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        for name, content in files.items():
            z.writestr(name, content)
    return out.getvalue()


def source(url: str, filename: str, content: bytes) -> Source:
    return Source(url, filename, f"md5:{hashlib.md5(content).hexdigest()}", "http://the.official/page")


def labels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "P"
        return np.array(image)


def _bytes(image: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()
