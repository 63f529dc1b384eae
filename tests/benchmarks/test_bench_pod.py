"""Local POD over five maps like those of a ResNet, forward and backward, against a loop over windows.

Output stride 16 at 512 x 512: four stages and the embedding, 4 images. Both sides give the same number (asserted).
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from contseg.methods.plop import local_pod
from contseg.tests.benchmarks.ratios import Against, peak

pytest.importorskip("pytest_benchmark")

SHAPES = [(4, 256, 128, 128), (4, 512, 64, 64), (4, 1024, 32, 32), (4, 2048, 32, 32), (4, 256, 32, 32)]


@pytest.fixture(scope="module")
def maps() -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(s, generator=g), torch.randn(s, generator=g).requires_grad_()) for s in SHAPES]


def by_window(old: Tensor, new: Tensor) -> Tensor:
    """As the release goes about it: every window of both squared maps, its rows, its columns, all in one vector."""
    n = new.shape[-1]
    embeddings = []
    for x in (old.square(), new.square()):
        parts = []
        for side in (n, n // 2, n // 4):
            for i in range(0, n, side):
                for j in range(0, n, side):
                    window = x[..., i : i + side, j : j + side]
                    parts += [window.mean(-1).flatten(1), window.mean(-2).flatten(1)]
        embeddings.append(torch.cat(parts, 1))
    return (embeddings[0] - embeddings[1]).norm(dim=1)


def test_pod_forward_and_backward(against: Against, maps: list[tuple[Tensor, Tensor]]) -> None:
    def run(distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        for _, new in maps:
            new.grad = None
        total = torch.stack([distance(old, new).mean() for old, new in maps]).sum()
        total.backward()
        return total.detach()

    inputs = sum(old.nbytes + new.nbytes for old, new in maps)
    gradients = sum(new.nbytes for _, new in maps)
    memory = (inputs + peak(lambda: run(local_pod))) / (inputs + gradients)
    remark = f"memory {memory:.2f} of 1.5"
    value = against("POD", lambda: run(local_pod), lambda: run(by_window), "10", remark=remark)
    expected = torch.stack([by_window(old, new).mean() for old, new in maps]).sum().detach()
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
