"""``run_benchmark.py data ...``: prepare, verify, start with one's own, look at, exchange lists; imports are lazy."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from datasets.errors import UserError

if TYPE_CHECKING:
    from datasets.base import SegmentationDataset
    from datasets.scenario import Scenario

EXAMPLES = """\
examples:
  data prepare voc --root /data                 VOC 2012 with SegmentationClassAug in /data/VOC2012
  data verify voc --root /data                  is it the data set of the papers? (exit code 1: it deviates)
  data verify camvid/ --json                    a folder of one's own
  data init my_pictures/ --out my_data/         a data set from pictures and label maps
  data show voc/15-1/overlapped --root /data --out voc.png
  data export-splits voc/15-1/disjoint --root /data --out lists/
  data import-splits MiB/data/voc/15-5s-ov --root /data --out mib.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The tools as subcommands of ``data``."""
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    tools = parser.add_subparsers(dest="tool", metavar="TOOL", required=True)

    def tool(name: str, text: str) -> argparse.ArgumentParser:
        return tools.add_parser(name, help=text, description=text)

    prepare = tool("prepare", "download, check, unpack and build VOC 2012 (with SegmentationClassAug) or ADE20K")
    prepare.add_argument("what", choices=("voc", "ade"))
    prepare.add_argument("--root", type=Path, required=True, metavar="DIR", help="gets VOC2012 or ADEChallengeData2016")
    prepare.add_argument(
        "--aug", type=Path, metavar="FILE", help="a ready-made SegmentationClassAug archive, in place of SBD (voc only)"
    )

    verify = tool(
        "verify", "compare a data set with the published one; exit code 1 if it deviates, 2 if it is unusable"
    )
    verify.add_argument("what", metavar="voc|ade|FOLDER")
    verify.add_argument("--json", action="store_true", help="print the report as JSON")
    _data(verify)

    init = tool("init", "look at a folder of pictures and label maps, say what can be done with it, make it a data set")
    init.add_argument("folder", type=Path)
    init.add_argument(
        "--out", type=Path, metavar="DIR", help="write the data set there (the folder itself is not changed)"
    )
    init.add_argument(
        "--first-class",
        type=int,
        default=1,
        choices=(0, 1),
        help="label of the first class in the maps; 0: no background, all labels are raised by one (default: 1)",
    )
    init.add_argument("--void", type=int, nargs="+", default=[255], metavar="LABEL", help="labels that mean nothing")

    show = tool("show", "pictures and pixels per class at every step; a contact sheet of what each step sees")
    show.add_argument("scenario", metavar="DATA/TASK/SETUP")
    show.add_argument("--out", type=Path, metavar="FILE.png", help="write the contact sheet")
    show.add_argument("--pictures", type=int, default=3, metavar="N", help="pictures a step on the sheet (default: 3)")
    _data(show)

    export = tool("export-splits", "write the lists of a scenario: ids, index files, JSON")
    export.add_argument("scenario", metavar="DATA/TASK/SETUP")
    export.add_argument("--out", type=Path, required=True, metavar="DIR")
    _data(export)

    imported = tool("import-splits", "compare someone's lists with ours, and make them a scenario that can be run")
    imported.add_argument(
        "lists",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="files train-0.npy, train-0.txt ... or their folder; our JSON",
    )
    imported.add_argument("--name", default="voc", metavar="voc|ade|NAME", help="the data set (default: voc)")
    imported.add_argument(
        "--scenario", metavar="DATA/TASK/SETUP", help="whose classes; found if it is one of the papers'"
    )
    imported.add_argument("--train-list", type=Path, metavar="FILE", help="what the training indices point into")
    imported.add_argument("--val-list", type=Path, metavar="FILE", help="what the validation indices point into")
    imported.add_argument("--out", type=Path, metavar="FILE.json", help="write a scenario that `run` takes")
    _data(imported)


def _data(parser: argparse.ArgumentParser) -> None:
    folder = parser.add_mutually_exclusive_group()
    folder.add_argument("--root", type=Path, metavar="DIR", help="the folder of the data set")
    folder.add_argument("--data", type=_path_of, dest="root", metavar="NAME=DIR", help="the same, written as for `run`")
    parser.add_argument("--plugin", nargs="+", default=[], metavar="FILE.py", help="data sets of your own")


def _path_of(item: str) -> Path:
    return Path(item.partition("=")[2] or item)


def main(args: argparse.Namespace) -> int:
    """Run one tool; the exit code."""
    if getattr(args, "plugin", None):
        from methods.registry import load_plugins

        load_plugins(*args.plugin)
    tools: dict[str, Callable[[argparse.Namespace], int]] = {
        "prepare": _prepare,
        "verify": _verify,
        "init": _init,
        "show": _show,
        "export-splits": _export,
        "import-splits": _import,
    }
    return tools[args.tool](args)


def _prepare(args: argparse.Namespace) -> int:
    from datasets.prepare import prepare_ade, prepare_voc

    if args.what == "ade":
        if args.aug:
            raise UserError("--aug belongs to voc: ADE20K has no augmented labels")
        prepare_ade(args.root)
    else:
        prepare_voc(args.root, args.aug)
    print(f"now: run_benchmark.py data verify {args.what} --root {args.root}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from datasets.base import known_datasets, open_dataset
    from datasets.verify import verify

    name, root = args.what, args.root
    if root is None and (name not in known_datasets() or Path(name).is_dir()):
        root = Path(name)
        name = root.resolve().name
    report = verify(open_dataset(name, root))
    print(json.dumps(report.as_json(), indent=1) if args.json else report)
    return 1 if report.deviations else 0


def _init(args: argparse.Namespace) -> int:
    from datasets.own import Convention, look_at, write

    with tempfile.TemporaryDirectory() as work:
        found = look_at(args.folder, Convention(args.first_class, tuple(args.void)), Path(work))
        print(found)
        if args.out:
            write(found, args.out)
            print(f"\nwritten: {args.out}\nnow: run_benchmark.py data verify {args.out}")
    return 1 if found.faults else 0


def _show(args: argparse.Namespace) -> int:
    from datasets.show import contact_sheet, table, training_pictures

    dataset, scenario = _scenario(args.scenario, args.root)
    found = training_pictures(dataset)
    print(table(dataset, scenario, found))
    if args.out:
        contact_sheet(dataset, scenario, found, args.pictures).save(args.out)
        print(f"\ncontact sheet: {args.out}")
    return 0


def _export(args: argparse.Namespace) -> int:
    from datasets.splits import export

    dataset, scenario = _scenario(args.scenario, args.root)
    lists = export(dataset, scenario, args.out)
    sizes = ", ".join(str(len(ids)) for ids in lists["train"].values())
    print(f"{scenario.name}: {sizes} pictures by step; lists in {args.out}")
    return 0


def _import(args: argparse.Namespace) -> int:
    from datasets.base import open_dataset
    from datasets.scenario import parse_scenario
    from datasets.splits import compare, read_lists, write_scenario

    name = args.scenario.split("/")[0] if args.scenario else args.name
    dataset = open_dataset(name, args.root)
    wanted = parse_scenario(args.scenario, dataset.n_foreground) if args.scenario else None
    theirs = read_lists(args.lists, dataset, {"train": args.train_list, "val": args.val_list})
    nearest, equal, text = compare(dataset, theirs, wanted)
    print(text)
    if args.out:
        write_scenario(args.out, wanted or nearest, theirs)
        print(f"\nrun them as: --scenarios {(wanted or nearest).name}+{args.out}")
    return 0 if equal or args.out else 1


def _scenario(text: str, root: Path | None) -> tuple[SegmentationDataset, Scenario]:
    from datasets.base import open_dataset
    from datasets.scenario import parse_scenario

    dataset = open_dataset(text.split("/")[0], root)
    return dataset, parse_scenario(text, dataset.n_foreground)
