"""Records on disk -> runs: read, check, and group the steps of each run.

A damaged record never stops a report. It is left out, and one line says which file and why.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
import numpy as np

from contseg.benchmark.plan.config import TrainConfig
from contseg.benchmark.plan.external import recorded
from contseg.benchmark.plan.model_config import ModelConfig
from contseg.benchmark.plan.protocol import from_record, parse_protocol
from contseg.benchmark.store.files import RECORD_FORMAT, digest
from contseg.datasets.errors import UserError
from contseg.datasets.scenario import Scenario
from contseg.methods.external import ordered
from contseg.methods.grammar import recipe

Record: TypeAlias = dict[str, Any]
OFFLINE = "offline"
LEFT_OUT = {  # settings that a record does not name while they have their default
    f"{section}.{field.name}": json.loads(json.dumps(field.default))
    for section, kind in (("model", ModelConfig), ("train", TrainConfig))
    for field in fields(kind)
    if field.metadata.get("added")
}

Labels: TypeAlias = list[int]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Size: TypeAlias = Annotated[float, msgspec.Meta(ge=0)]
Side: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=2**15)]  # of an image, in pixels
Rows: TypeAlias = list[list[Count]]


# The fields of a record that are read here. Other fields are not checked.


class _Cropped(msgspec.Struct, frozen=True):
    crop: tuple[Side, ...] = ()
    precision: str = "no"


class _Config(msgspec.Struct, frozen=True):
    model: dict[str, Any] = {}
    train: _Cropped = _Cropped()
    eval: _Cropped = _Cropped()
    plugins: tuple[str, ...] = ()


class _Sees(msgspec.Struct, frozen=True):
    images: int | None = None


class _Versions(msgspec.Struct, frozen=True):
    contseg: str


class _Provenance(msgspec.Struct, frozen=True):
    device: str = ""
    processes: int = 1
    commit: str = ""
    time: str = ""
    command: str = ""


class _Cost(msgspec.Struct, frozen=True):
    images: Count = 0
    updates: Count = 0
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    parameters: Count = 0
    trained_parameters: Count = 1


class _Matrix(msgspec.Struct, frozen=True):
    seen: Rows
    unseen: Rows
    domains: dict[str, Rows] = {}


class _Test(msgspec.Struct, frozen=True):
    images: Count
    trained_on: Count


class _GradientNorms(msgspec.Struct, frozen=True):
    updates: list[Count]
    weights: dict[str, float]
    norms: dict[str, list[Size]]

    def __post_init__(self) -> None:
        if {n: len(v) for n, v in self.norms.items()} != dict.fromkeys(self.weights, len(self.updates)):
            raise ValueError("Expected a norm of each of `weights` at each of `updates`")


class _Record(msgspec.Struct, frozen=True):
    key: str
    run: str
    dataset: str
    task: str
    setup: str
    order: str
    method: str
    seed: int
    step: int
    steps: int
    class_names: list[str]
    groups: list[Labels]
    channels: Labels
    protocol: dict[str, Any]
    matrix: _Matrix
    config: _Config
    versions: _Versions
    provenance: _Provenance
    cost: _Cost
    step_key: str = ""
    split: Literal["val", "tune"] = "val"
    sees: _Sees = _Sees()
    external: list[str] | None = None
    domains: list[list[str]] = []  # by step, of a scenario by domain
    background: bool = True
    test: _Test | None = None
    losses: dict[str, list[float | None]] = {}
    gradient_norms: _GradientNorms | None = None


def fault(record: Any) -> str | None:
    """Why a parsed JSON file cannot be scored as a record; ``None`` if it can."""
    if not isinstance(record, dict) or "format" not in record:
        return "not a record of this suite"
    if record["format"] != RECORD_FORMAT:
        return (
            f"written in record format {record['format']}, this version reads format {RECORD_FORMAT}: make it again "
            "with the command that made it (`run`); steps in the cache are not trained again"
        )
    try:
        form = msgspec.convert(record, _Record)
        parse_protocol(from_record(form.protocol).name)
        recipe(form.method)
        ordered(form.external or ())
    except msgspec.ValidationError as error:
        return f"not a valid record: {error}"
    except UserError as error:
        return str(error)
    if form.steps != len(form.groups) or not 0 <= form.step < len(form.groups):
        return f"step {form.step} of {form.steps} does not fit {len(form.groups)} groups of classes"
    seen = [0, *(k for g in form.groups[: form.step + 1] for k in g)]
    if form.channels != seen:
        return f"channels are not background and the classes seen by step {form.step}"
    n_labels = len(form.class_names)
    if len(set(seen)) != len(seen) or not all(0 <= k < n_labels for g in form.groups for k in g):
        return f"a class is in two groups, or is not one of the data set's {n_labels - 1}"
    by_domain = form.matrix.domains
    if form.domains and len(form.domains) != form.steps:
        return f"domains of {len(form.domains)} steps, not of {form.steps}"
    if sorted(by_domain) != sorted(d for step in form.domains[: form.step + 1] for d in step):
        return f"matrix.domains does not have the domains seen by step {form.step}"
    parts = (("seen", form.matrix.seen), ("unseen", form.matrix.unseen), *by_domain.items())
    for part, rows in parts:
        if len(rows) != n_labels + 1:
            return f"matrix.{part} must have {n_labels + 1} rows: {n_labels - 1} classes, background and void"
        if any(len(row) != len(seen) for row in rows):
            return f"matrix.{part} must have {len(seen)} columns, one for each channel"
    if by_domain and (np.sum([*by_domain.values()], axis=0) != np.asarray(form.matrix.seen)).any():
        return "matrix.seen is not the sum of the matrices of its domains"
    return None


def _broken_seal(record: Record) -> str | None:
    """What is wrong with the seal, which is removed. It has no secret key: it shows damage, not the author."""
    seal = record.pop("sha256", None)
    if seal is None:
        return "its seal (sha256) is missing"
    return None if seal == digest(record) else "altered since it was written"


def record_files(folder: Path) -> list[Path]:
    """The JSON files below ``folder/records``; else those of all results folders in it; else all below ``folder``."""
    nested = [folder / "records"] if (folder / "records").is_dir() else sorted(folder.glob("*/records"))
    return [path for base in nested or [folder] for path in sorted(base.rglob("*.json"))]


def results_folders(folder: Path) -> list[Path]:
    """The results folders that ``record_files`` reads; their caches may hold the networks."""
    nested = [folder] if (folder / "records").is_dir() else [p.parent for p in sorted(folder.glob("*/records"))]
    return nested or [folder.resolve().parent]


def read_records(folder: Path | str) -> tuple[list[Record], list[str]]:
    """All records below a folder, sorted by path, and one line for each file that was left out."""
    if not Path(folder).is_dir():
        raise UserError(f"no records: {folder} is not a folder; run `contseg run --out {folder}` first")
    records: list[Record] = []
    problems: list[str] = []
    for path in record_files(Path(folder)):
        record, why = read_record(path)
        if record is not None:
            records.append(record)
        else:
            problems.append(f"left out {path}: {why}")
    return records, problems


def read_record(path: Path) -> tuple[Record | None, str]:
    """One record; ``None`` and the reason if it cannot be used."""
    try:
        if not path.is_file():  # opening a pipe would wait forever
            raise OSError("not a regular file")
        record = _parsed(path.read_bytes())
    except (OSError, ValueError) as error:
        return None, f"unreadable or cut short ({error})"
    why = fault(record) or _broken_seal(record)
    return (record, "") if why is None else (None, why)


def _parsed(content: bytes) -> Any:
    """JSON in UTF-8. What msgspec, which is faster, does not take is read or refused by Python's own reader."""
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return json.loads(content.decode("utf-8"))


