"""An edit of a built-in method's files: said, and what they made is made again, unless the user trusts it.

By the real command, in a copy of the checkout.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from contseg.benchmark.store.files import Store, read_meta, read_sealed, write_sealed
from contseg.tests.integration.grid import HOME, records, small
from contseg.tests.material import search_path

GRID = small(Path("out"), "FT", "MiB")
AGAIN = (
    "1 stored steps were made by other code (methods/mib.py) and will be done again: shapes/3-3/overlapped step 1 MiB"
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    copy = tmp_path / "contseg"
    for part in ("benchmark", "methods", "datasets"):
        shutil.copytree(HOME / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("__init__.py", "run_benchmark.py"):
        shutil.copy(HOME / file, copy)
    return copy


def environment(checkout: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": search_path(checkout.parent)}


def call(checkout: Path, *words: object) -> str:
    done = subprocess.run(
        [sys.executable, "run_benchmark.py", *map(str, words)],
        cwd=checkout, capture_output=True, text=True, timeout=600, env=environment(checkout),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def to_train(checkout: Path, *words: str) -> int:
    return int(json.loads(call(checkout, "plan", "--json", *GRID, *words))["totals"]["to_train"])


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def append(file: Path) -> None:
    """A line of code that does nothing."""
    file.write_text(file.read_text() + "\nUNUSED = 1\n")


def test_what_other_code_made_is_made_again(checkout: Path) -> None:
    mib, out = checkout / "methods/mib.py", checkout / "out"
    call(checkout, *GRID)
    before = records(out)
    assert all(
        set(r["provenance"]["code"]["training"]["files"]) > {"benchmark/train/trainer.py", "methods/base.py"}
        and "benchmark/train/evaluate.py" in r["provenance"]["code"]["evaluation"]["files"]
        and r["provenance"]["plugins"] == {}
        for r in before.values()
    )

    # a comment moves nothing; a number does, in MiB's later step alone
    mib.write_text("# a comment\n" + mib.read_text())
    assert to_train(checkout) == 0
    edit(mib, "= 10.0) -> Method", "= 10.0 + 0.0) -> Method")
    plan = call(checkout, "plan", *GRID)
    assert AGAIN in plan
    assert to_train(checkout, "--trust-cache") == 0
    assert "to train now: 0 steps" in call(checkout, *GRID, "--trust-cache")
    assert records(out) == before

    # workers say the same and do it
    said = call(checkout, *GRID, "--launcher", "local", "--set", "launch.workers=2")
    assert "to train now: 1 steps" in said
    assert AGAIN in said
    after = records(out)
    moved = {name for name in before if before[name]["provenance"] != after[name]["provenance"]}
    assert [Path(name).name for name in moved if "/MiB/" in name] == ["step1.json"] == [Path(n).name for n in moved]
    assert [after[n]["key"] for n in before] == [before[n]["key"] for n in before]
    assert to_train(checkout) == 0

    # records alone, without the weights
    shutil.rmtree(out / "cache")
    assert to_train(checkout) == 0
    edit(mib, "10.0 + 0.0) ->", "10.0 + 0.0 + 0.0) ->")
    assert to_train(checkout) == 2  # and the step before, which is not there
    assert AGAIN in call(checkout, "plan", *GRID)
    assert to_train(checkout, "--trust-cache") == 0

    # older ones that do not say what made them are taken as they are
    for path in (out / "records").rglob("*.json"):
        record = read_sealed(path)
        assert record is not None
        del record["provenance"]["code"]
        write_sealed(path, record)
    assert to_train(checkout) == 0


def test_a_file_of_the_trainer_concerns_every_step_and_one_of_the_evaluation_trains_nothing(checkout: Path) -> None:
    out = checkout / "out"
    call(checkout, *GRID)
    kept = {p: read_meta(p) for p in (out / "cache").rglob("model.safetensors")}
    append(checkout / "benchmark/train/evaluate.py")
    said = call(checkout, *GRID)
    assert "to train now: 0 steps" in said
    assert "3 stored steps were made by other code (benchmark/train/evaluate.py)" in said
    assert {p: read_meta(p) for p in kept} == kept
    append(checkout / "benchmark/train/batches.py")
    assert "to train now: 3 steps" in call(checkout, *GRID)
    assert all(read_meta(p)["code"] != kept[p]["code"] for p in kept)
    assert to_train(checkout) == 0


def test_a_checkpoint_of_other_code_is_not_gone_on_from(checkout: Path) -> None:
    grid = small(Path("out"), "FT", sets=("run.checkpoint_updates=10", "train.updates=150,3"))
    line = [sys.executable, "run_benchmark.py", *map(str, grid)]
    program = subprocess.Popen(line, cwd=checkout, env=environment(checkout))
    until = time.monotonic() + 120
    while not [*(checkout / "out").rglob("checkpoint.safetensors")]:
        assert program.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    program.kill()
    program.wait()
    append(checkout / "benchmark/train/trainer.py")
    said = call(checkout, *grid)
    assert "step 0 FT seed 0: its checkpoint was written by other code; the step starts again" in said
    assert all(r["cost"]["resumed"] == 0 for r in records(checkout / "out").values())


def test_observers_and_what_reads_them_are_made_again(checkout: Path) -> None:
    """FT+SDR's prototypes are observed on FT's step 0: its weights stay, the observer and what reads it do not."""
    grid = small(Path("out"), "FT", "FT+SDR")
    call(checkout, *grid)
    append(checkout / "methods/sdr.py")
    said = call(checkout, *grid)
    assert "to train now: 2 steps" in said
    assert "methods/sdr.py" in said
    assert json.loads(call(checkout, "plan", "--json", *grid))["totals"]["to_train"] == 0
    store = Store(checkout / "out")
    codes = [store.code(p) for p in store.cache.rglob("*.safetensors") if p.name != "terms.safetensors"]
    assert len(codes) == 5  # three steps, two observers
    assert all(codes)
