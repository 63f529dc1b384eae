"""One global batch and its split over 2 and 3 real processes (gloo) train the same, for every registered method.

float64, frozen normalisation, one update of step 0 and of step 1, from a student that
was moved away from its teacher: states after ``begin_step``, losses, gradients as DDP averages them (1e-9), states and
weights at the end of the step. So do two methods on networks of timm, in two processes. And evaluation counts every
image exactly once.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor

from contseg.benchmark.contract import toy_run
from contseg.benchmark.contract.check import carried
from contseg.benchmark.contract.toy_run import ImagesLabels, Parent, ToyRun, ToyStep
from contseg.benchmark.models.load import term_states
from contseg.benchmark.plan.model_config import ModelConfig, check
from contseg.benchmark.train.distributed import over_processes
from contseg.benchmark.train.evaluate import evaluate
from contseg.datasets.scenario import VOID, Step
from contseg.methods.base import Method, SegOutput, alone, argmax
from contseg.methods.registry import build_method, methods
from contseg.tests.forked import call_together

IMAGES = 6  # a batch that 2 and 3 processes can share
TINY = replace(toy_run.NETWORK, norm="frozen")
OF_TIMM = {  # with BatchNorm that activates; with LayerNorm
    "smallest": ("test_efficientnet", "test_mambaout", "test_vit"),
    "usual": ("tf_efficientnet_lite0", "swin_tiny_patch4_window7_224"),
}


@dataclass(frozen=True)
class Share(ToyRun):
    """What one process sees: every P-th image of each batch, as the trainer shares it out."""

    rank: int = 0
    world: int = 1

    def draw(self, step: Step, number: int) -> ImagesLabels:
        images, labels = super().draw(step, number)
        return images[self.rank :: self.world], labels[self.rank :: self.world]

    def stored(self) -> Tensor:
        return super().stored()[self.rank :: self.world]


def same(name: str, what: str, one: dict[str, Tensor], share: dict[str, Tensor]) -> None:
    assert one.keys() == share.keys(), (name, what)
    for key, value in one.items():
        scale = float(value.detach().double().nan_to_num().abs().max()) if value.numel() else 0.0
        near = 1e-6 if key.endswith("pos_embed") else 1e-9  # timm interpolates positions in float32
        assert torch.allclose(value, share[key], rtol=near, atol=near * scale + 1e-15, equal_nan=True), (
            name,
            what,
            key,
        )


def gradients(stage: ToyStep, split: bool) -> dict[str, Tensor]:
    """Of a batch; averaged over the processes as DDP does it, and handed to the terms."""
    batch = stage.batch(0)
    batch.reduce = over_processes if split else alone
    losses = stage.method.losses(batch)
    stage.model.zero_grad()
    torch.stack([*losses.values()]).sum().backward()
    trained = {n: p for n, p in stage.model.named_parameters() if p.requires_grad}
    for p in trained.values():
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        if split:
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()
    for observes in (True, False):
        for term in stage.terms.values():
            if term.observes is observes:
                term.after_backward(stage.model)
    found = {f"gradient of {n}": p.grad.clone() for n, p in trained.items()}
    found |= {f"loss {k!r}": v.detach() for k, v in losses.items()}
    stage.optimizer.step()
    return found


def one_step(name: str, method_toy_run: ToyRun, share: Share, index: int, parent: Parent | None) -> Parent:
    whole, part = (
        ToyStep(c, lambda: build_method(name), index, parent, moved=index > 0) for c in (method_toy_run, share)
    )
    whole.context = whole.context._replace(reduce=alone)  # the whole batch is in each process
    for stage in (whole, part):
        stage.start()
    where = f"step {index}"
    same(name, f"state after begin_step of {where}", term_states(whole.terms), term_states(part.terms))
    if whole.trains:
        same(name, where, gradients(whole, split=False), gradients(part, split=True))
    one, other = whole.end(), part.end()
    same(name, f"state after {where}", one.terms, other.terms)
    same(name, f"weights after {where}", one.model, other.model)
    return one


def every_method(names: list[str], network: ModelConfig = TINY) -> None:
    """In each process."""
    Accelerator(cpu=True)
    rank, world = dist.get_rank(), dist.get_world_size()
    toy_run.NETWORK = network
    whole = ToyRun(sizes=(2, 1), batch=IMAGES, dtype=torch.float64)
    share = Share(sizes=(2, 1), batch=IMAGES, dtype=torch.float64, rank=rank, world=world)
    for name in names:
        parent = None
        for step in whole.steps(build_method(name)):
            parent = one_step(name, whole, share, step.index, parent)
            print(name, step.index, flush=True)


def splits(method: Method) -> bool:
    return all(t.splits for t in (*method.terms.values(), *method.first.values()))


@pytest.mark.parametrize("processes", [2, 3])
def test_every_method_trains_in_several_processes_what_it_trains_in_one(processes: int, tmp_path: Path) -> None:
    names = [n for n in (*methods(), *carried()) if n != "FT+UCD"]  # its pairs are of one process
    assert all(splits(build_method(n)) for n in names) and not splits(build_method("FT+UCD"))
    call_together(processes, tmp_path / "log", every_method, names)


@pytest.mark.parametrize("size", ["smallest", pytest.param("usual", marks=pytest.mark.slow)])
def test_networks_of_timm_train_in_two_processes_what_they_train_in_one(size: str, tmp_path: Path) -> None:
    for name in OF_TIMM[size]:
        network = ModelConfig(f"timm:{name}", weights="none", norm="frozen")
        call_together(2, tmp_path / name, every_method, ["MiB+SDR", "PLOP"], check(network))


class Drawn:
    """13 images of two sizes with labels of 4 classes and void; the number of each image is its colour."""

    def __len__(self) -> int:
        return 13

    def __getitem__(self, i: int) -> ImagesLabels:
        height, width = ((4, 6), (5, 3))[i % 3 == 0]
        labels = torch.randint(5, (height, width), generator=torch.Generator().manual_seed(i))
        return torch.full((3, height, width), i, dtype=torch.uint8), torch.where(labels == 4, VOID, labels).byte()


class Guess(torch.nn.Module):
    """Predicts a class by the image's number."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> SegOutput:
        numbers = (images[:, 0] * 0.229 + 0.485).mul(255).round().long()
        logits = torch.nn.functional.one_hot(numbers % 3, 3).movedim(-1, 1).float()
        return SegOutput(logits, logits, logits, ())


def count_everything() -> None:
    """In each process: against counts by hand."""
    seen = torch.arange(13) % 2 == 0
    matrix = evaluate(
        Guess(), argmax, Drawn(), seen, n_labels=4, n_channels=3, device=Accelerator(cpu=True).device, batch=2
    )
    expected = torch.zeros(2, 5, 3, dtype=torch.int64)
    for i in range(13):
        for label in Drawn()[i][1].flatten().tolist():
            expected[int(not seen[i]), 4 if label == VOID else label, i % 3] += 1
    assert matrix == {"seen": expected[0].tolist(), "unseen": expected[1].tolist()}


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_evaluation_counts_every_image_once(processes: int, tmp_path: Path) -> None:
    call_together(processes, tmp_path / "log", count_everything)
