"""``contseg data ...``: prepare, verify, convert, show, exchange lists; imports are lazy."""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from contseg.benchmark.cli.arguments import user_cache
from contseg.datasets.atomic import writing
from contseg.datasets.errors import UserError, unknown

if TYPE_CHECKING:
    from contseg.datasets.base import SegmentationDataset
    from contseg.datasets.scenario import Scenario

EXAMPLES = """\
examples:
  contseg data prepare voc --root /data                 VOC 2012 with SegmentationClassAug in /data/VOC2012
  contseg data verify voc --root /data                  compare with the papers' data set (exit code 1: it deviates)
  contseg data verify camvid/ --json                    a folder of your own
  contseg data init my_images/ --out my_data/           a data set from images and label maps
  contseg data show voc/15-1/overlapped --root /data --out voc.png
  contseg data export-splits voc/15-1/disjoint --root /data --out lists/
  contseg data import-splits MiB/data/voc/15-5s-ov --root /data --out mib.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The tools as subcommands of ``data``."""
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    tools = parser.add_subparsers(dest="tool", metavar="TOOL", required=True)

    def tool(name: str, text: str) -> argparse.ArgumentParser:
        return tools.add_parser(name, help=text, description=text)

    prepare = tool("prepare", "download, check, unpack and build VOC 2012 (with SegmentationClassAug) or ADE20K")
    prepare.add_argument("what", metavar="voc|ade")
    prepare.add_argument("--root", type=Path, required=True, metavar="DIR", help="gets VOC2012 or ADEChallengeData2016")
    prepare.add_argument(
        "--aug", type=Path, metavar="FILE", help="a ready-made SegmentationClassAug archive, in place of SBD (voc only)"
    )

    verify = tool(
        "verify", "compare a data set with the published one; exit code 1 if it deviates, 2 if it is unusable"
    )
    verify.add_argument("what", metavar="voc|ade|cityscapes|FOLDER")
    verify.add_argument("--json", action="store_true", help="print the report as JSON")
    _data(verify)

    init = tool("init", "read a folder of images and label maps, list possible tasks, write it as a data set")
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
    init.add_argument("--void", type=int, nargs="+", default=[255], metavar="LABEL", help="void labels")

    show = tool("show", "images and pixels of each class at every step; a contact sheet of what each step sees")
    show.add_argument("scenario", metavar="DATA/TASK/SETUP")
    show.add_argument("--out", type=Path, metavar="FILE.png", help="write the contact sheet")
    show.add_argument("--images", type=int, default=3, metavar="N", help="images a step on the sheet (default: 3)")
    _data(show)

    export = tool("export-splits", "write the lists of a scenario: ids, index files, JSON")
    export.add_argument("scenario", metavar="DATA/TASK/SETUP")
    export.add_argument("--out", type=Path, required=True, metavar="DIR")
    _data(export)

    imported = tool("import-splits", "compare lists of other code with ours, and make them a scenario that can be run")
    imported.add_argument(
        "lists",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="files train-0.npy, train-0.txt ... or their folder; our JSON",
    )
    imported.add_argument("--name", metavar="voc|ade|NAME", help="the data set (default: the layout of its folder)")
    imported.add_argument(
        "--scenario",
        metavar="DATA/TASK/SETUP",
        help="the scenario with the same classes (default: search the papers' scenarios)",
    )
    imported.add_argument("--train-list", type=Path, metavar="FILE", help="the list that training positions refer to")
    imported.add_argument("--val-list", type=Path, metavar="FILE", help="the list that validation positions refer to")
    imported.add_argument("--out", type=Path, metavar="FILE.json", help="write a scenario that `run` takes")
    _data(imported)


def _data(parser: argparse.ArgumentParser) -> None:
    folder = parser.add_mutually_exclusive_group()
    folder.add_argument("--root", type=Path, metavar="DIR", help="the folder of the data set")
    folder.add_argument("--data", metavar="NAME=DIR", help="the same, written as for `run`")
    parser.add_argument("--plugin", nargs="+", default=[], metavar="FILE.py", help="data sets of your own")


