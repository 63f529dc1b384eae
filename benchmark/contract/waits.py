"""Detect on a CPU what would wait for a GPU: reading a value, and every result whose shape depends on values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READS = {  # on a CPU they bypass the dispatcher
    Tensor.tolist: "tolist()",
    Tensor.numpy: "numpy()",
}
WAITS = {
    "_local_scalar_dense": "reading a value (.item(), float(), `if tensor`)",
    "nonzero": "nonzero()",
    "masked_select": "masked_select()",
    "_unique2": "unique()",
    "unique_dim": "unique()",
    "unique_consecutive": "unique_consecutive()",
    "lift_fresh": "a tensor of Python's numbers (torch.tensor), which is copied to the device",
}


class WaitError(Exception):
    """An operation waits for the device; the traceback shows which."""


class _Reads(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS:
            raise WaitError(READS[func])
        return func(*args, **(kwargs or {}))


class _Waits(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITS:
            raise WaitError(WAITS[name])
        if name == "index" and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            raise WaitError("an index of booleans")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waits() -> Iterator[None]:
    """Raise ``WaitError`` for every operation in the block that would wait for a GPU."""
    with _Reads(), _Waits():
        yield
