"""Initial weights of an encoder: torchvision's ImageNet files, or the user's own file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contseg.benchmark.plan.model_config import ModelConfig, check, local_weights
from contseg.datasets.errors import UserError

CLASSIFIERS = ("fc.", "classifier.")  # of the ImageNet networks; an encoder has none


def fetch_weights(config: ModelConfig) -> Path | None:
    """The file of initial weights, downloaded by torchvision's own mechanism if need be; ``None`` for "none".

    Raises ``UserError`` without a network: which file, where to put it, or how to go on without.
    """
    config = check(config)
    if config.weights != "imagenet":
        return local_weights(config)
    from torchvision.models import get_model_weights

    weights = get_model_weights(config.backbone)["IMAGENET1K_V1"]
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if not file.is_file():
        try:
            weights.get_state_dict(progress=True, check_hash=True)
        except (OSError, RuntimeError) as error:  # no network; a truncated or altered file
            raise UserError(
                f"no ImageNet weights for {config.backbone}: {weights.url} cannot be had ({_first_line(error)}). "
                f"Put that file at {file}, or pass it as model.weights=PATH, or train from scratch: model.weights=none"
            ) from error
    return file


def load_weights(encoder: nn.Module, file: Path) -> None:
    """Fill ``encoder`` from a state dict under torchvision's names (.pth or .safetensors), its classifier left out.

    Raises ``UserError`` for a file that cannot be read, or that belongs to another network.
    """
    state = {k: v for k, v in _read(file).items() if not k.startswith(CLASSIFIERS)}
    own = encoder.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own and not k.endswith("num_batches_tracked")]
    shapes = [k for k in own if k in state and own[k].shape != state[k].shape]
    for what, names in (("lacks", missing), ("has a foreign", unexpected), ("has another shape for", shapes)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"model.weights={file} is not for this backbone: it {what} {names[0]!r}{more}")
    encoder.load_state_dict(state, strict=False)


def _read(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle, zip and safetensors each have their own
        why = "it holds Python objects" if "Unsupported" in str(error) else "it is damaged"
        raise UserError(
            f"model.weights={file} cannot be read, {why}: it has to be a state dict of torch.save, or .safetensors"
        ) from error
    for name in ("state_dict", "model"):  # checkpoints often hold the weights under one of these
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"model.weights={file} holds no state dict (a mapping of names to tensors)")
    return {k.removeprefix("module."): v for k, v in state.items()}


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
