"""The latent space after every step: pixel features of old and new classes, and SDR's prototypes.

Michieli and Zanuttigh (CVPR 2021) claim that features of one class move together and features of different classes
move apart. All methods and steps of a figure share one plane, the first two principal axes of all their features, and
one range of its axes: what moves from panel to panel has moved in the latent space, too.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from contseg.benchmark.report.figures import STYLE, contest_rows, file_name, save
from contseg.benchmark.report.predictions import steps_shown
from contseg.benchmark.report.tables import title
from contseg.benchmark.score.leaderboard import Leaderboard
from contseg.benchmark.score.networks import StoredNetworks
from contseg.benchmark.score.records import Record
from contseg.benchmark.store.files import Store, read_tensors
from contseg.datasets.errors import UserError
from contseg.datasets.palette import label_colours
from contseg.datasets.scenario import VOID
from contseg.methods.base import shrink_labels
from contseg.methods.sdr import Prototypes

IMAGES, PER_CLASS = 40, 200
Values = NDArray[np.float64]


def write_latent(board: Leaderboard, stored: StoredNetworks, folder: Path) -> tuple[list[Path], list[str]]:
    """A figure for each contest, first seed of every method with several steps. Returns files and failures."""
    written: list[Path] = []
    missing: dict[str, None] = {}
    for key, rows in contest_rows(board):
        ids = stored.telling(rows[0][1][0].run.last, rows[0][1][0].run.groups, IMAGES)
        panels: dict[str, list[tuple[Values, Values, dict[int, Values]]]] = {}
        for method, runs in rows:
            if not runs[0].score.incremental:
                continue
            try:
                panels[method] = [(*features(stored, r, ids), prototypes(stored, r)) for r in runs[0].run.records]
            except UserError as error:
                missing[f"{method}: {error}"] = None
        if panels:
            names = rows[0][1][0].run.last["class_names"]
            place = folder / file_name("-".join(key))
            place.mkdir(parents=True, exist_ok=True)
            with mpl.rc_context(STYLE):
                written += save(draw(panels, names, list(steps_shown(rows[0][1][0])), title(key)), place / "latent")
    return written, list(missing)


@torch.inference_mode()
def features(stored: StoredNetworks, record: Record, ids: list[str]) -> tuple[Values, Values]:
    """Features (P, D) and labels (P,) of pixels of seen foreground classes in test images, at most 200 a class."""
    model, _ = stored.network(record)
    found, labels = [], []
    for image_id in ids:
        image, label = stored.image(record, image_id)
        out = model(model.pixels.normalise(stored.batch(image)).to(next(model.parameters()))).features[0]
        found.append(out.flatten(1).T.float().cpu().numpy())
        labels.append(shrink_labels(label[None], (out.shape[-2], out.shape[-1]))[0].flatten().numpy())
    points, classes = np.concatenate(found), np.concatenate(labels)
    rng = np.random.default_rng(0)
    seen = [k for k in record["channels"][1:] if (classes == k).any()]
    kept = [rng.permutation(np.flatnonzero(classes == k))[:PER_CLASS] for k in seen]
    rows = np.concatenate(kept) if kept else np.zeros(0, dtype=int)
    return points[rows].astype(float), classes[rows].astype(float)


def prototypes(stored: StoredNetworks, record: Record) -> dict[int, Values]:
    """Raw label -> SDR's prototype (D,), for the classes whose prototype was stored with this step."""
    folder = Store(stored.out).step(str(record.get("step_key", record["key"])))
    for path in sorted(folder.glob("observer-*.safetensors")):
        loaded = read_tensors(path)
        if loaded is not None and loaded[0].keys() == set(Prototypes.state):
            state = loaded[0]
            known = [c for c, n in enumerate(state["counts"].tolist()) if n > 0 and c > 0]
            return {record["channels"][c]: state["prototypes"][c].double().numpy() for c in known}
    return {}


def separation(points: Values, labels: Values) -> float:
    """Trace of the variance between class centroids, divided by the mean trace within classes; NaN for one class."""
    groups = [points[labels == k] for k in np.unique(labels)]
    if len(groups) < 2:
        return float("nan")
    centres = np.array([g.mean(0) for g in groups])
    within = np.mean([g.var(0).sum() for g in groups])
    return float(centres.var(0).sum() / within) if within > 0 else float("nan")


def principal_plane(points: Values) -> tuple[Values, Values]:
    """Mean (D,) and the two principal axes (D, 2) of points (N, D); each axis' largest entry is positive."""
    centre = points.mean(0)
    axes = np.linalg.svd(points - centre, full_matrices=False)[2][:2].T
    return centre, axes * np.sign(axes[np.abs(axes).argmax(0), range(axes.shape[1])])


def draw(
    panels: dict[str, list[tuple[Values, Values, dict[int, Values]]]], names: list[str], steps: list[int], about: str
) -> Figure:
    """Methods in rows, steps in columns; dots are pixels, stars are prototypes.

    Networks with features of another length have a plane of their own.
    """
    figure = Figure(figsize=(0.8 + 2.1 * len(steps), 0.9 + 2.0 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), len(steps), squeeze=False)
    colours = label_colours(len(names)) / 255
    planes = {d: principal_plane(np.concatenate(every)) for d, every in by_length(panels).items()}
    for line, (method, row) in enumerate(panels.items()):
        for step, (points, labels, kept) in enumerate(row):
            ax = axes[line, step]
            centre, plane = planes[points.shape[1]]
            flat = (points - centre) @ plane
            ax.scatter(*flat.T, s=3, c=colours[labels.astype(int)], alpha=0.5, lw=0, rasterized=True)
            for label, prototype in kept.items():
                place = (prototype - centre) @ plane
                ax.scatter(*place, s=90, marker="*", color=colours[label], edgecolor="black", lw=0.8)
            ax.tick_params(labelsize=6)
            ax.set_title(f"step {step}: between / within {separation(points, labels):.2f}", fontsize=7)
        axes[line, 0].set_ylabel(f"{method}\n2nd axis", fontsize=8)
    corners = np.array([ax.dataLim.get_points() for ax in axes.ravel()])
    corners = corners[np.isfinite(corners).all(axis=(1, 2))]  # an empty panel has none
    low, high = corners.min(axis=(0, 1)), corners.max(axis=(0, 1))
    border = 0.05 * (high - low)
    for ax in axes.ravel():
        ax.set(xlim=(low[0] - border[0], high[0] + border[0]), ylim=(low[1] - border[1], high[1] + border[1]))
    for ax in axes[-1]:
        ax.set_xlabel("1st principal axis", fontsize=8)
    shown = sorted({int(k) for row in panels.values() for _, labels, _ in row for k in np.unique(labels)} - {0, VOID})
    for k in shown:
        axes[0, 0].scatter([], [], color=colours[k], s=20, label=names[k])
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=8, fontsize=7)
    figure.suptitle(
        f"{about}\nbetween / within: variance between the centres of classes over the variance within classes; more is"
        " further apart",
        fontsize=8,
    )
    return figure


def by_length(panels: dict[str, list[tuple[Values, Values, dict[int, Values]]]]) -> dict[int, list[Values]]:
    """The features of all panels, by their length D."""
    found: dict[int, list[Values]] = {}
    for row in panels.values():
        for points, _, _ in row:
            found.setdefault(points.shape[1], []).append(points)
    return found
