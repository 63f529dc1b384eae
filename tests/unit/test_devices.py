"""What only a GPU would refuse or compute otherwise, checked without one: layouts for NCCL, sums in one order."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from contseg.benchmark.plan.config import read_config
from contseg.benchmark.train import distributed, runner
from contseg.datasets.scenario import VOID
from contseg.methods.alife import ForegroundCrossEntropy
from contseg.methods.base import CrossEntropy, Term, alone
from contseg.methods.dft import ReservedCrossEntropy

# --- several GPUs --------------------------------------------------------------------------------------------------


@pytest.fixture
def nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that hold the same; like NCCL's their sum refuses a tensor whose layout is not the usual one."""

    def all_reduce(x: Tensor, op: Any = dist.ReduceOp.SUM) -> None:
        if not x.is_contiguous():
            raise ValueError("Tensors must be contiguous")
        if op == dist.ReduceOp.SUM:
            x.mul_(2)

    monkeypatch.setattr(distributed, "several", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)


def test_transposed_matrices_are_summed_over_processes(nccl: None) -> None:
    """``losses.class_sums`` is one. Its gradient may be another."""
    x = torch.arange(6.0).view(2, 3).requires_grad_()
    total = distributed.over_processes(x.T)
    assert torch.equal(total, 2 * x.T)
    (total.T @ torch.arange(3.0)[:, None]).sum().backward()
    torch.testing.assert_close(x.grad, 2 * torch.arange(3.0).expand(2, 3), rtol=0, atol=0)


def test_a_transposed_gradient_is_summed_over_processes(nccl: None) -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    total = distributed.over_processes(x)
    slope = torch.arange(6.0).view(3, 2).T
    assert not slope.is_contiguous()
    total.backward(slope)
    torch.testing.assert_close(x.grad, 2 * slope, rtol=0, atol=0)


def test_a_transposed_matrix_has_a_maximum_over_processes(nccl: None) -> None:
    x = torch.arange(6.0).view(2, 3).T
    assert torch.equal(distributed.over_processes.max(x), x)


# --- run.deterministic ---------------------------------------------------------------------------------------------

FUSED = ("enable_flash_sdp", "enable_mem_efficient_sdp", "enable_cudnn_sdp")


@pytest.mark.parametrize(("device", "off"), [("cuda", FUSED), ("cpu", ())])
def test_no_fused_attention_on_a_gpu(monkeypatch: pytest.MonkeyPatch, device: str, off: tuple[str, ...]) -> None:
    """Where torch is asked to warn only, their gradients have no order. The switches hold on a CPU too: not there."""
    said: dict[str, bool] = {}
    for name in FUSED:
        monkeypatch.setattr(torch.backends.cuda, name, lambda on, name=name: said.update({name: on}))
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *_, **__: None)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(runner, "Accelerator", lambda **_: SimpleNamespace(device=torch.device(device)))
    runner.make_accelerator(read_config(None, ("run.deterministic=true",)), Path())
    assert said == dict.fromkeys(off, False)
    said.clear()
    runner.make_accelerator(read_config(None), Path())
    assert not said


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


class Reductions(TorchDispatchMode):
    """How every cross entropy with labels is reduced: 0 not at all, 2 to a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ == "nll_loss2d_forward":
            self.found.append(args[3])
        return func(*args, **(kwargs or {}))


def value(term: Term, device: str) -> Any:
    labels = torch.arange(24, device=device).remainder(3).view(1, 4, 6)
    logits = torch.linspace(-2, 2, 72, device=device).sin().view(1, 3, 4, 6)
    out = SimpleNamespace(logits=logits, extra={"reserve": logits[:, :1]})
    valid = labels != VOID
    batch: Any = SimpleNamespace(
        labels=labels, logits=logits, out=out, valid=valid, n_valid=valid.sum(), n_pixels=24, reduce=alone
    )
    return term(batch)


@pytest.mark.parametrize("term", [CrossEntropy(), ForegroundCrossEntropy(), ReservedCrossEntropy()])
def test_a_gpu_does_not_sum_in_any_order(deterministic: None, term: Term) -> None:
    """Its cross entropy adds blocks of pixels atomically, with a warning alone: the same training, other last digits.
    The device is torch's fake one, which computes nothing."""
    fake = pytest.importorskip("torch._subclasses.fake_tensor")
    with fake.FakeTensorMode(), Reductions() as seen:
        assert value(term, "cuda").device.type == "cuda"
    assert seen.found == [0]


@pytest.mark.parametrize("term", [CrossEntropy(), ForegroundCrossEntropy(), ReservedCrossEntropy()])
def test_elsewhere_one_pass_sums(deterministic: None, term: Term) -> None:
    with Reductions() as seen:
        assert value(term, "cpu").isfinite()
    assert seen.found == [2]
