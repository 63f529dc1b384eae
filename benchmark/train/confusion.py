"""The confusion matrix of a batch, on any device: its rows, and the count.

Labels must be in range: the data set checks them (``SegmentationDataset.presence``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from contseg.datasets.scenario import VOID


def void_last(labels: Tensor, n_labels: int) -> Tensor:
    """Labels 0..n_labels-1 and 255 as rows of a matrix, int64: void becomes ``n_labels``."""
    return torch.where(labels == VOID, n_labels, labels.long())


def count_pairs(rows: Tensor, cols: Tensor, n_rows: int, n_cols: int) -> Tensor:
    """How often each (row, column) occurs: (n_rows, n_cols) int64. ``rows``, ``cols``: integers of one shape."""
    pairs = rows * n_cols + cols.long()
    return torch.bincount(pairs.flatten(), minlength=n_rows * n_cols).reshape(n_rows, n_cols)