def crop_of(record: Record) -> tuple[int, int] | None:
    """Height and width of the crop that a record's evaluation used; ``None`` if the record does not say it."""
    config = record["config"]
    crop = config.get("eval", {}).get("crop") or config.get("train", {}).get("crop")
    return (crop[0], crop[-1]) if crop else None


@dataclass(frozen=True)
class Run:
    """The records of one (scenario x method x seed), in the order of the steps; some may be missing."""

    records: tuple[Record, ...]

    @property
    def last(self) -> Record:
        return self.records[-1]

    @property
    def dataset(self) -> str:
        return str(self.last["dataset"])

    @property
    def task(self) -> str:
        """The task with its class order: ``15-1@b``."""
        return "@".join(filter(None, (str(self.last["task"]), str(self.last["order"]))))

    @property
    def setup(self) -> str:
        return str(self.last["setup"])

    @property
    def method(self) -> str:
        return str(self.last["method"])

    @property
    def seed(self) -> int:
        return int(self.last["seed"])

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(g) for g in self.last["groups"])

    @property
    def parts(self) -> tuple[tuple[int, ...], ...] | tuple[tuple[str, ...], ...]:
        """What the steps bring: foreground labels, or domains."""
        domains = self.last.get("domains")
        return tuple(tuple(d) for d in domains) if domains else self.groups

    @property
    def complete(self) -> bool:
        return [r["step"] for r in self.records] == list(range(self.last["steps"]))

    @property
    def is_joint(self) -> bool:
        """Whether this is Joint: one training on all classes, shown under every task of its data set."""
        return self.last["task"] == OFFLINE and self.method.split("[")[0] == "Joint"

    def __str__(self) -> str:
        return f"{self.dataset}/{self.task}/{self.setup} {self.method} seed {self.seed}"


