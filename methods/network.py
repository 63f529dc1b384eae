"""What a method may use of a network: its parts and its output. Shapes as in ``methods.base``."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn


class SegOutput(NamedTuple):
    """The output of a network: a tuple of tensors, as DDP and autocast need it.

    ``logits`` (B, C, h, w) at the network's resolution; ``features`` (B, D, h, w) the encoder's output, of either sign
    unless ``model.encoder.nonnegative``; ``embedding`` (B, E, h, w) the input of the 1x1 classifier, of either sign
    unless ``model.aspp.nonnegative``; ``stages`` four of the encoder's maps from fine to coarse, each
    (B, D_l, h_l, w_l), before their last activation unless ``model.encoder.activated``; ``extra`` what a method's
    ``build`` hook adds.
    """

    logits: Tensor
    features: Tensor
    embedding: Tensor
    stages: tuple[Tensor, ...] = ()
    extra: dict[str, Tensor] = {}  # noqa: RUF012  (a NamedTuple's default; never written to)


@runtime_checkable
class Classifier(Protocol):
    """A 1x1 classifier with one block for each step: ``blocks[t].weight`` (N_t, E, 1, 1), ``.bias`` (N_t,).

    ``seed``: the seed of its initial weights. A ``build`` hook may replace it by a module with ``blocks`` and ``grow``.
    """

    blocks: nn.ModuleList
    seed: int

    def grow(self, n: int) -> None: ...


@runtime_checkable
class SegModel(Protocol):
    """The parts of a network that a method may use: ``encoder``, ``aspp``, ``classifier`` and ``heads``.

    A ``build`` hook may add modules to ``heads``. Each reads the embedding; its output is ``SegOutput.extra[name]``.
    """

    encoder: nn.Module
    aspp: nn.Module
    classifier: nn.Module
    heads: nn.ModuleDict

    def __call__(self, images: Tensor) -> SegOutput: ...


class OnDemand:
    """A network that is made when it is first asked for, and kept as long as this object."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    @cached_property
    def model(self) -> Any:
        """The network."""
        return self._make()
