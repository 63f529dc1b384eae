"""What a method stores of earlier steps. The plan chooses the images from data alone (``datasets.memory``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Policy: TypeAlias = Literal["round", "greedy"]
Labels: TypeAlias = Literal["own", "all", "current"]
Mix: TypeAlias = Literal["half", "append"]


@dataclass(frozen=True)
class Memory:
    """Images of earlier steps that are shown again from step 1 on.

    ``size``: how many. ``policy``: who is chosen, F-MEM-ROUND or F-MEM-GREEDY. ``labels``: which labels they carry, of
    the step in which they were training data, of all classes seen, or of the current step (F-MEM-LABEL). ``mix``: half
    of each batch is stored images, or they are appended to the step's images and shown as often. ``apart``: the terms
    see no label of a stored image (255 in ``Batch.labels``); a term of the memory's own reads ``Batch.stored_labels``.
    """

    size: int = 100
    policy: Policy = "round"
    labels: Labels = "own"
    mix: Mix = "half"
    apart: bool = False

    @property
    def external(self) -> tuple[str, ...]:
        """What a row knows besides its steps' images: ``mem=100``. Only rows of equal codes are ranked together."""
        return (f"mem={self.size}",)

    @property
    def shown(self) -> dict[str, object]:
        """How stored images enter a batch; which images, and with which labels, a step's view says."""
        return {"mix": self.mix, "apart": self.apart}

    def slots(self, batch: int) -> int:
        """How many images of a batch are reserved for stored ones; 0 where they are appended to the step's images."""
        return batch // 2 if self.mix == "half" else 0