def scenario_in(record: Record) -> Scenario:
    """The scenario of a record, without imported lists of images."""
    groups, domains = (tuple(tuple(x) for x in record.get(name, ())) for name in ("groups", "domains"))
    place = (record["dataset"], record["task"], record["setup"])
    return Scenario(*place, groups, record["order"], (), domains, record.get("background", True))


def gather_runs(records: Iterable[Record]) -> list[Run]:
    """Runs in the order of their first record. If a step of a run has two records, the later one by time is kept."""
    runs: dict[tuple[Any, ...], dict[int, Record]] = {}
    names = ("run", "dataset", "task", "order", "setup", "method", "seed")
    for record in sorted(records, key=lambda r: str(r["provenance"].get("time", ""))):
        runs.setdefault(tuple(record[n] for n in names), {})[record["step"]] = record
    return [Run(tuple(steps[t] for t in sorted(steps))) for steps in runs.values()]


def flat_config(record: Record) -> dict[str, Any]:
    """A record's configuration as a flat dictionary: ``{"train.epochs": 30, ...}``."""

    def walk(prefix: str, value: Any) -> Iterable[tuple[str, Any]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            yield prefix, value

    return dict(walk("", record["config"]))


def differing(configs: Sequence[dict[str, Any]]) -> list[str]:
    """The names of the settings that differ between configurations."""
    names = sorted({name for config in configs for name in config})
    return [n for n in names if len({json.dumps(c.get(n), sort_keys=True) for c in configs}) > 1]


def recipe_of(method: str) -> dict[str, str]:
    """The recipe in a recorded method's name; none if the name cannot be parsed: it may come from elsewhere."""
    try:
        return recipe(method)
    except UserError:
        return {}


def identity(run: Run) -> dict[str, Any]:
    """The settings that define the experiment, by step: model, train, eval; not workers, trackers or folders.

    A recipe is left out too: the name of the method says it. ``eval.crop`` is the size that was tested, given or not.
    What a method saw besides its task belongs to the method, and is the same for all of its seeds.
    """
    said = {"eval.crop", *(f"train.{key}" for key in recipe_of(run.method))}
    found = {
        f"step {r['step']} {name}": value
        for r in run.records
        for name, value in (LEFT_OUT | flat_config(r)).items()
        if name.split(".")[0] in ("model", "train", "eval") and name not in said
    }
    crops = {f"step {r['step']} eval.crop": crop_of(r) for r in run.records if r["protocol"]["eval_view"] == "crop"}
    seen = {f"external data of {run.method}": " ".join(recorded(run.last)) or "none"}
    return found | {name: list(crop) for name, crop in crops.items() if crop} | seen


def configurations(runs: Sequence[Run]) -> list[int]:
    """For each run the number of its configuration, counted from 1 within its data set, in the given order.

    Two runs share a number if all settings agree on the steps that both have (Joint has one step).
    """
    kinds: dict[str, list[dict[str, Any]]] = {}
    numbers = []
    for run in runs:
        mine, known = identity(run), kinds.setdefault(run.dataset, [])
        fits = (i for i, kind in enumerate(known) if all(kind.get(k, v) == v for k, v in mine.items()))
        number = next(fits, len(known))
        if number == len(known):
            known.append({})
        known[number].update(mine)
        numbers.append(number + 1)
    return numbers
