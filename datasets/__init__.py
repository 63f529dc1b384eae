"""What each step gets to see: data sets, scenarios, label tables, transforms.

This package has the name of Hugging Face's ``datasets``. Where that one is installed beside this project,
Accelerate and others run ``from datasets import IterableDataset``; the two names they ask for are
torch's, and are handed out lazily so that ``import datasets.scenario`` costs no import of torch.
"""

from typing import Any

__all__ = ["Dataset", "IterableDataset"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        import torch.utils.data

        return getattr(torch.utils.data, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
