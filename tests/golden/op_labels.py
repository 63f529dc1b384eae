"""F-DOWN: labels at feature resolution."""

import numpy as np
import torch

from contseg.methods.base import shrink_labels
from contseg.tests.golden.harness import Fixture, operation


@operation("label_downsample")
def label_downsample(fixture: Fixture) -> None:
    for case in (k.removeprefix("in_labels_") for k in fixture.arrays if k.startswith("in_labels_")):
        labels = fixture.tensor(f"in_labels_{case}")
        size = fixture.arrays[f"released_down_{case}"].shape[-2:]
        fixture.check(f"released_down_{case}", shrink_labels(labels, size))
        differs = False
        for key, axis in (("rowindex", 0), ("colindex", 1)):
            n = labels.shape[1 + axis]  # a map of positions, shrunk as labels are
            where = torch.arange(n).reshape((1, n, 1) if axis == 0 else (1, 1, n)).expand(1, *labels.shape[1:])
            line = shrink_labels(where, size)[0].select(1 - axis, 0)
            fixture.check(f"released_{key}_{case}", line)
            exact = np.arange(size[axis]) * n // size[axis]
            differs |= bool((line.numpy() != exact).any())
        fixture.check(f"paper_differs_from_integer_floor_{case}", np.asarray(differs))
