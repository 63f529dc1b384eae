"""The tracker of a program (`run.tracker`): where losses and mIoU are logged while a grid is trained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import MLflowTracker, WandBTracker

PROJECT = "contseg"
AXIS = "at"  # of every curve in W&B: the update of a loss, the step of a mIoU


class _WandB(WandBTracker):
    """W&B with an axis of its own: its global step must never fall, and ours begins again with every step."""

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        super().log({**values, AXIS: step}, **kwargs)


class _MLflow(MLflowTracker):
    """MLflow refuses names with the signs of `MiB[kd=10]+SDR`, and a training would end by that."""

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        super().log({re.sub(r"[^\w.\-:/ ]", "_", name): v for name, v in values.items()}, step, **kwargs)


OWN = {"wandb": _WandB, "mlflow": _MLflow}


def options(tracker: str, out: Path) -> dict[str, Any]:
    """What ``Accelerator`` has to know of a tracker; those that write files write them to ``out/<tracker>``."""
    if tracker == "none":
        return {}
    return {"log_with": OWN[tracker](PROJECT) if tracker in OWN else tracker, "project_dir": str(out / tracker)}


def start(accelerator: Accelerator) -> None:
    """Begin to log, once in a program; nothing without a tracker."""
    if not accelerator.trackers:
        accelerator.init_trackers(PROJECT)
        for tracker in accelerator.trackers:
            if isinstance(tracker, _WandB) and accelerator.is_main_process:
                tracker.run.define_metric(AXIS)
                tracker.run.define_metric("*", step_metric=AXIS)
