"""Image, label and every method's prediction after every step, side by side; and a strip of label maps alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from contseg.benchmark.report.figures import STYLE, contest_rows, file_name
from contseg.benchmark.report.tables import title
from contseg.benchmark.score.leaderboard import Leaderboard
from contseg.benchmark.score.networks import StoredNetworks
from contseg.benchmark.score.records import Record
from contseg.benchmark.score.scores import Scored
from contseg.datasets.errors import UserError
from contseg.datasets.palette import label_colours
from contseg.datasets.scenario import VOID

PANEL = 1.35  # inches
Image = NDArray[np.uint8]


def write_predictions(board: Leaderboard, stored: StoredNetworks, n: int, folder: Path) -> tuple[list[Path], list[str]]:
    """For each contest one PNG for each image, and ``strip.png`` and ``strip.pdf`` of all of them without the images.

    The first seed of every method. Returns files and failures.
    """
    written: list[Path] = []
    missing: dict[str, None] = {}
    for key, rows in contest_rows(board):
        place = folder / file_name("-".join(key))
        place.mkdir(parents=True, exist_ok=True)
        record = rows[0][1][0].run.last
        groups = rows[0][1][0].run.groups
        ids = stored.telling(record, groups, n)
        seen: dict[str, dict[int, dict[str, Image]]] = {method: {} for method, _ in rows}
        for method, runs in rows:
            for r, at in zip(runs[0].run.records, steps_shown(runs[0]), strict=True):
                try:
                    seen[method][at] = predictions(stored, r, ids)
                except UserError as error:
                    missing[f"{method}, step {r['step']}: {error}"] = None
        labels: dict[str, Image] = {}
        for image_id in ids:
            image, label = (x.numpy() for x in stored.image(record, image_id))
            panels = {m: {step: maps[image_id] for step, maps in steps.items()} for m, steps in seen.items()}
            labels[image_id] = label
            with mpl.rc_context(STYLE):
                figure = draw(image.transpose(1, 2, 0), label, panels, len(groups), record["class_names"])
                figure.suptitle(title(key), fontsize=9)
                path = place / f"prediction-{file_name(image_id)}.png"
                figure.savefig(path, metadata={"Software": None})
            written.append(path)
        with mpl.rc_context(STYLE):
            strip = draw_strip(labels, seen, record["class_names"], title(key))
            for kind in ("png", "pdf"):
                strip.savefig(path := place / f"strip.{kind}", metadata={"Software": None} if kind == "png" else None)
                written.append(path)
    return written, list(missing)


def steps_shown(s: Scored) -> range:
    """The columns of a run's steps; Joint has one, under the last step of the scenario."""
    n = len(s.score.groups)
    return range(n - len(s.run.records), n)


def predictions(stored: StoredNetworks, record: Record, ids: Sequence[str]) -> dict[str, Image]:
    """Image id -> raw labels (H, W) predicted by a step's network."""
    _, predict = stored.network(record)
    channels = np.array(record["channels"], dtype=np.uint8)
    images = {i: stored.batch(stored.image(record, i)[0]) for i in ids}
    return {i: channels[predict(image)[0].cpu().numpy()] for i, image in images.items()}


def draw(image: Image, label: Image, panels: dict[str, dict[int, Image]], n_steps: int, names: Sequence[str]) -> Figure:
    """Image and label above a grid of methods (rows) and steps (columns).

    ``image`` (H, W, 3) uint8; ``label`` and ``panels[method][step]`` (H, W) raw labels; ``names`` by label.
    """
    columns, lines = max(n_steps, 2), len(panels) + 1
    height = PANEL * image.shape[0] / image.shape[1]
    figure = Figure(figsize=(0.9 + PANEL * columns, 0.9 + (height + 0.12) * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    colours = label_colours(len(names))
    for ax in axes.ravel():
        ax.set(xticks=[], yticks=[])
        ax.set_frame_on(False)
    axes[0, 0].imshow(image)
    axes[0, 0].set_title("image", fontsize=8)
    axes[0, 1].imshow(colours[label], interpolation="nearest")
    axes[0, 1].set_title("label", fontsize=8)
    for line, (method, maps) in enumerate(panels.items(), 1):
        axes[line, 0].set_ylabel(method, fontsize=8)
        for step in range(n_steps):
            if step in maps:
                axes[line, step].imshow(colours[maps[step]], interpolation="nearest")
            if line == 1:
                axes[line, step].set_title(f"step {step}", fontsize=8)
    add_legend(figure, (label, *(m for maps in panels.values() for m in maps.values())), names)
    return figure


def draw_strip(
    labels: dict[str, Image], seen: dict[str, dict[int, dict[str, Image]]], names: Sequence[str], heading: str
) -> Figure:
    """Label maps alone: a row for each image; its label, the network of step 0, then every method after the last step.

    ``labels[image]`` and ``seen[method][step][image]`` (H, W) raw labels; ``names`` by label. No photograph is shown.
    """
    ordered = sorted(seen.items(), key=lambda item: len(item[1]) < 2)  # methods of several steps first, Joint last
    first = next((maps[0] for _, maps in ordered if 0 in maps and len(maps) > 1), None)
    columns: dict[str, dict[str, Image]] = {"label": labels}
    if first is not None:
        columns["step 0"] = first
    columns |= {method: maps[max(maps)] for method, maps in ordered if maps}
    height = PANEL * max(label.shape[0] / label.shape[1] for label in labels.values())
    figure = Figure(figsize=(PANEL * len(columns), 1.0 + height * len(labels)), layout="constrained")
    axes = figure.subplots(len(labels), len(columns), squeeze=False)
    colours = label_colours(len(names))
    for line, image_id in enumerate(labels):
        for ax, (name, maps) in zip(axes[line], columns.items(), strict=True):
            ax.set(xticks=[], yticks=[])
            ax.imshow(colours[maps[image_id]], interpolation="nearest")
            if line == 0:
                ax.set_title(name, fontsize=9)
    add_legend(figure, [maps[i] for maps in columns.values() for i in labels], names)
    figure.suptitle(heading, fontsize=9)
    return figure


def add_legend(figure: Figure, maps: Sequence[Image], names: Sequence[str]) -> None:
    """The colours of all labels that occur, below the panels; the outline is for those as dark as the page."""
    colours = label_colours(len(names))
    shown = sorted({int(k) for m in maps for k in np.unique(m)} - {0})
    handles = [
        Patch(facecolor=colours[k] / 255, edgecolor="0.5", label="void" if k == VOID else names[k]) for k in shown
    ]
    longest = max((len(str(h.get_label())) for h in handles), default=0)
    fit = int(figure.get_figwidth() / (0.6 + 0.06 * longest))  # inches: the patch, a letter
    figure.legend(handles=handles, loc="outside lower center", ncols=max(1, min(len(handles), fit)), fontsize=7)
