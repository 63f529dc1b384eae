"""A user's mistake: one clear line, exit code 2, no traceback, nothing half-written."""

import json
import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from contseg.run_benchmark import main

SMALL = ["--set", "model.backbone=tiny", "train.updates=2", "train.batch=4", "train.crop=48", "train.scale="]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Run a command that must fail as a user's mistake does; gives its one line."""

    def call(*words: object) -> str:
        out = tmp_path / "out"
        before = sorted(out.rglob("*")) if out.exists() else []
        given = [] if "--out" in words else ["--out", str(out)]
        try:
            code = main([*map(str, words), *given])
        except SystemExit as left:  # argparse
            code = int(left.code or 0)
        err = capsys.readouterr().err.strip()
        assert code == 2, err
        lines = [x for x in err.splitlines() if x.startswith(("error:", "contseg"))]
        assert len(lines) == 1 and "Traceback" not in err, err
        after = sorted(p for p in out.rglob("*") if p.is_file()) if out.exists() else []
        new = [p for p in after if p not in before]
        assert not [p for p in new if "records" in p.parts or p.suffix in (".tmp", ".safetensors")]
        return lines[0]

    return call


def grid(*methods: str, scenario: str = "shapes/3-3/overlapped") -> list[str]:
    return ["run", "--scenarios", scenario, "--methods", *(methods or ("FT",)), *SMALL]


def voc_folder(root: Path, names: tuple[str, ...] = ("a", "b", "c", "d")) -> Path:
    """A user's data set: 2 classes, images of 60 x 50."""
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / part).mkdir(parents=True)
    (root / "class_names.txt").write_text("background\ncat\ndog\n")
    for i, name in enumerate(names):
        Image.new("RGB", (60, 50), (40 * i, 90, 200)).save(root / f"JPEGImages/{name}.jpg")
        label = Image.new("L", (60, 50), 0)
        label.paste(1 + i % 2, (5, 5, 40, 40))
        label.save(root / f"SegmentationClass/{name}.png")
    for split in ("train", "val"):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names) + "\n")
    return root


def shapes(*sets: str) -> list[str]:
    """The small grid with other values of the configuration."""
    return [*grid(), *sets]


def plan(*words: str) -> list[str]:
    return ["plan", "--scenarios", "shapes/3-3/overlapped", *words]


def own(root: Path, scenario: str = "mine/1-1/overlapped") -> list[str]:
    return [*grid(scenario=scenario), "--data", f"mine={root}"]


