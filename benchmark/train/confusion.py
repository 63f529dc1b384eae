"""The confusion matrix of a batch, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from contseg.datasets.scenario import VOID


def confusion(labels: Tensor, prediction: Tensor, n_rows: int, n_cols: int) -> Tensor:
    """Counts of (label, prediction): (n_rows, n_cols) int64.

    ``labels`` (..., H, W) holds the data set's labels 0..n_rows-2 and 255; void is counted in the last row.
    ``prediction`` (..., H, W) holds channels 0..n_cols-1. Labels must be in range: the data set checks them
    (``SegmentationDataset.presence``).
    """
    return count_pairs(void_last(labels, n_rows - 1), prediction, n_rows, n_cols)


def void_last(labels: Tensor, n_labels: int) -> Tensor:
    """Labels 0..n_labels-1 and 255 as rows of a matrix, int64: void becomes ``n_labels``."""
    return torch.where(labels == VOID, n_labels, labels.long())


def count_pairs(rows: Tensor, cols: Tensor, n_rows: int, n_cols: int) -> Tensor:
    """How often each (row, column) occurs: (n_rows, n_cols) int64. ``rows``, ``cols``: integers of one shape."""
    pairs = rows * n_cols + cols.long()
    return torch.bincount(pairs.flatten(), minlength=n_rows * n_cols).reshape(n_rows, n_cols)
