"""Several programs on one folder: each step is trained exactly once; who waits, dies or does not fit says so."""

import json
import re
import time
from os import getpid
from pathlib import Path
from socket import gethostname

from contseg.benchmark.store.claims import Claim
from contseg.benchmark.store.files import Store
from contseg.tests.forked import call, kill, start, start_together
from contseg.tests.integration.grid import numbers, records, small, weights

METHODS = ("FT", "MiB+SDR", "EWC[weight=1]")
SETS = ("train.updates=5,30", "run.checkpoint_updates=10")


def test_four_walk_one_grid_and_one_dies(tmp_path: Path) -> None:
    alone, out = tmp_path / "alone", tmp_path / "out"
    inline = start(tmp_path / "alone.log", "run", *small(alone, *METHODS, sets=SETS))
    inline.join(300)
    assert inline.exitcode == 0

    logs = [tmp_path / f"log{i}" for i in range(4)]
    walkers = {p.pid: p for p in (start(log, "run", *small(out, *METHODS, sets=SETS)) for log in logs)}
    began = time.monotonic()
    while not (under_way := [*out.rglob("checkpoint.safetensors")]) and time.monotonic() - began < 200:
        time.sleep(0.02)
    victim = json.loads((under_way[0].parent / "claim.json").read_text())["pid"]
    kill(walkers[victim])
    for walker in walkers.values():
        walker.join(300)
    assert sorted(p.exitcode for p in walkers.values()) == [-9, 0, 0, 0]

    trained = [title for log in logs for title in re.findall(r"\] (.* step \d .*): \d+ s", log.read_text())]
    assert sorted(trained) == sorted(re.findall(r"\] (.* step \d .*): \d+ s", (tmp_path / "alone.log").read_text()))
    assert len(trained) == len({*trained}) == 4
    assert max(r["cost"]["resumed"] for r in records(out).values()) == 1
    assert numbers(out) == numbers(alone) and weights(out) == weights(alone)
    assert not [*out.rglob("claim*"), *out.rglob("*.tmp"), *out.rglob("checkpoint*")]


def test_a_step_that_a_live_process_claims_is_waited_for_and_said(tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    words = small(out, "Joint", sets=SETS)
    code, planned = call(tmp_path / "plan", "plan", "--json", *words)
    assert code == 0
    claim = Claim(Store(out).step(json.loads(planned)["steps"][0]["key"]))
    assert claim.acquire()
    walker = start(log, "run", *words)
    began = time.monotonic()
    while "waiting:" not in (log.read_text() if log.exists() else "") and time.monotonic() - began < 200:
        time.sleep(0.05)
    assert walker.is_alive()
    claim.release()
    walker.join(300)
    assert walker.exitcode == 0
    (line,) = [x for x in log.read_text().splitlines() if x.startswith("waiting:")]
    assert line.endswith(f"is being trained by {gethostname()}:{getpid()}")


def test_a_worker_that_dies_shows_the_end_of_its_log(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "import os, sys\nfrom contseg.methods.base import Method\n"
        "from contseg.methods.registry import register_method\n\n"
        '@register_method("Unused")\ndef unused() -> Method:\n    return Method("Unused", terms={})\n\n'
        "if 'inline' in sys.argv:\n    print('no device left', flush=True)\n    os._exit(7)\n"
    )
    words = ["run", *small(tmp_path / "out", "FT", sets=(*SETS, "launch.workers=1"))]
    code, said = call(tmp_path / "log", *words, "--plugin", plugin, "--launcher", "local")
    assert code == 7 and "worker0 ended with exit code 7" in said and "  no device left" in said
    assert "Traceback" not in said


def test_a_step_that_fails_in_both_workers_is_said_once(tmp_path: Path) -> None:
    sets = ("train.lr=0.05,1e30", "train.updates=4,12")
    code, said = call(tmp_path / "log", "run", *small(tmp_path / "out", "FT", sets=sets), "--launcher", "local")
    assert code == 1
    (line,) = [x for x in said.splitlines() if "step 1 FT" in x and x.startswith("failed: ")]
    assert "the loss 'ce' is not finite at update" in line and said.rstrip().endswith(line)


def test_more_processes_than_images_in_a_batch(tmp_path: Path) -> None:
    processes = start_together(3, tmp_path / "log", "run", *small(tmp_path / "out", "FT", sets=SETS))
    for process in processes:
        process.join(300)
    kill(*processes)
    assert [p.exitcode for p in processes] == [2, 2, 2]
    assert "error: a batch of 4 cannot be split over 3 processes" in (tmp_path / "log0").read_text()
    assert not [*tmp_path.rglob("*.safetensors")]
