"""A small network on its way through the steps, as the trainer leads it."""

import copy

import torch
from torch import Tensor, nn

from contseg.benchmark.models.load import grow, skeleton
from contseg.benchmark.models.segmenter import Segmenter
from contseg.benchmark.plan.model_config import ModelConfig
from contseg.datasets.scenario import Step
from contseg.methods.base import Batch, Method, SegOutput

TINY = ModelConfig("tiny", norm="batch")


def make_steps(*sizes: int, setup: str = "overlapped") -> tuple[Step, ...]:
    """Steps with so many foreground classes each."""
    ends = [sum(sizes[: t + 1]) for t in range(len(sizes))]
    return tuple(
        Step(t, setup, tuple(range(1, end - n + 1)), tuple(range(end - n + 1, end + 1)))
        for t, (n, end) in enumerate(zip(sizes, ends, strict=True))
    )


def taught(method: Method, *steps: Step) -> Segmenter:
    """The float64 network after these steps, with weights and statistics as if trained, in evaluation mode."""
    model = skeleton(TINY, steps, method, seed=0).double()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn(p.shape, generator=g, dtype=p.dtype)
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean += 0.3 * torch.randn(m.num_features, generator=g, dtype=torch.float64)
                m.running_var *= 0.5 + torch.rand(m.num_features, generator=g, dtype=torch.float64)
    return model.eval()


def student_of(old: Segmenter, method: Method, step: Step) -> Segmenter:
    """The network that starts ``step``, in evaluation mode."""
    model = copy.deepcopy(old)
    grow(model, step, method)
    method.init(model, step)
    return model.double().eval()


def make_images(n: int = 2, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def make_labels(step: Step, n: int = 2, height: int = 16, width: int = 24) -> torch.Tensor:
    """Blocks of background, void and the new classes (n, height, width)."""
    choices = torch.tensor([0, 255, *range(max(step.n_old, 1), step.n_classes)])
    drawn = torch.randint(len(choices), (n, height // 4, width // 4), generator=torch.Generator().manual_seed(3))
    return choices[drawn].repeat_interleave(4, 1).repeat_interleave(4, 2)


def make_batch(model: Segmenter, old: Segmenter | None, step: Step) -> Batch:
    images = make_images()
    with torch.no_grad():
        before: SegOutput | None = None if old is None else old(images)
    return Batch(images, make_labels(step), model(images), before, step)


def images(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def same(a: nn.Module, b: nn.Module) -> bool:
    a_state, b_state = a.state_dict(), b.state_dict()
    return a_state.keys() == b_state.keys() and all(torch.equal(a_state[k], b_state[k]) for k in a_state)
