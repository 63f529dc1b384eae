"""What a record says, done again: its keys from its configuration, its test pixels from the data, its matrix from the
stored network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from tqdm import tqdm

from benchmark.config import PER_STEP, Config, EvalConfig, TrainConfig
from benchmark.confusion import confusion
from benchmark.model_config import ModelConfig
from benchmark.plan import make_plan
from benchmark.protocol import Protocol, parse_protocol
from benchmark.records import Record, Run, read_records
from benchmark.store import digest, write_json
from benchmark.stored import Stored, eval_crop
from benchmark.verify import record_path, tuples
from datasets.errors import UserError
from datasets.scenario import Step
from datasets.transforms import EvalTransform
from datasets.view import seen


def keys(stored: Stored, run: Run) -> list[tuple[str, str]]:
    """The keys (training, evaluation) that this suite's plan gives a run's steps, with the data and code that are here.

    Plugins that a record names are not loaded: somebody else's record runs no code.
    """
    first, trains = run.records[0], [r["config"]["train"] for r in run.records]
    per_step = {name: [t[name][0] for t in trains if t[name]] for name in PER_STEP}
    config = Config(
        scenarios=(f"{run.dataset}/{run.task}/{run.setup}",),
        methods=(run.method,),
        seeds=(run.seed,),
        protocol=first["protocol"]["name"],
        model=ModelConfig(**tuples(first["config"]["model"])),
        train=TrainConfig(**tuples({**trains[0], **per_step})),
        eval=EvalConfig(**tuples(first["config"]["eval"])),
    )
    (planned,) = make_plan(config, stored.dataset).runs
    return [(cell.node.key, cell.score) for cell in planned.cells]


class PixelCounter:
    """How many pixels of the test pictures bear each label, void last; counted once for each size of crop."""

    def __init__(self, stored: Stored) -> None:
        self.stored = stored
        self._counted = lru_cache(maxsize=None)(self._count)

    def __call__(self, record: Record) -> Sequence[int] | None:
        """``None`` where the data set is not here."""
        try:
            return self._counted(record["dataset"], eval_crop(record))
        except UserError:
            return None

    def _count(self, name: str, crop: tuple[int, int] | None) -> tuple[int, ...]:
        dataset, transform = self.stored.dataset(name), EvalTransform(crop)
        counts = np.zeros(256, dtype=np.int64)
        for image_id in tqdm(dataset.ids("val"), desc=f"{name}: test pixels", leave=False, disable=None):
            _, label = transform(*dataset.load(image_id, "val"))
            counts += np.bincount(label.numpy().ravel(), minlength=256)
        return (*counts[: len(dataset.class_names)].tolist(), int(counts[255]))


def reevaluate(records: Sequence[Record], protocol: Protocol, stored: Stored) -> tuple[list[Record], list[str]]:
    """The records as a protocol's own evaluation pass gives them, and a line for each that could not be had.

    Records of that pass stay as they are. New ones are kept in ``reevaluated/<view>`` of the results folder, so that a
    network is evaluated once. Evaluation is in float32.
    """
    folder = stored.out / "reevaluated" / protocol.eval_view
    kept = read_records(folder)[0] if folder.is_dir() else []
    matrices = {r["key"]: r["matrix"] for r in kept}  # steps that several runs share are evaluated once
    result: list[Record] = []
    missing: dict[str, None] = {}
    for record in records:
        if record["protocol"]["eval_view"] == protocol.eval_view or record.get("split") != "val":
            result.append(record)
            continue
        new = {**record, "protocol": with_view(record, protocol.eval_view).as_dict()}
        new["key"] = digest({"evaluation": record["key"], "view": protocol.eval_view})
        try:
            if new["key"] not in matrices:
                matrices[new["key"]] = test_matrix(new, stored)
        except UserError as error:
            missing[f"{record['method']}, {record['task']} step {record['step']}: {error}"] = None
            continue
        new["matrix"] = matrices[new["key"]]
        result.append(new)
        if not any(new == r for r in kept):
            write_json(folder / record_path(new), new)
    return result, list(missing)


def with_view(record: Record, view: str) -> Protocol:
    """A record's protocol with another evaluation pass."""
    name, _, changes = record["protocol"]["name"].partition("[")
    return parse_protocol(f"{name}[{changes.rstrip(']')},eval_view={view}]")


def test_matrix(record: Record, stored: Stored) -> dict[str, list[list[int]]]:
    """The confusion matrices of a stored network, evaluated as the record's protocol says."""
    _, predict = stored.network(record)
    dataset, new = stored.dataset(record["dataset"]), tuple(record["channels"][1:])
    known = seen(dataset, Step(record["step"], record["setup"], (), new))
    shape = (len(dataset.class_names) + 1, len(record["channels"]))
    counts = torch.zeros(2, *shape, dtype=torch.int64, device=stored.device)
    title = f"{record['method']}, step {record['step']}: evaluation"
    for image_id, is_seen in zip(tqdm(dataset.ids("val"), desc=title, leave=False, disable=None), known, strict=True):
        image, label = stored.picture(record, image_id)
        prediction = predict(stored.batch(image))
        counts[int(not is_seen)] += confusion(label[None].to(stored.device), prediction, *shape)
    return {"seen": counts[0].tolist(), "unseen": counts[1].tolist()}
