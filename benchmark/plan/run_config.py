"""How and where the work is done, the configuration's ``run`` and ``launch``: in no key. No torch here.

A field's declaration is its type, range, default and meaning, as in ``plan.config``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from contseg.methods.ranges import Count, Number, Positive


@dataclass(frozen=True)
class RunConfig:
    """How the work is done. Last digits may change by `compile`, `eval_batch` and, on a GPU, `deterministic`."""

    workers: Annotated[
        int,
        Meta(
            ge=-1,
            le=128,
            description="loader processes of each training process; -1: its cores on a GPU, else none",
        ),
    ] = -1
    keep_decoded: Annotated[bool, Meta(description="hold decoded images in memory")] = False
    eval_batch: Annotated[Count, Meta(description="test images that are scored at once")] = 8
    checkpoint_minutes: Annotated[Positive, Meta(description="time between two checkpoints of a step")] = 10.0
    checkpoint_updates: Annotated[
        Number, Meta(description="a checkpoint also every so many updates; 0: by the clock only")
    ] = 0
    tracker: Annotated[
        Literal[
            "none", "tensorboard", "wandb", "trackio", "aim", "comet_ml", "mlflow", "clearml", "dvclive", "swanlab"
        ],
        Meta(
            description="where losses, and mIoU after every step, are logged: a tracker of Accelerate; "
            "its package has to be installed"
        ),
    ] = "none"
    gradient_norms: Annotated[
        Number,
        Meta(description="updates of a step, evenly spaced, whose gradient is measured for every loss term; 0: none"),
    ] = 0
    compile: Annotated[bool, Meta(description="torch.compile the network")] = False
    deterministic: Annotated[
        bool, Meta(description="on a GPU: deterministic algorithms, no TF32, no fused attention")
    ] = False


@dataclass(frozen=True)
class LaunchConfig:
    """Where steps run (`--launcher`). Nothing here is identity; processes change a number in its last digits."""

    workers: Annotated[
        int, Meta(ge=0, le=128, description="local: processes side by side; 0: one for each GPU, or two on a CPU")
    ] = 0
    processes: Annotated[Count, Meta(description="slurm: processes (GPUs) of a step on each node")] = 1
    nodes: Annotated[Count, Meta(description="slurm: nodes of a step")] = 1
    cpus: Annotated[Count, Meta(description="slurm: cores of a process")] = 4
    partition: Annotated[str, Meta(description="slurm: partition; empty: the cluster's default")] = ""
    account: Annotated[str, Meta(description="slurm: account; empty: the cluster's default")] = ""
    minutes: Annotated[
        Count, Meta(description="slurm: time limit of a job; an unfinished job is requeued and resumes")
    ] = 240
    memory: Annotated[str, Meta(description="slurm: memory of a node, for example 64GB")] = ""
    gpus: Annotated[bool, Meta(description="slurm: one GPU for each process")] = True
    signal_seconds: Annotated[
        Number,
        Meta(description="slurm: time for the checkpoint before the limit; 0: a tenth of it, at most 10 minutes"),
    ] = 0
    options: Annotated[
        tuple[str, ...], Meta(description='slurm: further options of sbatch, for example "constraint=a100"')
    ] = ()
