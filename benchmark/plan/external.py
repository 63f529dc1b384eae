"""External data of a row: what its weights and its method saw besides the task (codes: ``methods.external``)."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from contseg.benchmark.plan.model_config import ModelConfig, backbone_of, check, model_identity
from contseg.datasets.errors import UserError
from contseg.methods.external import external_of, ordered
from contseg.methods.registry import build_method

# words of a weights' name -> the code; timm's tags, torchvision's files, the releases' (iabn: MiB's ImageNet-1k file)
WORDS = {
    "in21k": r"in21k|in22k|in12k|21k|22k",
    "in1k": r"iabn|in1k|imagenet|imagenet1k|1k",
    "coco": r"coco",
    "fm": r"laion\w*|openai|clip|metaclip|dfn\w*|datacomp\w*|webli|siglip\w*|dinov?\d?|lvd\w+|sa1b|sam|merged\w+",
    "web": r"jft|ig1b|ig|swsl|ssl|yfcc\w*",
}
TORCHVISION = r"(resnet|resnext|efficientnet|mobilenet)[\w-]*-[0-9a-f]{8}\.pth"  # ImageNet-1k, by its own scheme


def weights_name(model: ModelConfig) -> str:
    """Which initial weights a network has: "" from scratch, else the name of their file, or timm's name and tag."""
    weights = check(model).weights
    if weights == "none":
        return ""
    if weights == "imagenet":
        return str(backbone_of(model.backbone).imagenet).removeprefix("timm/")
    if Path(weights).expanduser().is_file() and (same := model_identity(model)["weights"]).startswith("imagenet/"):
        return str(same).removeprefix("imagenet/").removeprefix("timm/")  # a copy of that very file
    return Path(weights).name


def network_codes(name: str) -> tuple[str, ...]:
    """The codes that the name of weights says; ``unknown`` if it says none, nothing from scratch.

    >>> network_codes("swin_large_patch4_window12_384.ms_in22k_ft_in1k")
    ('in21k',)
    """
    if not name:
        return ()
    words = re.split(r"[^a-z0-9]+", name.lower())
    found = {code for code, pattern in WORDS.items() if any(re.fullmatch(pattern, word) for word in words)}
    if not found and re.fullmatch(TORCHVISION, name):
        return ("in1k",)
    return ordered((found - {"in1k"} if "in21k" in found else found) or {"unknown"})  # 21k holds the images of 1k


def codes(model: ModelConfig, method: str) -> tuple[str, ...]:
    """The codes of a row: those of its network's weights and of its method. Raises ``UserError``."""
    return ordered([*network_codes(weights_name(model)), *external_of(build_method(method))])


def recorded(record: dict[str, Any]) -> tuple[str, ...]:
    """The codes of a record; of one from before they were recorded, what its configuration says."""
    if record.get("external") is not None:
        return tuple(record["external"])
    return _derived(json.dumps(record["config"].get("model", {}), sort_keys=True), record["method"])


@lru_cache
def _derived(model: str, method: str) -> tuple[str, ...]:
    known = recorded_model(json.loads(model))
    network = ("unknown",) if known is None else network_codes(weights_name(known))
    try:
        return ordered([*network, *external_of(build_method(method))])
    except UserError:  # a plugin's method, whose code is not loaded
        return ordered([*network, "unknown"])


def recorded_model(model: dict[str, Any]) -> ModelConfig | None:
    """The network of a record, every "auto" spelled out; ``None`` if it cannot be told here (timm is missing)."""
    given = {k: v for k, v in model.items() if k in ModelConfig.__dataclass_fields__}
    try:
        return check(ModelConfig(**given)) if "backbone" in given else None
    except (UserError, ImportError):
        return None
