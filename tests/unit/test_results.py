"""The records under ``results/`` are sound, and the committed tables are theirs."""

from pathlib import Path

import pytest

from contseg.benchmark.plan.protocol import parse_protocol
from contseg.benchmark.report.reporter import leaderboard, render
from contseg.benchmark.score.records import read_records
from contseg.benchmark.score.rows import read_rows
from contseg.benchmark.score.submissions import verify

RESULTS = Path(__file__).parents[2] / "results"
GRIDS = sorted(p.parent.name for p in RESULTS.glob("*/records"))


@pytest.mark.parametrize("grid", GRIDS)
def test_every_committed_record_is_sound(grid: str) -> None:
    records, problems = read_records(RESULTS / grid)
    assert problems == []
    # a run that diverged ends early, and is in no table
    assert [str(v) for v in verify(records) if v.run.complete and v.faults] == []
    (protocol,) = {r["protocol"]["name"] for r in records}
    tuned, problems = read_rows([RESULTS / grid])
    assert problems == []
    table = render(leaderboard(records, parse_protocol(protocol), tuned=tuned), "csv")
    committed = (RESULTS / grid / "leaderboard.csv").read_text()
    assert sorted(table.splitlines()) == sorted(committed.splitlines())  # rows stand in the order of the grid
