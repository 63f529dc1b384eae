"""Is this the data set of the papers? A report names each deviation and its effect.

Everything is read from the pixel label maps. VOC's XML labels are not used: in 817 of the 10 582 images they name
objects that were never segmented.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from contseg.datasets.base import SPLITS, SegmentationDataset
from contseg.datasets.errors import UserError
from contseg.datasets.scenario import BACKGROUND, VOID, parse_scenario
from contseg.datasets.tools.reference import REFERENCES, Reference
from contseg.datasets.tools.scan import LEFT_OUT, Scan, scan
from contseg.datasets.view import selection


@dataclass(frozen=True)
class Deviation:
    """A deviation and its effect."""

    what: str
    effect: str


@dataclass
class Report:
    """What was found. ``splits``: facts by split; ``scenarios``: images by step, found and published."""

    dataset: str
    root: Path | None
    class_names: tuple[str, ...]
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    scenarios: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    deviations: list[Deviation] = field(default_factory=list)

    def note(self, what: str, effect: str) -> None:
        self.deviations.append(Deviation(what, effect))

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "dataset": self.dataset,
            "root": str(self.root) if self.root else None,
            "splits": self.splits,
            "scenarios": self.scenarios,
            "deviations": [vars(d) for d in self.deviations],
        }

    def __str__(self) -> str:
        lines = [f"{self.dataset}" + (f" in {self.root}" if self.root else "")]
        for split, s in self.splits.items():
            (h0, w0), (h1, w1) = s["smallest"], s["largest"]
            lines.append(
                f"{split}: {s['images']} images, {w0}x{h0} to {w1}x{h1}; void {s['void_share']:.2%} of the pixels, "
                f"in {s['with_void']} maps; {s['without_class']} images without a class"
            )
        lines += ["", f"label  {'class':<20}" + "".join(f"{f'{s} images':>18}{'pixels':>9}" for s in self.splits)]
        for label, name in enumerate(self.class_names):
            cells = [s["classes"][label] for s in self.splits.values()]
            shown = "".join(f"{_versus(c['images'], c.get('published')):>18}{c['pixel_share']:>9.2%}" for c in cells)
            lines.append(f"{label:>5}  {name:<20}{shown}")
        if self.scenarios:
            lines += ["", "training images by step:"]
        for name, s in self.scenarios.items():
            sizes = ", ".join(_versus(*pair) for pair in zip(s["found"], s["published"], strict=True))
            lines.append(f"  {name:<20} {sizes}")
        lines.append("")
        for d in self.deviations:
            lines += [f"DEVIATION: {d.what}", f"    {d.effect}"]
        if not self.deviations:
            lines.append("no deviation" if self.dataset in REFERENCES else _unpublished(self.dataset))
        return "\n".join(lines)


def _unpublished(dataset: str) -> str:
    """The last line on data that were compared with nothing."""
    near = difflib.get_close_matches(dataset.lower(), REFERENCES, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"no fault; {dataset!r} is not the name of a published data set{hint}: it was compared with none"


def _versus(found: int, published: int | None) -> str:
    """``12``, or ``12 (not 586)`` if the published number differs."""
    return f"{found}" if published in (None, found) else f"{found} (not {published})"


def verify(dataset: SegmentationDataset, progress: bool = True) -> Report:
    """Read every file of the data set; compare it with the published one if it has its name.

    ``UserError`` if no split can be read.
    """
    report = Report(dataset.name, dataset.root, dataset.class_names)
    scans = _scans(report, dataset, progress)
    for split, s in scans.items():
        report.splits[split] = _facts(s, dataset.class_names)
        _check_files(report, split, s)
        _check_list(report, split, s)
        _check_range(report, split, s, len(dataset.class_names))
    both = sorted(set.intersection(*(set(s.listed) for s in scans.values())))
    if len(scans) > 1 and both:
        report.note(
            f"{_some(both)} in train and in val", "results on val are too good, as these images were trained on"
        )
    reference = REFERENCES.get(dataset.name)
    if reference and _labels(reference) in (None, len(dataset.class_names)):
        _compare(report, dataset, scans, reference)
    return report


def _scans(report: Report, dataset: SegmentationDataset, progress: bool) -> dict[str, Scan]:
    """The splits that can be read. One that cannot is a deviation, unless none can: then ``UserError``."""
    scans: dict[str, Scan] = {}
    errors: list[UserError] = []
    for split in SPLITS:
        try:
            scans[split] = scan(dataset, split, progress)
        except UserError as error:
            errors.append(error)
    if not scans:
        raise errors[0]
    for problem in errors:
        report.note(str(problem), f"only {' and '.join(scans)} can be used")
    return scans


def _facts(s: Scan, class_names: tuple[str, ...]) -> dict[str, Any]:
    pixels, images = s.counts.sum(0), s.present.sum(0)
    foreground = s.present[:, BACKGROUND + 1 : VOID].any(1)
    return {
        "images": len(s.ids),
        "ids_sha256": ids_sha256(s.ids),
        "smallest": s.sizes.min(0).tolist(),
        "largest": s.sizes.max(0).tolist(),
        "void_share": float(pixels[VOID] / pixels.sum()),
        "with_void": int(images[VOID]),
        "without_class": int((~foreground).sum()),
        "classes": [
            {"name": name, "images": int(images[c]), "pixel_share": float(pixels[c] / pixels.sum())}
            for c, name in enumerate(class_names)
        ],
    }


def ids_sha256(ids: tuple[str, ...]) -> str:
    """Hash of the ascending ids, each followed by a line feed."""
    return hashlib.sha256("".join(f"{i}\n" for i in sorted(ids)).encode()).hexdigest()


def _check_files(report: Report, split: str, s: Scan) -> None:
    for kind, lines in s.faults.items():
        more = f" (and {len(lines) - 1} more {split} files like this)" if len(lines) > 1 else ""
        then = "a run goes on without such images" if kind == LEFT_OUT else "a run stops there"
        report.note(f"{lines[0]}{more}", f"{then}; they are not counted in this report")


def _check_list(report: Report, split: str, s: Scan) -> None:
    twice = [i for i, n in Counter(s.listed).items() if n > 1]
    if twice:
        report.note(f"{_some(twice)} more than once in the {split} list", "counted once here, twice by other code")
    elif list(s.listed) != sorted(s.listed):
        at = next(i for i, (a, b) in enumerate(zip(s.listed, sorted(s.listed), strict=True)) if a != b)
        report.note(
            f"the {split} list is not ascending, from entry {at} ({s.listed[at]}) on",
            "none here, where images are named by id; index files of other code would refer to other images",
        )


def _check_range(report: Report, split: str, s: Scan, n_labels: int) -> None:
    outside = s.present[:, n_labels:VOID]
    for label in np.flatnonzero(outside.any(axis=0)):
        ids = [s.ids[i] for i in np.flatnonzero(outside[:, label])]
        report.note(
            f"label {label + n_labels} in {split} maps of {_some(ids)}: the labels are 0..{n_labels - 1} and {VOID}",
            "a run stops there",
        )


def _compare(report: Report, dataset: SegmentationDataset, scans: dict[str, Scan], reference: Reference) -> None:
    for split, s in scans.items():
        _compare_split(report, split, s, reference)
    if "train" not in scans:
        return
    train = scans["train"]
    with_void = int(train.present[:, VOID].sum())
    if reference.with_void not in (None, with_void):
        report.note(
            f"{with_void} training maps have void pixels instead of {reference.with_void}",
            "where both VOC and SBD labelled an image, VOC's map must win; without its borders training differs",
        )
    others = 0
    for name, sizes in reference.scenarios.items():
        scenario = parse_scenario(f"{dataset.name}/{name}", dataset.n_foreground)
        found = [int(selection(train.present, scenario, t).sum()) for t in range(len(sizes))]
        report.scenarios[name] = {"found": found, "published": list(sizes)}
        others += found != list(sizes)
    if others:
        report.note(
            f"{others} of {len(reference.scenarios)} scenarios have other numbers of images by step (above)",
            "they train on other images than the papers",
        )


def _compare_split(report: Report, split: str, s: Scan, reference: Reference) -> None:
    if len(s.ids) != reference.images[split]:
        report.note(
            f"{len(s.ids)} {split} images instead of {reference.images[split]}",
            "every number of this split differs from the published ones",
        )
    elif split in reference.ids_sha256 and ids_sha256(s.ids) != reference.ids_sha256[split]:
        report.note(f"other {split} ids than the published ones, as many", "other images are used")
    if split not in reference.class_images:
        return
    classes = report.splits[split]["classes"][1:]
    for facts, published in zip(classes, reference.class_images[split], strict=True):
        facts["published"] = published
    differ = [c["name"] for c in classes if c["images"] != c["published"]]
    if differ:
        report.note(
            f"other numbers of {split} images of {_some(differ, 'class', 'es')} (above)",
            "other labels, hence other steps",
        )


def _labels(reference: Reference) -> int | None:
    """With background; ``None`` if images by class are not published."""
    return 1 + len(reference.class_images["train"]) if reference.class_images else None


def _some(names: list[str], what: str = "id", plural: str = "s") -> str:
    """``3 ids (a, b, c)``; at most five are named."""
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{len(names)} {what}{plural if len(names) > 1 else ''} ({shown})"
