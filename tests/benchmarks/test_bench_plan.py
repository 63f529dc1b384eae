"""The plan of a whole paper and of a whole field: how much it shares, and how long it takes to say so.

A folder in VOC's layout has the reference lists' names and presence table; the files themselves are empty, a plan only
asks for their size and age.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contseg.benchmark.plan.build import make_plan
from contseg.benchmark.plan.config import read_config
from contseg.methods.registry import methods
from contseg.tests.benchmarks.field import write_voc
from contseg.tests.benchmarks.program import whole_program
from contseg.tests.benchmarks.ratios import ROWS, Row
from contseg.tests.material import ROOT, material
from contseg.tests.told import told_voc

pytest.importorskip("pytest_benchmark")


@pytest.fixture(scope="module")
def voc_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 582 + 1 449 empty pairs of files, whose presence table was read before."""
    told = told_voc(material("data", "voc_reference_splits", "voc_labels.npz"))
    return write_voc(tmp_path_factory.mktemp("voc"), told)


@pytest.fixture
def words(voc_folder: Path, tmp_path: Path) -> list[object]:
    """Where the data are and where to write, and the cache where the program looks for it."""
    shutil.copytree(voc_folder / "presence", tmp_path / "out/cache/presence")
    return ["--data", f"voc={voc_folder}", "--out", tmp_path / "out"]


def test_plan_of_189_runs(benchmark: Any, words: list[object]) -> None:
    """The SDR paper's grid with three seeds. Target: below 3 s, the whole process, once presence is known."""
    grid = ["--config", "sdr_paper", "--seeds", 0, 1, 2]
    said = json.loads(whole_program(benchmark, "plan, 189 runs", "plan", "--json", *grid, *words, target="3 s"))[
        "totals"
    ]
    benchmark.extra_info |= said
    remark = f"{said['images_alone']:,} training images alone, {said['images_shared']:,} shared"
    ROWS.append(Row("sharing of 189 runs", "", "", f"{said['sharing_factor']:.2f}", "", remark))
    assert said["runs"] == 189
    assert said["sharing_factor"] >= 4.8


def test_plan_of_1000_runs(benchmark: Any, words: list[object]) -> None:
    """Every method of the suite on the nine scenarios of that grid, with four seeds. Target: below 10 s and 1 GiB.

    Joint is one run for the three tasks of a setup.
    """
    grid = [
        "--config",
        "sdr_paper",
        "--seeds",
        0,
        1,
        2,
        3,
        "--methods",
        *methods(),
        "--set",
        "model.head_activation=relu",
    ]
    said = whole_program(benchmark, "plan, 1 000 runs", "plan", *grid, *words, target="10 s, 1 GiB")
    assert f"{4 * (9 * (len(methods()) - 1) + 3)} runs, " in said


def test_help(benchmark: Any) -> None:
    """Target: below 0.5 s, the whole process."""
    assert "examples:" in whole_program(benchmark, "--help", "--help", target="0.5 s")


@pytest.mark.parametrize("seeds", [1, 3])
def test_expansion_alone(benchmark: Any, seeds: int) -> None:
    told = told_voc(material("data", "voc_reference_splits", "voc_labels.npz"))
    config = replace(read_config(ROOT / "benchmark/configs/sdr_paper.toml"), seeds=tuple(range(seeds)))
    for split in ("train", "val"):
        told.presence(split)
    plan = benchmark.pedantic(make_plan, args=(config, lambda _: told), rounds=3)
    assert len(plan.runs) == 63 * seeds
