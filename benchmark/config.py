"""What a grid is trained with: frozen dataclasses, filled from TOML and ``--set``. No torch here.

``model``, ``train``, ``eval`` and ``protocol`` are identity: they go into the keys. ``run`` and ``launch`` say how and
where the work is done and change no number.

A field of ``train`` that is a tuple holds one value a step; the last one serves all later steps, so
``lr = [0.01, 0.001]`` is 0.01 at step 0 and 0.001 afterwards.
"""

from __future__ import annotations

import tomllib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmark.model_config import ModelConfig
from datasets.errors import UserError, unknown
from methods.registry import coerce


@dataclass(frozen=True)
class TrainConfig:
    """How a step is trained; defaults are MiB's and PLOP's recipe (protocol.md of the papers: batch 24, 30 epochs)."""

    epochs: tuple[float, ...] = (30.0,)
    updates: tuple[int, ...] = ()  # if given: optimiser updates a step, instead of epochs
    lr: tuple[float, ...] = (1e-2, 1e-3)
    batch: tuple[int, ...] = (24,)  # pictures an update, over all processes and micro-batches
    accumulate: int = 1  # micro-batches that an update is split into
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    power: float = 0.9  # of the poly schedule, per update
    clip: float = 0.0  # norm of the gradient; 0: none
    precision: Literal["no", "bf16", "fp16", "double"] = "no"
    crop: tuple[int, ...] = (512,)  # side of the square, or height and width
    scale: tuple[float, ...] = (0.5, 2.0)  # of RandomResizedCrop, share of the area; empty: no random window
    flip: Literal["none", "h", "hv"] = "h"

    def at(self, step: int) -> TrainConfig:
        """This step's own values: every per-step tuple cut down to one entry."""
        cut = {n: getattr(self, n)[min(step, len(getattr(self, n)) - 1) :][:1] for n in PER_STEP if getattr(self, n)}
        return replace(self, **cut)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a training picture."""
        return self.crop[0], self.crop[-1]

    @property
    def window_scale(self) -> tuple[float, float] | None:
        """Bounds of the random window's share of the area; ``None`` without random windows."""
        return (self.scale[0], self.scale[1]) if self.scale else None

    def plan_updates(self, pictures: int) -> int:
        """Optimiser updates of this (one-step) configuration over so many pictures; at least one an epoch."""
        if self.updates:
            return self.updates[0]
        return max(1, round(self.epochs[0] * self.epoch_updates(pictures)))

    def epoch_updates(self, pictures: int) -> int:
        """Updates an epoch: the last, smaller batch is dropped, but a step smaller than a batch still trains."""
        return max(1, pictures // self.batch[0])


def check_train(train: TrainConfig) -> TrainConfig:
    """The same configuration; ``UserError`` for values with which nothing can be trained."""
    wrong = {
        "epochs": not train.epochs or min(train.epochs) <= 0,
        "updates": any(u < 1 for u in train.updates),
        "lr": not train.lr or min(train.lr) <= 0,
        "batch": not train.batch or min(train.batch) < 1,
        "accumulate": train.accumulate < 1,
        "crop": len(train.crop) not in (1, 2) or min(train.crop) < 1,
        "scale": len(train.scale) not in (0, 2) or any(s <= 0 for s in train.scale),
        "clip": train.clip < 0,
    }
    for name, bad in wrong.items():
        if bad:
            raise UserError(
                f"train.{name} = {getattr(train, name)} makes no sense: see benchmark/config.py for its meaning"
            )
    return train


def check_shares(config: Config, processes: int) -> None:
    """``UserError`` where a batch cannot be shared out among so many processes."""
    share = config.train.accumulate * processes
    for batch in config.train.batch:
        micro, rest = divmod(batch, share)
        if rest or micro < 1:
            raise UserError(
                f"a batch of {batch} cannot feed {processes} processes with {config.train.accumulate} micro-batches "
                f"each: choose train.batch as a multiple of {share}"
            )
        norm = config.model.norm
        if micro < 2 and (norm == "batch" or (norm == "sync" and processes == 1)):
            raise UserError(
                "a batch of one picture would reach BatchNorm: raise train.batch, lower train.accumulate, "
                "or set model.norm=group or frozen"
            )


PER_STEP = ("epochs", "updates", "lr", "batch")


@dataclass(frozen=True)
class EvalConfig:
    """What is scored: the test images, or (for tuning) a held-out fifth of each step's training images."""

    split: Literal["val", "tune"] = "val"
    crop: tuple[int, ...] = ()  # of the `crop` view; empty: the training crop


@dataclass(frozen=True)
class RunConfig:
    """How the work is done. Nothing here changes a number."""

    workers: int = 0  # loader processes for each training process
    keep_decoded: bool = False  # hold decoded pictures in memory
    eval_batch: int = 8
    checkpoint_minutes: float = 10.0
    checkpoint_updates: int = 0  # also every so many updates; 0: only by the clock
    tracker: str = "none"  # none | tensorboard | any tracker that Accelerate knows
    compile: bool = False
    deterministic: bool = False  # deterministic algorithms on a GPU, TF32 off


@dataclass(frozen=True)
class LaunchConfig:
    """Where steps run (``--launcher``). Nothing here is identity; processes change a number in its last digits."""

    workers: int = 0  # local: processes side by side; 0: one for each GPU, or two on a CPU
    processes: int = 1  # slurm: processes (GPUs) a step and node
    nodes: int = 1  # slurm: nodes a step
    cpus: int = 4  # slurm: cores a process
    partition: str = ""
    account: str = ""
    minutes: int = 240  # slurm: time limit of a job; what is not finished then is requeued and goes on
    memory: str = ""  # slurm: of a node, for example 64GB
    gpus: bool = True  # slurm: one GPU for each process
    signal_seconds: int = 0  # slurm: before the time limit, for the checkpoint; 0: a tenth of it, at most 10 minutes
    options: tuple[str, ...] = ()  # slurm: further sbatch options, "constraint=a100"


@dataclass(frozen=True)
class Config:
    """One grid."""

    scenarios: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    protocol: str = "sdr"
    plugins: tuple[str, ...] = ()
    data: Mapping[str, str] = field(default_factory=dict)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    run: RunConfig = field(default_factory=RunConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)


SECTIONS = {"model": ModelConfig, "train": TrainConfig, "eval": EvalConfig, "run": RunConfig, "launch": LaunchConfig}


def read_config(path: Path | None, overrides: Iterable[str] = (), **chosen: Any) -> Config:
    """The configuration of a TOML file, changed by ``--set section.key=value`` items and by command-line options.

    ``chosen`` replaces top-level fields where a value is not ``None``. Raises ``UserError`` in one line.
    """
    config = _from_table(_load(path), str(path)) if path else Config()
    for item in overrides:
        config = _override(config, item)
    return replace(config, **{k: v for k, v in chosen.items() if v is not None})


def identity(config: Any) -> dict[str, Any]:
    """A configuration section as plain values, for records and keys."""
    return {
        f.name: identity(v) if is_dataclass(v := getattr(config, f.name)) else list(v) if isinstance(v, tuple) else v
        for f in fields(config)
    }


def _load(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"no configuration file {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _from_table(table: dict[str, Any], where: str) -> Config:
    values: dict[str, Any] = {}
    hints = typing.get_type_hints(Config)
    for key, value in table.items():
        if key in SECTIONS:
            if not isinstance(value, dict):
                raise UserError(f"{where}: [{key}] must be a table")
            values[key] = read_section(SECTIONS[key], key, value, where)
        elif key == "data":
            values[key] = {k: str(v) for k, v in value.items()}
        elif key in hints:
            values[key] = _value(value, hints[key], f"{where}: {key}")
        else:
            raise unknown(f"configuration key in {where}", key, hints)
    return Config(**values)


def read_section(kind: type[Any], name: str, table: dict[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(kind)
    for key in table:
        if key not in hints:
            raise unknown(f"key of [{name}] in {where}", key, hints)
    return kind(**{k: _value(v, hints[k], f"{where}: {name}.{k}") for k, v in table.items()})


def _override(config: Config, item: str) -> Config:
    path, equals, text = item.partition("=")
    section, dot, key = path.strip().partition(".")
    if not equals:
        raise UserError(f"--set {item!r}: write section.key=value, for example train.epochs=1")
    if not dot:
        raise UserError(
            f"--set {item!r}: top-level values have options of their own; known sections: {_names(SECTIONS)}"
        )
    if section not in SECTIONS:
        raise unknown("configuration section", section, SECTIONS)
    hints = typing.get_type_hints(SECTIONS[section])
    if key not in hints:
        raise unknown(f"key of [{section}]", key, hints)
    part = replace(getattr(config, section), **{key: _value(text, hints[key], f"--set {section}.{key}")})
    return replace(config, **{section: part})


def _value(value: Any, annotation: Any, where: str) -> Any:
    """A TOML value or a text, of the type that the field declares."""
    items = value if isinstance(value, list) else [value]
    text = ",".join(str(v).lower() if isinstance(v, bool) else str(v) for v in items)
    if typing.get_origin(annotation) is tuple and typing.get_args(annotation)[0] is str:
        if all(isinstance(v, str) for v in items):
            return tuple(items)
        raise UserError(f"{where} must be a list of strings")
    try:
        return coerce(text, annotation)
    except ValueError:
        wanted = str(annotation).replace("typing.", "").replace("<class '", "").replace("'>", "")
        raise UserError(f"{where}: {value!r} is not of the type {wanted}") from None


def _names(known: Iterable[str]) -> str:
    return ", ".join(sorted(known))
