"""The content of a record, computed again: its keys from its configuration, its test pixels from the data, its matrix
from the stored network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from contseg.benchmark.models.load import load_trained
from contseg.benchmark.plan.build import Plan, make_plan
from contseg.benchmark.plan.config import PER_STEP, Config, EvalConfig, TrainConfig
from contseg.benchmark.plan.external import codes
from contseg.benchmark.plan.model_config import ModelConfig, model_identity
from contseg.benchmark.plan.protocol import Protocol, parse_protocol
from contseg.benchmark.plan.recipe import own_recipe
from contseg.benchmark.score.networks import StoredNetworks, eval_crop, step_key
from contseg.benchmark.score.records import Record, Run, scenario_in
from contseg.benchmark.score.submissions import Matrix, UntrueError, disagreement, record_path, tuples
from contseg.benchmark.store.files import Store, digest, write_sealed
from contseg.benchmark.train.evaluate import evaluate
from contseg.benchmark.train.test_set import images_of
from contseg.datasets.domains import images_for
from contseg.datasets.errors import UserError
from contseg.datasets.progress import progress
from contseg.datasets.scenario import Scenario
from contseg.datasets.transforms import EvalTransform
from contseg.datasets.view import scored_view
from contseg.methods.faults import MethodError
from contseg.methods.grammar import with_recipe
from contseg.methods.identity import describe

# what comes of weights and records that do not fit each other
UNFIT = (AttributeError, LookupError, MethodError, OSError, RuntimeError, TypeError, ValueError)


def keys(stored: StoredNetworks, run: Run) -> list[tuple[str, str]]:
    """The keys (training, evaluation) of a run's steps, as planned here with the local data and code.

    Plugins that a record names are not loaded: a submitted record runs only code that ``--plugin`` names. Raises
    ``UntrueError`` where a record says what is in no key, and is otherwise in the plan.
    """
    first, config = run.records[0], config_of(run)
    plan = make_plan(config, stored.dataset)
    (planned,) = plan.runs
    scenario, names = planned.scenario, stored.dataset(run.dataset).class_names
    here = (scenario.task, scenario.order, planned.method, scenario.domains or scenario.groups, list(names))
    written = (first["task"], first["order"], config.methods[0], run.parts, first["class_names"])
    if here != written:
        a, b = next(pair for pair in zip(written, here, strict=True) if pair[0] != pair[1])
        raise UserError(f"{a} is {b} here")
    for t, record in enumerate(run.records):
        _check_said(record, plan, t)
    return [(cell.node.key, cell.score) for cell in planned.cells]


def _check_said(record: Record, plan: Plan, t: int) -> None:
    """What tables and foot notes take from a record and no key holds: compared with the plan of its only run."""
    (run,) = plan.runs
    node, config = run.cells[t].node, record["config"]
    said: dict[str, tuple[Any, Any]] = {"background": (record.get("background", True), run.scenario.background)}
    if record.get("external") is not None:
        said["external"] = record["external"], list(codes(plan.config.model, run.method))
    if run.scenario.domains:
        trained, images = plan.tested_on_trained(run, t)
        said["test"] = record.get("test"), {"images": images, "trained_on": trained}
    if "images" in record.get("sees", {}):
        said["sees.images"] = record["sees"]["images"], len(node.view.ids)
    if describe(TrainConfig(**tuples(config["train"]))) != describe(node.train):
        said["config.train"] = "another", "that of step 0 and the name"
    model = ModelConfig(**tuples(config["model"]))
    if model != plan.config.model and model_identity(model) != model_identity(plan.config.model):
        said["config.model"] = "another", "that of step 0"
    for name, (there, here) in said.items():
        if there != here:
            raise UntrueError(f"step {t}: its {name} is {there}, not {here}")


def config_of(run: Run) -> Config:
    """The grid of one run, from its records: those of its first steps, without a gap.

    Raises ``UserError`` where the name of the method and its configuration do not agree, and ``AttributeError``,
    ``LookupError``, ``TypeError`` or ``ValueError`` for a configuration that is not one of this suite.
    """
    first, trains = run.records[0], [TrainConfig(**tuples(r["config"]["train"])) for r in run.records]
    per_step: dict[str, Any] = {
        name: tuple(getattr(t, name)[0] for t in trains if getattr(t, name)) for name in PER_STEP
    }
    task = run.task
    if run.is_joint and not first.get("domains") and len(run.groups[0]) < len(first["class_names"]) - 1:
        task = f"[{','.join(map(str, run.groups[0]))}]"  # Joint of some classes
    config = Config(
        scenarios=(f"{run.dataset}/{task}/{run.setup}",),
        methods=(with_recipe(run.method, {}),),
        seeds=(run.seed,),
        protocol=first["protocol"]["name"],
        model=ModelConfig(**tuples(first["config"]["model"])),
        train=replace(trains[0], **per_step),
        eval=EvalConfig(**tuples(first["config"]["eval"])),
    )
    named = own_recipe(config, run.method)[1]
    if any(named.at(t) != config.train.at(t) for t in range(len(run.records))):
        raise UserError("its name and its configuration give different values of train")
    return config


class PixelCounter:
    """Test pixels of each label, void last; counted once for each crop size."""

    def __init__(self, stored: StoredNetworks) -> None:
        self.stored = stored
        self._counted = lru_cache(maxsize=None)(self._count)

    def __call__(self, record: Record) -> Sequence[int] | None:
        """``None`` if the data set is not available or the record does not say its crop."""
        try:
            return self._counted(record["dataset"], eval_crop(record), *_tested(record))
        except UserError:
            return None

    def _count(
        self, name: str, crop: tuple[int, int] | None, scenario: Scenario | None = None, index: int = 0
    ) -> tuple[int, ...]:
        dataset, transform = self.stored.dataset(name), EvalTransform(crop)
        ids = dataset.ids("val")
        if scenario is not None:
            dataset, ids = images_for(dataset, scenario), scored_view(dataset, scenario, index).ids
        counts = np.zeros(256, dtype=np.int64)
        for image_id in progress(ids, f"{name}: test pixels", unit="image", leave=False):
            _, label = transform(*dataset.load(image_id, "val"))
            counts += np.bincount(label.numpy().ravel(), minlength=256)
        return (*counts[: len(dataset.class_names)].tolist(), int(counts[255]))


def _tested(record: Record) -> tuple[Scenario, int] | tuple[()]:
    """What chooses the test images of a record by domain; nothing if it is the whole test set."""
    return (scenario_in(record), record["step"]) if record.get("domains") else ()


class Rescorer:
    """The confusion matrices of stored networks, by the same evaluation loop as ``run``; each network runs once.

    ``homes``: the results folders with the networks (default: that of ``stored``). ``foreign``: they are submitted,
    so no code that they name is run.
    """

    def __init__(self, stored: StoredNetworks, homes: Sequence[Path] = (), foreign: bool = False) -> None:
        self.stored, self.homes, self.foreign = stored, homes or (stored.out,), foreign
        self._matrices: dict[tuple[str, str], Matrix] = {}

    def __call__(self, record: Record) -> Matrix | None:
        """``None`` if there are no weights; ``UserError`` if they cannot be scored."""
        home = next((h for h in self.homes if Store(h).model(step_key(record)).exists()), None)
        if home is None:
            return None
        place = (step_key(record), record["key"])
        if place not in self._matrices:
            try:
                self._matrices[place] = self._score(record, home)
            except UNFIT as error:
                why = " ".join(str(error).split())[:200]
                raise UserError(f"the network stored in {home} is not what the record describes ({why})") from error
        return self._matrices[place]

    def _score(self, record: Record, home: Path) -> Matrix:
        model, method = load_trained(
            home, step_key(record), record["method"], self.stored.device, plugins=not self.foreign
        )
        last = Store(home).meta(step_key(record))["steps"][-1]
        if [0, *last["old_classes"], *last["new_classes"]] != record["channels"]:
            raise ValueError("it knows other classes")
        dataset = self.stored.dataset(record["dataset"])
        images, known, domains = images_of(dataset, scenario_in(record), record["step"], eval_crop(record))
        return evaluate(
            model,
            method.predict,
            images,
            known,
            n_labels=len(dataset.class_names),
            n_channels=len(record["channels"]),
            device=self.stored.device,
            precision=record["config"]["train"].get("precision", "no"),
            title=f"{record['method']}, step {record['step']}: evaluation",
            domains=domains,
        )


def reevaluate(records: Sequence[Record], protocol: Protocol, rescore: Rescorer) -> tuple[list[Record], list[str]]:
    """The records under a protocol's evaluation pass, and a line for each that could not be re-evaluated.

    Every record is scored again from its stored network, even if it was made by this pass: a line says where the
    record has other counts. The results are written to ``reevaluated/<view>`` of the results folder.
    """
    out = rescore.stored.out
    result: list[Record] = []
    wrong: dict[str, None] = {}
    for record in records:
        new, where = record, f"{record['method']}, {record['task']} step {record['step']}"
        if record["protocol"]["eval_view"] != protocol.eval_view:
            new = {**record, "protocol": with_view(record, protocol.eval_view).as_dict()}
            new["key"] = digest({"evaluation": record["key"], "view": protocol.eval_view})
        try:
            matrix = rescore(new)
        except UserError as error:
            wrong[f"{where}: {error}"] = None
            continue
        if matrix is None:
            wrong[f"{where}: not re-evaluated, its network is not in the cache of {out}"] = None
            continue
        if new is record and (fault := disagreement(record, matrix)):
            wrong[f"{where}: {fault}"] = None
        result.append({**new, "matrix": matrix})
        write_sealed(out / "reevaluated" / protocol.eval_view / record_path(new), result[-1])
    return result, list(wrong)


def with_view(record: Record, view: str) -> Protocol:
    """A record's protocol with another evaluation pass."""
    name, _, changes = record["protocol"]["name"].partition("[")
    return parse_protocol(f"{name}[{changes.rstrip(']')},eval_view={view}]")
