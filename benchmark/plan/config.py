"""The configuration of a grid: frozen dataclasses, read from TOML and ``--set``. No torch here.

``model``, ``train``, ``eval`` and ``protocol`` are identity: they go into the keys. ``run`` and ``launch`` say how and
where the work is done; they change a number in its last digits at most. A field's declaration is its type, range,
default and meaning; ``docs/configuration.md`` is written from it (``contseg.benchmark.plan.config_reference``).

A field of ``train`` that is a tuple holds one value a step; the last one serves all later steps, so
``lr = [0.01, 0.001]`` is 0.01 at step 0 and 0.001 afterwards.
"""

from __future__ import annotations

import contextlib
import tomllib
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from msgspec import Meta

from contseg.benchmark.plan.model_config import ModelConfig, check_layers, left_out
from contseg.benchmark.plan.run_config import LaunchConfig, RunConfig
from contseg.datasets.errors import UserError, need, unknown
from contseg.methods.grammar import coerce, method_text, recipe, with_recipe
from contseg.methods.identity import added_field
from contseg.methods.ranges import Count, Number, Positive, Search, Weight, admit, plain


@dataclass(frozen=True)
class TrainConfig:
    """How a step is trained; defaults are the recipe of MiB and PLOP (batch 24, 30 epochs)."""

    identity: ClassVar[str] = "benchmark.config.TrainConfig"  # its name in the keys of steps

    epochs: Annotated[tuple[Positive, ...], Meta(min_length=1, description="passes over a step's images")] = (30.0,)
    updates: Annotated[tuple[Count, ...], Meta(description="optimiser updates of a step, instead of `epochs`")] = ()
    lr: Annotated[
        tuple[Positive, ...],
        Meta(min_length=1, description="learning rate at the first update of a step"),
        Search(3e-4, 1e-1),
    ] = (1e-2, 1e-3)
    batch: Annotated[
        tuple[Count, ...], Meta(min_length=1, description="images an update, over all processes and micro-batches")
    ] = (24,)
    accumulate: Annotated[Count, Meta(description="micro-batches that an update is split into")] = 1
    optimizer: Annotated[
        Literal["sgd", "adamw"],
        Meta(description="SGD, or AdamW, for transformers: at a hundredth of SGD's learning rate (docs/networks.md)"),
    ] = added_field("sgd")
    momentum: Annotated[float, Meta(ge=0, lt=1, description="of SGD; AdamW's first beta, the second is 0.999")] = 0.9
    nesterov: Annotated[bool, Meta(description="Nesterov's momentum, if there is momentum (SGD)")] = True
    weight_decay: Annotated[
        Weight,
        Meta(description="L2 penalty on the weights (SGD); decoupled, without biases, norms and positions (AdamW)"),
    ] = 1e-4
    schedule: Annotated[
        Literal["poly", "cosine"], Meta(description="of the learning rate, per update, from `lr` to 0")
    ] = added_field("poly")
    power: Annotated[Weight, Meta(description="of the poly schedule, per update; 0: a constant learning rate")] = 0.9
    warmup: Annotated[
        tuple[Weight, ...],
        Meta(min_length=1, description="epochs at the start of a step in which the rate rises in equal parts; 0: none"),
    ] = added_field((0.0,))
    layer_decay: Annotated[
        float,
        Meta(gt=0, le=1, description="factor on the rate from each layer of the encoder to the one before; 1: none"),
    ] = added_field(1.0)
    clip: Annotated[Weight, Meta(description="largest norm of the gradient; 0: no limit")] = 0.0
    precision: Annotated[
        Literal["no", "bf16", "fp16", "double"], Meta(description="mixed precision, or float64 throughout")
    ] = "no"
    crop: Annotated[
        tuple[Count, ...],
        Meta(min_length=1, max_length=2, description="side of the square training image, or height and width"),
    ] = (512,)
    scale: Annotated[
        tuple[Positive, ...],
        Meta(max_length=2, description="bounds of the random window's share of the area; empty: no random window"),
    ] = (0.5, 2.0)
    flip: Annotated[Literal["none", "h", "hv"], Meta(description="random flips: left-right, or also upside down")] = "h"
    jitter: Annotated[
        tuple[Weight, ...],
        Meta(
            max_length=4,
            description="random colours: strength for brightness, contrast, saturation, hue (<= 0.5); empty: none",
        ),
    ] = added_field(())

    def at(self, step: int) -> TrainConfig:
        """This step's own values: every per-step tuple cut down to one entry."""
        cut = {n: getattr(self, n)[min(step, len(getattr(self, n)) - 1) :][:1] for n in PER_STEP if getattr(self, n)}
        return replace(self, **cut)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a training image."""
        return self.crop[0], self.crop[-1]

    @property
    def window_scale(self) -> tuple[float, float] | None:
        """Bounds of the random window's share of the area; ``None`` without random windows."""
        return (self.scale[0], self.scale[1]) if self.scale else None

    def plan_updates(self, images: int) -> int:
        """Optimiser updates of this (one-step) configuration for so many images; at least one."""
        if self.updates:
            return self.updates[0]
        return max(1, round(self.epochs[0] * self.epoch_updates(images)))

    def epoch_updates(self, images: int) -> int:
        """Updates an epoch: the last, smaller batch is dropped, but a step smaller than a batch still trains."""
        return max(1, images // self.batch[0])

    def warmup_updates(self, images: int) -> int:
        """Updates of the warm-up. ``UserError`` if none is left after it."""
        warm, total = round(self.warmup[0] * self.epoch_updates(images)), self.plan_updates(images)
        if warm >= total and warm:
            raise UserError(
                f"train.warmup={self.warmup[0]:g}: that is {warm} updates, and a step of {images} images has {total}: "
                "lower it (it counts epochs)"
            )
        return warm


def check_shares(norm: str, trains: Iterable[TrainConfig], processes: int) -> None:
    """``UserError`` if a batch cannot be split over the processes. ``norm``: that of the network."""
    for train, batch in ((each, batch) for each in trains for batch in each.batch):
        share = train.accumulate * processes
        micro, rest = divmod(batch, share)
        if rest or micro < 1:
            raise UserError(
                f"a batch of {batch} cannot be split over {processes} processes with {train.accumulate} micro-batches "
                f"each: choose train.batch as a multiple of {share}"
            )
        if micro < 2 and (norm == "batch" or (norm == "sync" and processes == 1)):
            raise UserError(
                "a batch of one image would reach BatchNorm: raise train.batch, lower train.accumulate, "
                "or set model.norm=group or frozen"
            )


PER_STEP = ("epochs", "updates", "lr", "batch", "warmup")


@dataclass(frozen=True)
class EvalConfig:
    """What is scored."""

    split: Annotated[
        Literal["val", "tune"],
        Meta(description="the test images, or (for tuning) a held-out fifth of each step's training images"),
    ] = "val"
    crop: Annotated[
        tuple[Count, ...], Meta(max_length=2, description="of the `crop` view; empty: the training crop")
    ] = ()


SELECTIONS = ("first", "stream", "test", "other:SCENARIO")


@dataclass(frozen=True)
class TunedConfig:
    """The search that chose the methods of this grid. `contseg tune` writes it and tables print it; it is in no key."""

    on: Annotated[str, Meta(description="how trials were compared: `first`, `other:SCENARIO`, `stream`, `test`")] = ""
    scenario: Annotated[str, Meta(description="where they were compared")] = ""
    trials: Annotated[Number, Meta(description="trials of each method")] = 0
    draw: Annotated[Number, Meta(description="seed of the drawn values")] = 0
    methods: Annotated[
        tuple[str, ...], Meta(description="the chosen methods; other methods of the grid are not tuned")
    ] = ()
    numbers: Annotated[tuple[Number, ...], Meta(description="the trial that each of them is; 0: the default")] = ()
    record: Annotated[str, Meta(description="SHA-256 of `trials.csv`, which lies beside the grid")] = ""


Seed: TypeAlias = Annotated[int, Meta(ge=0, le=2**32 - 1)]


@dataclass(frozen=True)
class Config:
    """One grid: every scenario with every method and every seed."""

    scenarios: Annotated[tuple[str, ...], Meta(description="such as `voc/15-1/overlapped`")] = ()
    methods: Annotated[
        tuple[str, ...], Meta(description="such as `FT`, `MiB[kd=10|100]+SDR`, `DKD[train.lr=0.001]`")
    ] = ()
    seeds: Annotated[tuple[Seed, ...], Meta(min_length=1, description="one run for each")] = (0,)
    protocol: Annotated[str, Meta(description="what a number means: `sdr`, `mib`, `plop`, `strict`")] = "sdr"
    plugins: Annotated[tuple[str, ...], Meta(description="files or modules with methods or data sets of your own")] = ()
    data: Annotated[dict[str, str], Meta(description='where each data set lies: `voc = "/data/VOC2012"`')] = field(
        default_factory=dict
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    run: RunConfig = field(default_factory=RunConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    tuned: TunedConfig = field(default_factory=TunedConfig)


SECTIONS = {
    "model": ModelConfig,
    "train": TrainConfig,
    "eval": EvalConfig,
    "run": RunConfig,
    "launch": LaunchConfig,
    "tuned": TunedConfig,
}


def read_config(path: Path | None, overrides: Iterable[str] = (), **chosen: Any) -> Config:
    """The configuration of a TOML file, changed by ``--set section.key=value`` items and by command-line options.

    ``chosen`` replaces top-level fields where a value is not ``None``. Raises ``UserError`` in one line.
    """
    table, items = _load(path) if path else {}, [*overrides]
    sweeps = _sweeps(table, items)
    config: Config = read_section(Config, "", table, str(path) if path else "")
    for item in items:
        config = override(config, item)
    config = replace(config, **{k: v for k, v in chosen.items() if v is not None})
    return checked(replace(config, methods=tuple(_swept(text, sweeps) for text in config.methods)))


def _sweeps(table: dict[str, Any], items: list[str]) -> dict[str, str]:
    """Remove the sweeps of ``[train]`` from a TOML table and from the items of ``--set``; returns their texts by key.

    Methods that are tables become texts.
    """
    found: dict[str, str] = {}
    methods, train = table.get("methods"), table.get("train")
    if isinstance(methods, list):
        table["methods"] = [method_text(m) if isinstance(m, dict) else m for m in methods]
    if isinstance(train, dict):
        for key in [k for k, v in train.items() if isinstance(v, str) and "|" in v]:
            found[key] = train.pop(key)
    for item in [i for i in items if i.strip().startswith("train.") and "|" in i]:
        items.remove(item)
        key, equals, text = (piece.strip() for piece in item.partition("="))
        if not equals:
            raise UserError(f"--set {item!r}: write section.key=value, for example train.epochs=1")
        found[key.removeprefix("train.")] = text
    return found


def _swept(text: str, sweeps: dict[str, str]) -> str:
    """A method with these sweeps in its recipe; its own values win."""
    lists = {key: "|".join(f"({v})" if "," in v and "(" not in v else v for v in values.split("|"))
             for key, values in sweeps.items()}  # fmt: skip
    return with_recipe(text, {**lists, **recipe(text)}) if sweeps else text


def checked(config: Config) -> Config:
    """The same configuration, after a check of every value: its type, its range, and its fit with the others.

    Raises ``UserError``.
    """
    config = read_section(Config, "", identity(config))
    scale, tracker = config.train.scale, config.run.tracker
    if len(scale) == 1 or scale != tuple(sorted(scale)):
        shown = ",".join(f"{s:g}" for s in scale)
        raise UserError(f"train.scale must be empty or two ascending numbers such as 0.5,2, not {shown}")
    tuned = config.tuned
    if len(tuned.methods) != len(tuned.numbers) or (tuned.methods and not (tuned.on and tuned.trials)):
        raise UserError("[tuned] is not as `contseg tune` wrote it: it needs on, trials, and one of numbers a method")
    if tuned.on and tuned.on.partition(":")[0] not in {s.partition(":")[0] for s in SELECTIONS}:
        raise unknown("selection in tuned.on", tuned.on, SELECTIONS)
    if tracker != "none":
        need(tracker, f"run.tracker={tracker}")
    _check_jitter(config.train.jitter)
    if config.run.gradient_norms and config.run.compile:
        raise UserError("run.gradient_norms goes through a graph once a term, a compiled network once: leave one out")
    if config.train.layer_decay < 1:
        check_layers(config.model.backbone)
    return config


def _check_jitter(jitter: tuple[float, ...]) -> None:
    shown = ",".join(f"{s:g}" for s in jitter)
    if len(jitter) not in (0, 4):
        raise UserError(
            "train.jitter must be empty or four numbers, brightness, contrast, saturation, hue, such as "
            f"0.5,0.5,0.5,0, not {shown}"
        )
    if jitter and jitter[3] > 0.5:
        raise UserError(f"train.jitter={shown}: the last number, of the hue, must be <= 0.5 (half the circle of hues)")


def identity(config: Any) -> dict[str, Any]:
    """A configuration section as plain values, for records and keys, without an ``added_field`` at its default."""
    return {
        f.name: identity(v) if is_dataclass(v := getattr(config, f.name)) else list(v) if isinstance(v, tuple) else v
        for f in fields(config)
        if not left_out(config, f)
    }


def read_section(kind: type[Any], name: str, table: Any, where: str = "") -> Any:
    """A section from typed values by key, those of TOML or JSON; one value may stand for a list of one.

    Raises ``UserError``, which begins with ``where``, the name of a file.
    """
    prefix = f"{where}: " if where else ""
    if not isinstance(table, dict):
        raise UserError(f"{prefix}{name} must be a table, [{name}], not {table!r}")
    hints = _declared(kind)
    values = {}
    for key, value in table.items():
        if key not in hints:
            kind_of = f"key of [{name}]" if name else "configuration key"
            if not name and (section := _section_of(key)):
                raise UserError(f"{prefix}{key} is a key of [{section}]: write it below a line [{section}]")
            raise unknown(f"{kind_of} in {where}" if where else kind_of, key, hints)
        full = f"{name}.{key}" if name else key
        if key in SECTIONS and not name:
            values[key] = read_section(SECTIONS[key], key, value, where)
        else:
            values[key] = _value(value, hints[key], prefix + full)
    return kind(**values)


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is {'a folder' if path.is_dir() else 'no regular file'}, not a configuration")
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"no configuration file {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def override(config: Config, item: str) -> Config:
    """The configuration with one ``section.key=value``. Raises ``UserError``."""
    path, equals, text = item.partition("=")
    section, dot, key = path.strip().partition(".")
    if not equals or not section:
        raise UserError(f"--set {item!r}: write section.key=value, for example train.epochs=1")
    if not dot:
        owner = _section_of(section)
        known = f"top-level values have options of their own; known sections: {', '.join(sorted(SECTIONS))}"
        raise UserError(f"--set {item!r}: " + (f"write {owner}.{item.strip()}" if owner else known))
    if section not in SECTIONS:
        raise unknown("configuration section", section, SECTIONS)
    hints = _declared(SECTIONS[section])
    if key not in hints:
        raise unknown(f"key of [{section}]", key, hints)
    text = text.strip()
    value: Any = text
    with contextlib.suppress(ValueError):  # a text that is of another type is refused as such
        value = (value,) if plain(hints[key]) == tuple[str, ...] else coerce(value, hints[key])
    part = replace(getattr(config, section), **{key: _value(value, hints[key], f"{section}.{key}", text)})
    return replace(config, **{section: part})


def _declared(kind: type[Any]) -> dict[str, Any]:
    """The types of a section's keys."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {f.name: hints[f.name] for f in fields(kind)}


def _section_of(key: str) -> str | None:
    """The first section that has this key."""
    return next((name for name, kind in SECTIONS.items() if key in {f.name for f in fields(kind)}), None)


def _value(value: Any, annotation: Any, name: str, written: str | None = None) -> Any:
    several = typing.get_origin(plain(annotation)) is tuple and not isinstance(value, (list, tuple))
    return admit(name, [value] if several else value, annotation, written)
