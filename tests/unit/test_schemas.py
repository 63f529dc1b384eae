"""Records and tables have the form that ``docs/schemas`` says."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from contseg.benchmark.plan.protocol import PROTOCOLS
from contseg.benchmark.report.exports import as_json
from contseg.benchmark.report.reporter import leaderboard, render
from contseg.benchmark.score.published import load_published, with_literature
from contseg.benchmark.score.records import _Record, record_files
from contseg.benchmark.score.scores import COLUMNS
from contseg.tests.material import ROOT
from contseg.tests.records import make_run, write_records
from contseg.tests.unit.test_published import VOC
from contseg.tests.unit.test_reporter import grid

jsonschema = pytest.importorskip("jsonschema")
SDR = PROTOCOLS["sdr"]
SCHEMAS = {p.name.partition(".")[0]: json.loads(p.read_text("utf-8")) for p in (ROOT / "docs/schemas").glob("*.json")}


def validator(schema: dict[str, Any]) -> Any:
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


RECORD, BOARD = validator(SCHEMAS["record"]), validator(SCHEMAS["leaderboard"])
CELL = validator({**SCHEMAS["leaderboard"]["$defs"]["cell"], "$schema": SCHEMAS["leaderboard"]["$schema"]})


def faults(check: Any, value: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in check.iter_errors(value)]


def rows(text: str) -> list[dict[str, Any]]:
    """The rows of a table in CSV: numbers where the schema has numbers, ``None`` for an empty field."""
    properties = SCHEMAS["leaderboard"]["$defs"]["cell"]["properties"]

    def value(column: str, text: str) -> Any:
        kind = properties[column]["type"]
        return text if kind == "string" else None if text == "" else int(text) if kind == "integer" else float(text)

    return [{c: value(c, v) for c, v in row.items()} for row in csv.DictReader(io.StringIO(text))]


@pytest.mark.parametrize("folder", sorted(p.parent for p in (ROOT / "results").glob("*/records")), ids=lambda p: p.name)
def test_every_committed_record_and_table_is_valid(folder: Path) -> None:
    files = record_files(folder)
    assert files
    for path in files:
        assert faults(RECORD, json.loads(path.read_text("utf-8"))) == [], path
    table = rows((folder / "leaderboard.csv").read_text("utf-8"))
    assert table and [fault for row in table for fault in faults(CELL, row)] == []


def test_the_json_and_the_csv_of_a_leaderboard_are_valid() -> None:
    several = [
        r for s in range(3) for r in make_run("MiB", s, task="1-1", groups=((1,), (2,), (3,)), hit=lambda t, k: 0.8)
    ]
    literature = with_literature(leaderboard(make_run("MiB", **VOC), SDR), load_published())
    for board in (leaderboard([], SDR), leaderboard(grid(1), SDR), leaderboard(grid() + several, SDR), literature):
        value = json.loads(as_json(board))
        assert faults(BOARD, value) == []
        assert [fault for row in rows(render(board, "csv")) for fault in faults(CELL, row)] == []
    assert value["published"] and json.loads(as_json(leaderboard(grid() + several, SDR)))["over_tasks"]


def test_a_written_record_is_valid_and_faults_are_found(tmp_path: Path) -> None:
    (path, *_) = record_files(write_records(tmp_path, make_run()))
    record = json.loads(path.read_text("utf-8"))
    assert faults(RECORD, record) == []
    assert faults(RECORD, {**record, "seed": -1}) == ["$.seed: -1 is less than the minimum of 0"]
    assert faults(RECORD, {**record, "matrix": {"seen": [[0.5]], "unseen": [[1]]}}) == [
        "$.matrix.seen[0][0]: 0.5 is not of type 'integer'"
    ]
    watched = {"updates": [0, 9], "weights": {"ce": 1.0}, "norms": {"ce": [2.5, 0.1]}}
    assert faults(RECORD, {**record, "gradient_norms": watched}) == []
    assert faults(RECORD, {**record, "gradient_norms": {**watched, "norms": {"ce": [-1]}}}) == [
        "$.gradient_norms.norms.ce[0]: -1 is less than the minimum of 0"
    ]
    assert faults(RECORD, {k: v for k, v in record.items() if k != "sha256"}) == ["$: 'sha256' is a required property"]


def test_a_column_that_the_schema_does_not_name_is_found() -> None:
    value = json.loads(as_json(leaderboard(grid(1), SDR)))
    value["cells"][0]["surprise"] = 1
    assert len(faults(BOARD, value)) == 1


def test_the_schemas_name_what_is_read_and_written() -> None:
    assert list(SCHEMAS["leaderboard"]["$defs"]["cell"]["properties"]) == COLUMNS
    fields = set(_Record.__struct_fields__)
    assert fields <= set(SCHEMAS["record"]["properties"])
    optional = {"step_key", "split", "sees", "external", "domains", "background", "test", "losses", "gradient_norms"}
    assert fields - optional <= set(SCHEMAS["record"]["required"])
    page = (ROOT / "docs/records.md").read_text("utf-8")
    assert [f for f in SCHEMAS["record"]["properties"] if f"`{f}`" not in page] == []
    assert [f for f in SCHEMAS["leaderboard"]["properties"] if f"`{f}`" not in page] == []