def test_wrong_path(fails: Callable[..., str], tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in fails(*own(tmp_path / "nowhere"))


def test_wrong_layout_says_what_was_looked_for(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "class_names.txt" in fails(*own(tmp_path / "empty"))
    line = fails(*grid(scenario="voc/15-5/overlapped"), "--data", f"voc={tmp_path / 'empty'}")
    assert "JPEGImages" in line and str(tmp_path / "empty") in line


def test_truncated_image_is_named(fails: Callable[..., str], tmp_path: Path) -> None:
    root = voc_folder(tmp_path / "data")
    whole = (root / "JPEGImages/b.jpg").read_bytes()
    (root / "JPEGImages/b.jpg").write_bytes(whole[: len(whole) // 2])
    assert "b.jpg" in fails(*own(root))


def test_unreadable_label_map_is_named(fails: Callable[..., str], tmp_path: Path) -> None:
    root = voc_folder(tmp_path / "data")
    (root / "SegmentationClass/c.png").write_bytes(b"not an image")
    assert "c.png" in fails(*own(root))


def test_label_out_of_range_names_file_and_value(fails: Callable[..., str], tmp_path: Path) -> None:
    root = voc_folder(tmp_path / "data")
    Image.new("L", (60, 50), 7).save(root / "SegmentationClass/d.png")
    line = fails(*own(root))
    assert "d.png" in line and "7" in line


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (grid("Mib"), "'MiB'"),
        (grid("MiB[kdd=1]"), "'kd'"),
        (grid("MiB[kd=much]"), "float"),
        (grid("FT+SDRR"), "'SDR'"),
        (grid(scenario="shapes/3-3/overlaped"), "'overlapped'"),
        (grid(scenario="shpes/3-3/overlapped"), "'shapes'"),
        (grid(scenario="shapes/19-1/overlapped"), "19-1"),
        (grid(scenario="shapes/3-3"), "DATASET/TASK/SETUP"),
        ([*grid(), "model.backbone=resnet19"], "'resnet18'"),
        ([*grid(), "train.epoch=3"], "'epochs'"),
        ([*grid(), "trian.epochs=3"], "'train'"),
        ([*grid(), "train.epochs=many"], "train.epochs"),
        ([*grid(), "train.batch=0"], "train.batch"),
        ([*grid(), "--protocol", "strickt"], "'strict'"),
        ([*grid(), "--config", "/nowhere.toml"], "/nowhere.toml"),
        (["run", "--methods", "FT"], "--scenarios"),
        (["run", "--scenarios", "shapes/3-3/overlapped"], "--methods"),
        ([*grid(), "--data", "voc"], "NAME=PATH"),
        ([*grid(), "--data", "shape=/nowhere"], "data set 'shape': there is no folder /nowhere"),
        ([*grid(), "--plugin", "/nowhere/plugin.py"], "/nowhere/plugin.py"),
        ([*grid(), "train.batch=1"], "BatchNorm"),
    ],
)  # fmt: skip
def test_names_and_values(fails: Callable[..., str], words: list[str], wanted: str) -> None:
    assert wanted in fails(*words)


OF_A_VALUE = [
    (shapes("train.lr=-1"), "train.lr must be > 0, not -1"),
    (shapes("train.lr=0.1,0"), "train.lr must be > 0, not 0.1,0"),
    (shapes("train.lr=inf"), "train.lr must be 1 or more numbers > 0, not inf"),
    (shapes("train.lr="), "train.lr must be 1 or more numbers > 0, not empty"),
    (shapes("train.epochs=nan"), "train.epochs must be 1 or more numbers > 0, not nan"),
    (shapes("train.batch=2.5"), "train.batch must be 1 or more whole numbers >= 1, not 2.5"),
    (shapes("train.updates=0"), "train.updates must be >= 1, not 0"),
    (shapes("train.accumulate=0"), "train.accumulate must be >= 1, not 0"),
    (shapes("train.momentum=-1"), "train.momentum must be >= 0 and < 1, not -1"),
    (shapes("train.momentum=2"), "train.momentum must be >= 0 and < 1, not 2"),
    (shapes("train.nesterov=maybe"), "train.nesterov must be true or false, not maybe"),
    (shapes("train.weight_decay=-1"), "train.weight_decay must be >= 0, not -1"),
    (shapes("train.power=-1"), "train.power must be >= 0, not -1"),
    (shapes("train.clip=-1"), "train.clip must be >= 0, not -1"),
    (shapes("train.precision=fp8"), "unknown train.precision 'fp8': did you mean 'fp16'? Known: bf16, double, fp16, "
     "no"),
    (shapes("train.crop=0"), "train.crop must be >= 1, not 0"),
    (shapes("train.crop=1,2,3"), "train.crop must be 1 to 2 whole numbers >= 1, not 1,2,3"),
    (shapes("train.scale=2,0.5"), "train.scale must be empty or two ascending numbers such as 0.5,2, not 2,0.5"),
    (shapes("train.scale=1"), "train.scale must be empty or two ascending numbers such as 0.5,2, not 1"),
    (shapes("train.flip=v"), "unknown train.flip 'v': did you mean 'hv'? Known: h, hv, none"),
    (shapes("eval.crop=0"), "eval.crop must be >= 1, not 0"),
    (shapes("eval.split=test"), "unknown eval.split 'test': did you mean 'tune'? Known: tune, val"),
    (shapes("run.workers=-2"), "run.workers must be >= -1 and <= 128, not -2"),
    (shapes("run.workers=1000000"), "run.workers must be >= -1 and <= 128, not 1000000"),
    (shapes("run.eval_batch=0"), "run.eval_batch must be >= 1, not 0"),
    (shapes("run.checkpoint_minutes=0"), "run.checkpoint_minutes must be > 0, not 0"),
    (shapes("run.checkpoint_updates=-1"), "run.checkpoint_updates must be >= 0, not -1"),
    (shapes("run.compile=true", "run.gradient_norms=9"),
     "run.gradient_norms goes through a graph once a term, a compiled network once: leave one out"),
    (shapes("run.tracker=foo"), "unknown run.tracker 'foo': Known: aim, clearml, comet_ml, dvclive, mlflow, none, "
     "swanlab, tensorboard, trackio, wandb"),
    (shapes("run.compile=2"), "run.compile must be true or false, not 2"),
    ([*shapes("launch.workers=-2"), "--launcher", "local"], "launch.workers must be >= 0 and <= 128, not -2"),
    (shapes("launch.nodes=0"), "launch.nodes must be >= 1, not 0"),
    (shapes("model.norm=layer"), "unknown model.norm 'layer': Known: batch, frozen, group, sync"),
    (shapes("model.pooling=-1"), "model.pooling must be >= 0, not -1"),
    (shapes("model.output_stride=16"), "model.output_stride=16: tiny has 4"),
    (shapes("model.weights=imagenet"), "model.weights=imagenet: there are none for tiny; set model.weights=none"),
    (shapes("model.weights=/nowhere.pth"), "model.weights=/nowhere.pth: no such file (or one of: auto, imagenet, "
     "none)"),
    ([*shapes(), "--seeds", "-1"], "seeds must be >= 0 and <= 4294967295, not -1"),
    (grid("RW[every=0]"), "every of RW must be >= 1, not 0"),
    (grid("EWC[alpha=2]"), "alpha of EWC must be >= 0 and <= 1, not 2"),
    (grid("MiB[kd=10|-1]"), "kd of MiB must be >= 0, not -1"),
    (grid("REMINDER[temperature=0]"), "temperature of REMINDER must be > 0, not 0"),
    (grid("FT+SDR[matching=-1]"), "matching of SDR must be a number >= 0 or none, not -1"),
    (grid("SSUL[threshold=1.5]"), "threshold of SSUL must be >= 0 and <= 1, not 1.5"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "line"), OF_A_VALUE, ids=lambda value: value if isinstance(value, str) else "")
def test_a_value_out_of_its_range(fails: Callable[..., str], words: list[str], line: str, tmp_path: Path) -> None:
    assert fails(*words) == f"error: {line}"
    assert not (tmp_path / "out").exists()


OF_A_FILE = [
    ("lr = 0.1", "lr is a key of [train]: write it below a line [train]"),
    ('data = "x"', "data must be a table of names and texts, not 'x'"),
    ("data.voc = 3", "data must be a table of names and texts, not {'voc': 3}"),
    ("train = 3", "train must be a table, [train], not 3"),
    ("seeds = 1.5", "seeds must be 1 or more whole numbers >= 0 and <= 4294967295, not 1.5"),
    ("seeds = []", "seeds must be 1 or more whole numbers >= 0 and <= 4294967295, not []"),
    ("seeds = ['0']", "seeds must be 1 or more whole numbers >= 0 and <= 4294967295, not '0'"),
    ("methods = [1]", "methods must be any number of texts, not 1"),
    ("protocol = ['sdr']", "protocol must be a text, not 'sdr'"),
    ("[train]\nlr = '0.01'", "train.lr must be 1 or more numbers > 0, not '0.01'"),
    ("[train]\nlr = true", "train.lr must be 1 or more numbers > 0, not True"),
    ("[train]\nlr = inf", "train.lr must be finite, not inf"),
    ("[train]\nlr = [0.1, 'x']", "train.lr must be 1 or more numbers > 0, not [0.1, 'x']"),
    ("[train]\nmomentum = [0.9]", "train.momentum must be a number >= 0 and < 1, not 0.9"),
    ("[train]\nnesterov = 1", "train.nesterov must be true or false, not 1"),
    ("[train]\nflip = 1", 'train.flip must be "none", "h" or "hv", not 1'),
    ("[run]\nworkers = 1.0", "run.workers must be a whole number >= -1 and <= 128, not 1.0"),
    ("[launch]\npartition = 3", "launch.partition must be a text, not 3"),
]


@pytest.mark.parametrize(("text", "line"), OF_A_FILE, ids=lambda value: value)
def test_a_value_of_another_type_in_a_file(fails: Callable[..., str], text: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(text)
    assert fails("plan", "--config", tmp_path / "grid.toml") == f"error: {tmp_path}/grid.toml: {line}"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (shapes("lr=3"), "--set 'lr=3': write train.lr=3"),
        (shapes("=3"), "--set '=3': write section.key=value, for example train.epochs=1"),
        (shapes("train=3"), "--set 'train=3': top-level values have options of their own; known sections: eval, "
         "launch, model, run, train, tuned"),
        (grid("MiB[kd=]"), "method 'MiB[kd=]': cannot read 'kd='; write key=value"),
        (grid("MiB[kd=1,kd=2]"), "method 'MiB[kd=1,kd=2]': kd is given twice; kd=1|2 sweeps both"),
        (["cache", "prune", "--methods", "FT"], "no trained steps: there is no folder OUT/cache"),
        ([*grid(), "--out", ""], "--out: the name of the folder is empty"),
        ([*grid(), "--out", "FILE"], "--out: cannot write into FILE, a file: name a folder"),
        ([*grid(), "--out", "FILE/below"], "cannot write FILE/below/contseg.json: Not a directory; choose another "
         "folder with --out"),
        ([*grid(), "--out", "/proc/x"], "cannot write /proc/x/contseg.json: No such file or directory; choose another "
         "folder with --out"),
        (["report", "--figures", "FILE"], "--figures: cannot write into FILE, a file: name a folder"),
        (["report", "--predictions", "-3"], "--predictions must be a whole number >= 0, not -3"),
        (["report", "--predictions", "few"], "--predictions must be a whole number >= 0, not few"),
        (["report", "--data", "voc"], "--data voc: write NAME=PATH, for example voc=/data/VOCdevkit"),
        ([*grid(), "--data", "a=1", "a=2"], "--data: a is given twice, as 1 and as 2"),
        ([*grid(), "--only", "0"], "--only '0': no step has a key that begins with it; `plan --json` "
         "prints the keys"),
        ([*grid(), "--only", ""], "--only '': 2 steps have keys that begin with it; `plan --json` prints the keys"),
        ([*grid(), "--config", "FOLDER"], "FOLDER is a folder, not a configuration"),
        ([*grid(), "--config", "PIPE"], "PIPE is no regular file, not a configuration"),
        (["cache", "list"], "no trained steps: there is no folder OUT/cache"),
        (["check"], "check what? Name methods, for example `check MiB`, or give --all alone"),
        (["check", "MiB", "--all"], "check what? Name methods, for example `check MiB`, or give --all alone"),
        (["list", "methods", "--task", "15-1"], "--task choose among published results: `list published --task 15-1`"),
    ],
)  # fmt: skip
def test_paths_and_options(fails: Callable[..., str], words: list[str], line: str, tmp_path: Path) -> None:
    names = {name: str(tmp_path / name.lower()) for name in ("FILE", "FOLDER", "PIPE", "OUT")}
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")

    def put(text: str) -> str:
        for name, path in names.items():
            text = text.replace(name, path)
        return text

    given = ["--out", str(tmp_path / "out")] if words[0] in ("report", "cache") else []
    if words[0] in ("check", "list"):
        assert main(words) == 2
        return
    assert fails(*map(put, words), *given) == f"error: {put(line)}"
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("contseg.json", "must be a file: remove it, or choose another --out"),
        ("leaderboard.md", "must be a file: remove it, or choose another --out"),
    ],
)
def test_a_folder_in_the_place_of_a_file(fails: Callable[..., str], name: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "out" / name).mkdir(parents=True)
    assert fails(*grid()) == f"error: {tmp_path}/out/{name} {line}"