def main(args: argparse.Namespace) -> int:
    """Run one tool; the exit code."""
    if hasattr(args, "plugin"):
        from contseg.methods.registry import load_installed, load_plugins

        load_installed()
        if args.plugin:
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
    from contseg.datasets.tools.download import no_space
    from contseg.datasets.tools.prepare import prepare_ade, prepare_voc

    if args.what.startswith("cityscapes"):
        raise UserError(
            "data prepare: Cityscapes is given to registered users only: get leftImg8bit_trainvaltest.zip and "
            "gtFine_trainvaltest.zip from www.cityscapes-dataset.com/downloads, unpack both into one folder, and "
            "`data verify cityscapes --root DIR`"
        )
    if args.what not in ("voc", "ade"):
        raise unknown("data set to prepare", args.what, ("voc", "ade"), "one of your own: `data init FOLDER`")
    if args.aug and args.what == "ade":
        raise UserError("--aug belongs to voc: ADE20K has no augmented labels")
    if args.aug and not args.aug.is_file():
        raise UserError(f"--aug {args.aug}: there is no such file")
    try:
        args.root.mkdir(parents=True, exist_ok=True)
        prepare_ade(args.root) if args.what == "ade" else prepare_voc(args.root, args.aug)
    except OSError as error:
        raise no_space(error, args.root) from error
    print(f"now: contseg data verify {args.what} --root {args.root}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from contseg.datasets.registry import known_datasets, open_dataset, open_folder
    from contseg.datasets.tools.verify import verify

    name, root, known = args.what, _root(args, args.what), known_datasets()
    if root is not None or (name in known and not Path(name).is_dir()):
        dataset = open_dataset(name, root)
    elif Path(name).is_dir():
        root = Path(name)
        dataset = open_folder(root.resolve().name, root)
        if known.get(dataset.name, type(dataset)) is not type(dataset):
            dataset.name += " (a folder)"  # a folder with a registered name, not the published data
    else:
        raise UserError(f"there is no folder {name}, and {unknown('data set', name, known)}")
    report = verify(dataset)
    print(json.dumps(report.as_json(), indent=1) if args.json else report)
    return 1 if report.deviations else 0


def _init(args: argparse.Namespace) -> int:
    from contseg.datasets.tools.own import Convention, check_target, look_at, write

    convention = Convention(args.first_class, tuple(args.void))
    if args.out:
        check_target(args.out, args.folder)
    with tempfile.TemporaryDirectory() as work:
        found = look_at(args.folder, convention, Path(work))
        print(found)
        if args.out:
            with _writing(args.out):
                write(found, args.out)
            print(f"\nwritten: {args.out}\nnow: contseg data verify {args.out}")
    return 1 if found.faults else 0


def _show(args: argparse.Namespace) -> int:
    from contseg.datasets.tools.show import check_sheet, contact_sheet, table, training_images

    if args.out:
        check_sheet(args.out, args.images)
    dataset, scenario = _scenario(args)
    found = training_images(dataset)
    print(table(dataset, scenario, found))
    if args.out:
        sheet = contact_sheet(dataset, scenario, found, args.images)
        with _writing(args.out):
            sheet.save(args.out)
        print(f"\ncontact sheet: {args.out}")
    return 0


def _export(args: argparse.Namespace) -> int:
    from contseg.datasets.tools.splits import export

    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out {args.out} is a file: give a folder for the lists")
    dataset, scenario = _scenario(args)
    with _writing(args.out):
        lists = export(dataset, scenario, args.out)
    sizes = ", ".join(str(len(ids)) for ids in lists["train"].values())
    print(f"{scenario.name}: {sizes} images by step; lists in {args.out}")
    return 0


def _import(args: argparse.Namespace) -> int:
    from contseg.datasets.registry import open_dataset
    from contseg.datasets.tools.splits import compare, read_lists, write_scenario
    from contseg.datasets.view import scenario_of

    if args.out and (args.out.is_dir() or not args.out.parent.is_dir() or args.out.suffix != ".json"):
        raise UserError(f"--out {args.out}: give a file name ending in .json, in an existing folder")
    if args.scenario and args.name and args.scenario.split("/")[0] != args.name:
        raise UserError(f"--name {args.name} and --scenario {args.scenario} name two data sets: leave one out")
    name = args.scenario.split("/")[0] if args.scenario else args.name or _name_of(args)
    dataset = open_dataset(name, _root(args, name), _kept())
    wanted = scenario_of(dataset, args.scenario) if args.scenario else None
    if wanted and wanted.domains:
        raise UserError(
            f"--scenario {args.scenario}: steps by domain cannot be imported; lists are compared with those of a "
            f"task by class, such as {dataset.name}/A-B/overlapped"
        )
    theirs = read_lists(args.lists, dataset, {"train": args.train_list, "val": args.val_list})
    nearest, equal, text = compare(dataset, theirs, wanted)
    print(text)
    if args.out:
        with _writing(args.out):
            write_scenario(args.out, wanted or nearest, theirs)
        print(f"\nrun them as: --scenarios {(wanted or nearest).name}+{args.out}")
    return 0 if equal or args.out else 1


def _scenario(args: argparse.Namespace) -> tuple[SegmentationDataset, Scenario]:
    from contseg.datasets.domains import images_for
    from contseg.datasets.registry import open_dataset
    from contseg.datasets.view import scenario_of

    name = args.scenario.split("/")[0]
    dataset = open_dataset(name, _root(args, name), _kept())
    scenario = scenario_of(dataset, args.scenario)
    return images_for(dataset, scenario), scenario


def _root(args: argparse.Namespace, name: str) -> Path | None:
    """The folder of the data set called ``name``, from ``--root DIR`` or ``--data NAME=DIR``."""
    if args.data is None:
        root: Path | None = args.root
        return root
    given, _, path = args.data.partition("=")
    if not given or not path:
        raise UserError(f"--data {args.data}: write NAME=DIR, for example voc=/data/VOCdevkit, or --root DIR")
    if given != name:
        raise UserError(f"--data {args.data} is the folder of {given!r}, but the data set is {name!r}")
    return Path(path)


def _name_of(args: argparse.Namespace) -> str:
    """The data set of the lists, found from its folder."""
    from contseg.datasets.registry import open_dataset

    if args.data:
        return str(args.data.partition("=")[0])
    if args.root is None:
        raise UserError("which data set do the lists belong to? Give its folder: --root DIR, or --data NAME=DIR")
    for name in ("voc", "ade"):
        with contextlib.suppress(UserError):
            return open_dataset(name, args.root).name
    return str(args.root.resolve().name)


def _kept() -> Path:
    """The cache of labels in each map: reading all maps takes minutes."""
    return user_cache() / "presence"


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """``UserError`` in one line for what cannot be written, by the disk or (Pillow's ``ValueError``) in this format."""
    try:
        with writing(path):
            yield
    except ValueError as error:
        raise UserError(f"cannot write {path}: {error}; choose another format with --out") from error
