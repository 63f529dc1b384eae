"""``contseg predict`` and ``contseg export``: a trained step on a user's images, or as a file for use elsewhere."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contseg.benchmark.cli.arguments import folder, number
from contseg.datasets.errors import UserError

if TYPE_CHECKING:
    from contseg.benchmark.score.networks import FoundStep


def add_step(parser: argparse.ArgumentParser) -> None:
    """The argument and the options that name a trained step."""
    add = parser.add_argument
    add("step", metavar="STEP", help="a record's file, or the first digits of a step key (`cache list`)")
    where = "the results folder of a key (default: runs); a record knows its own"
    add("--results", type=folder("--results"), default=Path("runs"), metavar="DIR", help=where)
    add("--method", default="", help="whose prediction rule, where several methods share the step")


def add_predict(parser: argparse.ArgumentParser) -> None:
    """The options of ``predict``."""
    add_step(parser)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument(
        "--out", type=folder("--out"), required=True, metavar="DIR", help="gets labels/NAME.png and overlays/NAME.png"
    )
    parser.add_argument(
        "--longest",
        type=number("--longest"),
        default=0,
        metavar="PIXELS",
        help="larger images are reduced to this side for the network, and the labels enlarged (default: 0, never)",
    )


def add_export(parser: argparse.ArgumentParser) -> None:
    """The options of ``export``."""
    add_step(parser)
    form = "FILE.pt2: a program that torch alone runs; FILE.safetensors: weights under plain names"
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=form)


def predict(args: argparse.Namespace) -> int:
    """Palette PNGs and overlays of a user's images."""
    import torch

    from contseg.benchmark.models.load import channels_of, load_step, meta_of
    from contseg.benchmark.report.own_images import images_of, predict_images

    images = images_of(args.images)
    step = _step(args)
    channels = channels_of(meta_of(step.out, step.key))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _, rule = load_step(step.out, step.key, step.method, device)
    counts = predict_images(rule, images, args.out, channels=channels, names=step.names, longest=args.longest)
    total = sum(counts.values())
    for label, n in sorted(counts.items(), key=lambda item: -item[1]):
        print(f"{100 * n / total:5.1f} %  {step.names[label] if step.names else f'class {label}'}")
    what = "1 image" if len(images) == 1 else f"{len(images)} images"
    print(f"{what}: {args.out / 'labels'}, {args.out / 'overlays'}")
    return 0


def export(args: argparse.Namespace) -> int:
    """A trained step as one file."""
    from contseg.benchmark.models.load import channels_of, load_trained, meta_of

    if args.out.suffix not in (".pt2", ".safetensors"):
        raise UserError(f"--out {args.out}: name a file that ends in .pt2 (a program) or .safetensors (weights)")
    if args.out.is_dir():
        raise UserError(f"--out {args.out} is a folder: name a file")
    step = _step(args)
    meta = meta_of(step.out, step.key)
    channels = channels_of(meta)
    network, method = load_trained(step.out, step.key, step.method)
    about: dict[str, Any] = {
        "step": meta["title"],
        "method": method.name,
        "labels": list(channels),
        "class_names": list(step.names),
    }
    if args.out.suffix == ".pt2":
        from contseg.benchmark.models.export import export, save

        print("torch.export follows the network (seconds; Swin: more than five minutes) ...", file=sys.stderr)
        save(export(network, method.predict, channels), args.out, about)
    else:
        from contseg.benchmark.models import plain
        from contseg.benchmark.plan.config import read_section
        from contseg.benchmark.plan.model_config import ModelConfig

        config = read_section(ModelConfig, "model", meta["model"], str(step.out))
        weights, builds = plain.plain_weights(network, method, config)
        plain.save(weights, args.out, about | builds)
    print(f"written: {args.out} ({args.out.stat().st_size / 2**20:,.1f} MiB)")
    return 0


def _step(args: argparse.Namespace) -> FoundStep:
    from contseg.benchmark.score.networks import find_step

    return find_step(args.step, args.results, args.method)
