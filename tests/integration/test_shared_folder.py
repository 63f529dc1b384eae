"""Four programs walk one grid over one folder, one is killed while it trains: every step is trained exactly once."""

import json
import re
import time
from pathlib import Path

from tests.integration.forked import kill, start
from tests.integration.grid import numbers, records, small, weights

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
