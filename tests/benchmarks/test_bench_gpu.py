"""The suite's recipe on a GPU against the literature's: ResNet-101, output stride 16, 24 images of 512x512.

Samples a second of forward, cross entropy, backward and optimiser on a resident batch; peak memory; the share of what a
large bf16 matrix product reaches in the same run. The literature's: float32, NCHW, eager; with TF32 off, with TF32 on
for convolutions (cuDNN's default), and with plain bf16 autocast.
"""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from contseg.benchmark.models.segmenter import build_model
from contseg.benchmark.plan.model_config import ModelConfig
from contseg.tests.benchmarks.ratios import ROWS, Row

pytest.importorskip("pytest_benchmark")
pytestmark = pytest.mark.gpu

BATCH, SIZE, CLASSES = 24, 512, 21
# name: channels last, bf16, fused optimiser, compile, TF32
RECIPES = {
    "float32": (False, False, False, False, False),
    "float32, TF32": (False, False, False, False, True),
    "autocast": (False, True, False, False, True),
    "suite": (True, True, True, False, True),
    "suite, compile": (True, True, True, True, True),
}


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    before = torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32 = before


def resnet101() -> Any:
    """The literature's network, ready to train."""
    return build_model(ModelConfig("resnet101", weights="none", norm="batch"), [CLASSES]).train()


@functools.cache
def flops() -> float:
    """Of one image, forward and backward, counted without computing."""
    with FlopCounterMode(display=False) as counted:
        resnet101().to("meta")(torch.empty(2, 3, SIZE, SIZE, device="meta")).logits.sum().backward()
    return counted.get_total_flops() / 2


def updates(recipe: str, batch: int = BATCH) -> Callable[[int], None]:
    """A function that makes so many updates and waits for the last."""
    last, half, fused, compiled, torch.backends.cudnn.allow_tf32 = RECIPES[recipe]
    layout = torch.channels_last if last else torch.contiguous_format
    model = resnet101().to("cuda", memory_format=layout)
    optimiser = torch.optim.SGD(model.parameters(), 0.01, 0.9, nesterov=True, weight_decay=1e-4, fused=fused or None)
    images = torch.randn(batch, 3, SIZE, SIZE, device="cuda").contiguous(memory_format=layout)
    labels = torch.randint(0, CLASSES, (batch, SIZE, SIZE), device="cuda")
    network: Any = torch.compile(model) if compiled else model

    def run(n: int) -> None:
        for _ in range(n):
            with torch.autocast("cuda", torch.bfloat16, enabled=half):
                logits = network(images).logits
            logits = F.interpolate(logits.float(), size=(SIZE, SIZE), mode="bilinear", align_corners=False)
            F.cross_entropy(logits, labels).backward()
            optimiser.step()
            optimiser.zero_grad()
        torch.cuda.synchronize()

    return run


def matrix_peak() -> float:
    """FLOP/s of a large bf16 product."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        a @ a
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(20):
        a @ a
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - began)


SPEED: dict[str, float] = {}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe(benchmark: Any, recipe: str) -> None:
    """Target: the suite's 2.5 times float32's samples a second."""
    run = updates(recipe)
    run(3)
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    benchmark.pedantic(run, args=(10,), rounds=3)
    SPEED[recipe] = speed = 30 * BATCH / (time.perf_counter() - began)
    memory = torch.cuda.max_memory_allocated() / 2**30
    share = flops() * speed / matrix_peak()
    ratio, target = speed / SPEED.get("float32", speed), "2.5" if recipe.startswith("suite") else ""
    benchmark.extra_info |= {"samples/s": speed, "peak GiB": memory, "share of matrix peak": share, "ratio": ratio}
    remark = f"{memory:.1f} GiB, {share:.0%} of the matrix peak"
    ROWS.append(Row(f"GPU: {recipe}", f"{speed:.0f} samples/s", "float32", f"{ratio:.2f}", target, remark))


def test_largest_batch(benchmark: Any) -> None:
    """Doubled until memory is full."""
    found = BATCH
    while True:
        try:
            updates("suite", 2 * found)(1)
        except torch.cuda.OutOfMemoryError:
            break
        found *= 2
    torch.cuda.empty_cache()
    benchmark.pedantic(lambda: None)
    ROWS.append(Row("GPU: a batch that fits", str(found), "", "", "24"))
