"""The caption of a table names network, weights, size, schedule, protocol, n, search and external data."""

from typing import Any

from contseg.benchmark.plan.protocol import PROTOCOLS
from contseg.benchmark.report.caption import caption
from contseg.benchmark.report.reporter import FORMATS, leaderboard, render
from contseg.benchmark.score.rows import Search, Tuned
from contseg.tests.records import Record, make_run

SDR = PROTOCOLS["sdr"]
KEY = ("toy", "2-1", "overlapped", "sdr")
MODEL = {"backbone": "resnet101", "output_stride": 0, "weights": "auto", "norm": "sync", "pooling": 32}
EVAL = {"split": "val", "crop": []}


def run(method: str, seed: int = 0, model: dict[str, Any] = MODEL, **evaluation: Any) -> list[Record]:
    """Two steps: 30 epochs each, at another rate."""
    records = make_run(method, seed)
    for record, rate in zip(records, (0.01, 0.001), strict=True):
        train = {"epochs": [30.0], "updates": [], "batch": [24], "lr": [rate], "crop": [512]}
        record["config"] = {"model": model, "train": train, "eval": {**EVAL, **evaluation}}
    return records


def test_every_fact_is_spelled_out() -> None:
    search = Search("first", "toy/[1|2]/overlapped", 16)
    ft, mib = [r for s in range(3) for r in run("FT", s)], run("MiB[kd=3]")
    board = leaderboard(ft + mib, SDR, tuned={mib[0]["run"]: [Tuned(search, default=False)]})
    said = caption(board, KEY)
    assert said == (
        "resnet101 from resnet101-63fe2227.pth; 512 x 512 px; 30 epochs, batch 24, rate 0.01 then 0.001; protocol sdr; "
        "n = 1 to 3; tuned on first (toy/[1|2]/overlapped), 16 trials, or none; external data: in1k"
    )
    for form in ("text", "markdown", "html"):
        assert said in render(board, form)
    assert "resnet101-63fe2227.pth" in render(board, "latex") and "auto" not in said
    assert set(FORMATS) >= {"text", "markdown", "html", "latex"}


def test_another_size_at_test_and_updates() -> None:
    records = run("FT", crop=[256, 512])
    for record in records:
        record["config"]["train"] |= {"updates": [200], "optimizer": "adamw", "schedule": "cosine"}
    said = caption(leaderboard(records, SDR), KEY)
    assert "512 x 512 px (tested on 256 x 512 px); 200 updates, batch 24, rate 0.01 then 0.001, adamw, cosine; " in said


def test_from_scratch_and_a_network_that_is_not_known() -> None:
    assert caption(leaderboard(run("FT", model={**MODEL, "weights": "none"}), SDR), KEY).startswith(
        "resnet101 from scratch; "
    )
    said = caption(leaderboard(run("FT", model={**MODEL, "backbone": "theirs"}), SDR), KEY)
    assert said.startswith("theirs, weights not known here; ") and said.endswith("external data: unknown")


def test_the_schedule_is_that_of_a_row_without_a_recipe() -> None:
    own = run("EWC[train.lr=(0.5,0.1)]")
    for record in own:
        record["config"]["train"]["lr"] = [0.5]
    assert "rate 0.01 then 0.001" in caption(leaderboard(own + run("MiB"), SDR), KEY)