@pytest.mark.parametrize("name", ["records", "cache"])
def test_a_file_in_the_place_of_a_folder(fails: Callable[..., str], name: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("")
    line = "must be a folder: remove it, or choose another --out"
    assert fails(*grid()) == f"error: {tmp_path}/out/{name} {line}"


def test_a_rejected_run_writes_nothing(fails: Callable[..., str], tmp_path: Path) -> None:
    for words in (grid("Mib"), shapes("train.lr=0"), grid(scenario="shapes/19-1/overlapped"), shapes("train.batch=1")):
        fails(*words)
        assert not (tmp_path / "out").exists(), words


def test_a_grid_of_which_every_cell_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("contseg.benchmark.train.step_runner.StepRunner.train", broken)
    assert main([*grid(), "--out", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert told.err.endswith(
        "failed: shapes/3-3/overlapped step 1 FT seed 0: "
        "not trained, because shapes/3-3/overlapped step 0 FT seed 0 is missing\n"
    )
    assert "failed: shapes/3-3/overlapped step 0 FT seed 0: RuntimeError: out of memory" in told.err
    assert "no records" not in told.err


@pytest.mark.parametrize(
    ("words", "package", "said"),
    [
        (["--launcher", "slurm"], "submitit",
         "--launcher slurm needs submitit, which is not installed: pip install 'contseg[slurm]'"),
        (["--set", "run.tracker=tensorboard"], "tensorboard",
         "run.tracker=tensorboard needs tensorboard, which is not installed: pip install 'contseg[tensorboard]'"),
        (["--set", "run.tracker=clearml"], "clearml",
         "run.tracker=clearml needs clearml, which is not installed: pip install clearml"),
    ],
    ids=lambda x: x if isinstance(x, str) and " " not in x else "",
)  # fmt: skip
def test_a_missing_extra_is_told_before_any_work(
    fails: Callable[..., str],
    words: list[str],
    package: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    assert fails(*grid(), *words) == f"error: {said}"
    assert not (tmp_path / "out").exists()


def test_an_empty_step_is_known_before_anything_is_trained(fails: Callable[..., str], tmp_path: Path) -> None:
    root = voc_folder(tmp_path / "data")
    for name in "abcd":  # every image holds both classes: none is left for step 0
        label = Image.new("L", (60, 50), 1)
        label.paste(2, (5, 5, 40, 40))
        label.save(root / f"SegmentationClass/{name}.png")
    line = fails(*own(root, "mine/1-1/disjoint"))
    assert "step 0" in line and "disjoint" in line


def test_bad_toml(fails: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text("methods = [FT")
    assert "not valid TOML" in fails("run", "--config", path)
    path.write_text("metods = ['FT']")
    assert "'methods'" in fails("run", "--config", path)


def test_results_of_an_incompatible_version(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/contseg.json").write_text(json.dumps({"format": 99}))
    assert "incompatible version" in fails(*grid())


def test_no_weights_and_no_network(fails: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def refuse(*args: object, **kwargs: object) -> None:
        raise socket.gaierror("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    line = fails(*grid()[:-5], "model.backbone=resnet18", "train.updates=1", "train.batch=2", "train.crop=64")
    assert "model.weights" in line and "resnet18" in line


def test_a_folder_that_cannot_be_written(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file where the folder should be")
    assert "cannot write" in fails(*grid())
    shutil.copy(tmp_path / "out", tmp_path / "kept")
    assert (tmp_path / "kept").read_text() == "a file where the folder should be"
