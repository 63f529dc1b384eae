"""The plan of a whole paper: how much it shares, and how long it takes to say so.

The SDR paper's VOC grid with three seeds (189 runs) over a folder in VOC's layout that has the reference lists' names
and presence table; the files themselves are empty, a plan only asks for their size and age.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contseg.benchmark.plan.build import make_plan
from contseg.benchmark.plan.config import read_config
from contseg.datasets.index import _key, _store
from contseg.tests.benchmarks.ratios import ROWS, Row
from contseg.tests.material import ROOT, material
from contseg.tests.told import Told, told_voc

pytest.importorskip("pytest_benchmark")


def whole_program(benchmark: Any, *words: object, target: float) -> str:
    """Its output; a row of the table with the fastest of three runs."""
    times = []

    def once() -> str:
        began = time.perf_counter()
        said = run(*words)
        times.append(time.perf_counter() - began)
        return said

    said: str = benchmark.pedantic(once, rounds=3)
    ROWS.append(Row(f"start-up: {words[0]}", f"{min(times):.2f} s", "", "", f"{target} s"))
    benchmark.extra_info["target"] = target
    return said


def run(*words: object) -> str:
    """The whole program, from the start of its process to its end."""
    line = [sys.executable, str(ROOT / "run_benchmark.py"), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def voc_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 582 + 1 449 empty pairs of files, whose presence table was read before."""
    root = tmp_path_factory.mktemp("voc")
    told: Told = told_voc(material("data", "voc_reference_splits", "voc_labels.npz"))
    for folder in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / "VOC2012" / folder).mkdir(parents=True)
    for split, name in (("train", "train_aug"), ("val", "val")):
        ids = told.ids(split)
        (root / f"VOC2012/ImageSets/Segmentation/{name}.txt").write_text("".join(f"{i}\n" for i in ids))
        keys = []
        for i in ids:
            pair = root / f"VOC2012/JPEGImages/{i}.jpg", root / f"VOC2012/SegmentationClassAug/{i}.png"
            for file in pair:
                file.touch()
            keys.append(_key(*pair, None))
        where = hashlib.sha256(str(root).encode()).hexdigest()[:8]
        _store(root / f"kept/voc-{split}-{where}.npz", keys, told._index(split))
    return root


@pytest.fixture
def words(voc_folder: Path, tmp_path: Path) -> list[object]:
    """Arguments of the plan, and the cache where the program looks for it."""
    grid = ["--config", ROOT / "benchmark/configs/sdr_paper.toml", "--seeds", 0, 1, 2, "--data", f"voc={voc_folder}"]
    presence = tmp_path / "out/cache/presence"
    shutil.copytree(voc_folder / "kept", presence)
    return [*grid, "--out", tmp_path / "out"]


def test_plan_of_189_runs(benchmark: Any, words: list[object]) -> None:
    """Target: below 3 s, the whole process, once presence is known."""
    said = json.loads(whole_program(benchmark, "plan", "--json", *words, target=3))["totals"]
    benchmark.extra_info |= said
    remark = f"{said['images_alone']:,} training images alone, {said['images_shared']:,} shared"
    ROWS.append(Row("sharing of 189 runs", "", "", f"{said['sharing_factor']:.2f}", "", remark))
    assert said["runs"] == 189
    assert said["sharing_factor"] >= 4.8


def test_help(benchmark: Any) -> None:
    """Target: below 0.5 s, the whole process."""
    assert "examples:" in whole_program(benchmark, "--help", target=0.5)


@pytest.mark.parametrize("seeds", [1, 3])
def test_expansion_alone(benchmark: Any, seeds: int) -> None:
    told = told_voc(material("data", "voc_reference_splits", "voc_labels.npz"))
    config = replace(read_config(ROOT / "benchmark/configs/sdr_paper.toml"), seeds=tuple(range(seeds)))
    for split in ("train", "val"):
        told.presence(split)
    plan = benchmark.pedantic(make_plan, args=(config, lambda _: told), rounds=3)
    assert len(plan.runs) == 63 * seeds
