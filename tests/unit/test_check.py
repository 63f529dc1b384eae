"""The contract check catches what it says it catches: one deliberately broken method a rule."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contseg.benchmark.contract import check, rules
from contseg.benchmark.contract.check import assert_contract, check_method
from contseg.benchmark.contract.rules import Broken
from contseg.benchmark.contract.toy_run import ToyRun, ToyStep
from contseg.datasets.scenario import VOID, Scenario, Step
from contseg.methods.base import Batch, CrossEntropy, Method, Progress, SegOutput, StepContext, Term
from contseg.methods.lwf import Distillation

ROOT = Path(__file__).resolve().parents[2]


def with_term(term: Callable[[], Term], **hooks: Any) -> Callable[[], Method]:
    """Builds LwF with one more term at every step."""

    def build() -> Method:
        extra = term()
        first = {"ce": CrossEntropy(), "extra": extra}
        return Method("Broken", {"ce": CrossEntropy(), "kd": Distillation(weight=10), "extra": extra}, first, **hooks)

    return build


def with_loss(value: Callable[[Batch], Tensor], **hooks: Any) -> Callable[[], Method]:
    """Builds LwF with one more loss at every step."""

    @dataclass(eq=False)
    class Loss(Term):
        def __call__(self, batch: Batch) -> Tensor:
            return value(batch)

    return with_term(Loss, **hooks)


def unseeded(ctx: StepContext) -> None:
    """A warm-up with another random number each time."""
    with torch.no_grad():
        ctx.model.classifier.blocks[-1].bias += random.random()


def mean_of_new(batch: Batch) -> Tensor:
    """Mean logit of the new classes, nothing done where a step brings none."""
    return batch.logits[:, batch.step.n_old :].mean()


def of_class(batch: Batch, channel: int) -> Tensor:
    """Mean feature over the positions of one class, nothing done where there is none."""
    mask = (batch.feature_labels == channel)[:, None]
    return (batch.features * mask).sum() / mask.sum()


def write_to_labels(batch: Batch) -> Tensor:
    batch.labels[0, 0, 0] = VOID
    return CrossEntropy()(batch)


def one_per_class(batch: Batch) -> Tensor:
    return batch.logits.mean((0, 2, 3))[batch.step.n_old :].var()  # NaN for one


def square(batch: Batch) -> Tensor:
    side = int(batch.features[0, 0].numel() ** 0.5)
    return batch.features.reshape(len(batch.labels), -1, side, side).mean()


def through_numpy(batch: Batch) -> Tensor:
    return batch.features.mean() * float(batch.out.features.detach().numpy().max())


def inverse_sums(batch: Batch) -> Tensor:
    sums = batch.features.sum(1) / batch.features.detach().amax()
    return torch.where(sums > 1e-4, 1 / sums.clamp(min=1e-4), 0).mean()


def by_value(batch: Batch) -> Tensor:
    return batch.features.mean() * batch.features.detach().mean().item()


def by_mask(batch: Batch) -> Tensor:
    return F.relu(batch.logits.permute(0, 2, 3, 1)[batch.valid]).sum() / batch.n_valid


def labelled_mean(batch: Batch) -> Tensor:
    chosen = batch.labels.clamp(max=batch.step.n_classes - 1)
    mask = (batch.labels > 0) & batch.valid
    return (F.cross_entropy(batch.logits, chosen, reduction="none") * mask).sum() / mask.sum()


def local_mean(batch: Batch) -> Tensor:
    return F.cross_entropy(batch.logits, batch.labels, ignore_index=VOID)


class Waiting(torch.autograd.Function):
    """The identity, whose gradient waits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * float(gradient.isfinite().all())


@dataclass(eq=False)
class Drift(Term):
    """Moves the previous model."""

    def begin_step(self, ctx: StepContext) -> None:
        self.old = ctx.old_model

    def after_backward(self, model: Any) -> None:
        if self.old is not None:
            with torch.no_grad():
                next(iter(self.old.parameters())).add_(1e-3)


@dataclass(eq=False)
class Nudge(Term):
    """Moves the previous model before the first update."""

    def begin_step(self, ctx: StepContext) -> None:
        if ctx.old_model is not None:
            with torch.no_grad():
                next(iter(ctx.old_model.parameters())).add_(1e-3)


@dataclass(eq=False)
class Mean(Term):
    """Observes a mean feature."""

    observes = True
    state = ("mean",)
    mean: Tensor | None = field(default=None, init=False)

    def __call__(self, batch: Batch) -> None:
        self.mean = batch.reduce(batch.features.detach().sum()) / batch.n_pixels


@dataclass(eq=False)
class ToMean(Term):
    """A loss that reads what an observer keeps."""

    mean: Mean = field(default_factory=Mean)

    def __call__(self, batch: Batch) -> Tensor:
        assert self.mean.mean is not None
        return batch.reduce((batch.features - self.mean.mean).square().sum()) / batch.n_pixels


@dataclass(eq=False)
class Counter(Term):
    """Its loss depends on how often it was asked."""

    keeps: bool = False
    asked: Tensor = field(default_factory=lambda: torch.zeros(()), init=False)

    def __call__(self, batch: Batch) -> Tensor:
        self.asked = self.asked + 1
        return batch.reduce(batch.features.square().sum()) / batch.n_pixels * self.asked


@dataclass(eq=False)
class Forgetful(Counter):
    """Declares its state and does not take it back."""

    state = ("asked",)

    def load_state_dict(self, flat: dict[str, Tensor]) -> None:
        pass


@dataclass(eq=False)
class Drawing(Term):
    """An observer that draws from the generator of all."""

    observes = True

    def __call__(self, batch: Batch) -> None:
        torch.rand(1)


@dataclass(eq=False)
class Meddling(Term):
    """An observer that touches gradients."""

    observes = True

    def after_backward(self, model: Any) -> None:
        for p in model.parameters():
            if p.grad is not None:
                p.grad.mul_(0.5)


def unused_head(model: Any, step: Step) -> None:
    """A layer that nothing reads."""
    model.unused = nn.Linear(2, 2)


def one_too_many(out: SegOutput, size: tuple[int, int]) -> Tensor:
    """A class that does not exist."""
    return torch.full((len(out.logits), *size), out.logits.shape[1])


def at_low_resolution(out: SegOutput, size: tuple[int, int]) -> Tensor:
    """A class map of the wrong size."""
    return out.logits.argmax(1)


def with_foresight() -> Method:
    """Learns from the scenario how many classes will come, and uses it in every step."""
    seen: list[int] = []

    @dataclass(eq=False)
    class Knows(Term):
        def __call__(self, batch: Batch) -> Tensor:
            return batch.reduce(batch.features.square().sum()) / batch.n_pixels * sum(seen)

    def note(scenario: Scenario) -> Scenario:
        seen[:] = [len(group) for group in scenario.groups]
        return scenario

    return Method("Broken", {"ce": CrossEntropy(), "knows": Knows()}, scenario=note)


def nothing() -> Method:
    """A preset that silently does nothing."""
    return Method("Nothing", terms={"ce": CrossEntropy()})


CASES: list[tuple[str, Callable[[], Method], str]] = [
    ("losses_are_finite", with_loss(lambda b: b.logits.mean() * float("nan")), "'extra' is nan at update 0"),
    ("losses_are_finite", with_term(CrossEntropy, predict=one_too_many), "class 3 of 3"),
    ("losses_are_finite", with_term(CrossEntropy, predict=at_low_resolution), "not a class map"),
    ("one_class", with_loss(one_per_class), "'extra' is nan"),
    ("absent_class", with_loss(lambda b: of_class(b, b.step.n_classes - 1)), "'extra' is nan"),
    ("only_background", with_loss(labelled_mean), "'extra' is nan"),
    ("rectangular", with_loss(square), "shape"),
    ("bfloat16", with_loss(through_numpy), "BFloat16"),
    ("bfloat16", with_loss(lambda b: b.out.logits.square().mean()), "cast what you read"),
    ("signed_features", with_loss(inverse_sums), "the gradient of 'extra' reaches"),
    ("gradients_arrive", with_term(CrossEntropy, build=unused_head), "unused.weight (2 in all)"),
    ("old_model_stays", with_term(Drift), "changed in an update"),
    ("old_model_stays", with_term(Nudge), "changed in begin_step"),
    ("nothing_is_written_to", with_loss(write_to_labels), "labels was written to at step 0"),
    ("terms_matter", with_loss(lambda b: b.logits.detach().mean()), "'extra'"),
    ("terms_do_not_wait", with_loss(by_value), "reading a value"),
    ("terms_do_not_wait", with_loss(by_mask), "an index of booleans at step 0 (test_check.py, line"),
    ("terms_do_not_wait", with_loss(lambda b: b.features.mean() * torch.tensor(2.0)), "torch.tensor"),
    ("terms_do_not_wait", with_loss(lambda b: Waiting.apply(b.logits).mean()), "reading a value"),
    ("differs_from_fine_tuning", nothing, "plain fine-tuning"),
    ("observers_only_observe", with_term(Drawing), "random numbers"),
    ("observers_only_observe", with_term(Meddling), "encoder"),
    ("state_survives", with_term(Forgetful), "extra:asked"),
    ("interruption_is_harmless", with_term(Counter), "differs at step 0"),
    ("interruption_is_harmless", with_term(CrossEntropy, warm_up=(unseeded,)), "by torch, and those of `build`"),
    ("future_is_unseen", with_foresight, "at step 1"),
    ("processes_agree", with_loss(local_mean), "loss 'extra'"),
    ("domains_work", with_loss(mean_of_new, domains=True), "'extra' is nan"),
    ("keys_see_all", with_loss(local_mean), "with_loss.<locals>.Loss (test_check.py, line"),
]


@pytest.mark.filterwarnings("ignore:var")  # of one value
@pytest.mark.parametrize(("rule", "build", "reason"), CASES, ids=[f"{c[0]}-{k}" for k, c in enumerate(CASES)])
def test_each_rule_catches_what_breaks_it(rule: str, build: Callable[[], Method], reason: str) -> None:
    with pytest.raises((Broken, RuntimeError, TypeError)) as caught:
        getattr(rules, rule)(build)
    assert reason in str(caught.value)


def test_every_rule_has_a_method_that_breaks_it() -> None:
    assert {rule.__name__ for rule in check.RULES} == {case[0] for case in CASES}


def test_the_report_names_method_rule_and_reason_in_one_line() -> None:
    report = check_method(with_loss(lambda b: b.logits.mean() * float("nan")))
    assert not report.passed
    assert str(report) == (
        "Broken breaks rule 1, Losses are finite in every setup, and predictions are seen classes: "
        "'extra' is nan at update 0 of sequential step 0"
    )


def test_a_crash_names_the_authors_line_not_torchs() -> None:
    def torchs(batch: Batch) -> Tensor:
        return F.cross_entropy(batch.logits, batch.labels[0])

    def ours(batch: Batch) -> Tensor:
        return batch.old.logits.mean()

    for loss, error in ((torchs, "ValueError:"), (ours, "RuntimeError: no previous model")):
        report = check_method(with_loss(loss))
        assert report.reason.startswith(error)
        assert report.reason.endswith(f"(test_check.py, line {loss.__code__.co_firstlineno + 1})")
        assert "\n" not in str(report)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (lambda b: b.logits.mean((1, 2, 3)), "gives a tensor of shape (4,): a loss is a scalar"),
        (lambda b: b.logits.mean().item(), "gives a float: give the scalar tensor itself"),
    ],
)
def test_what_is_no_loss_is_named_with_its_term(value: Callable[[Batch], Tensor], said: str) -> None:
    reason = check_method(with_loss(value)).reason
    assert reason.startswith("Broken: 'extra' ") and said in reason and "(test_check.py, line" in reason


def test_an_observer_with_a_value_is_refused() -> None:
    @dataclass(eq=False)
    class Says(Term):
        observes = True

        def __call__(self, batch: Batch) -> Tensor:
            return batch.logits.mean()

    assert "'extra' only observes" in check_method(with_term(Says)).reason


def test_a_loss_of_step_0_may_read_an_observer() -> None:
    def build() -> Method:
        loss = ToMean()
        terms = {"ce": CrossEntropy(), "mean": loss.mean, "loss": loss}
        return Method("Mine", terms=terms, first=dict(terms))

    assert str(check_method(build)) == f"Mine: all {len(check.RULES)} rules hold"


def test_helper_for_third_parties_passes_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "RULES", (rules.old_model_stays, rules.differs_from_fine_tuning))
    assert_contract("LwF")
    with pytest.raises(AssertionError, match="Nothing breaks rule 2"):
        assert_contract(nothing)


def test_the_check_leaves_no_trace_in_the_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "RULES", (rules.old_model_stays,))
    before = torch.get_rng_state()
    check_method("LwF")
    assert torch.equal(before, torch.get_rng_state())


def test_fine_tuning_by_its_own_name_may_be_fine_tuning() -> None:
    rules.differs_from_fine_tuning(lambda: Method("FT", terms={"ce": CrossEntropy()}))


def test_a_term_of_weight_zero_is_the_users_wish() -> None:
    rules.terms_matter(lambda: Method("LwF[kd=0]", {"ce": CrossEntropy(), "kd": Distillation(weight=0)}))


def test_a_loss_of_old_classes_may_need_labels_that_name_them() -> None:
    """As matching with a previous network that predicts none of them: in the overlapped setup no label does."""

    def of_old_classes(b: Batch) -> Tensor:
        return (b.logits.square().mean(1) * ((b.labels > 0) & (b.labels < b.step.n_old))).mean()

    rules.terms_matter(with_loss(of_old_classes))


def test_a_term_that_does_not_split_is_not_asked_to() -> None:
    @dataclass(eq=False)
    class Pairs(Term):
        splits = False

        def __call__(self, batch: Batch) -> Tensor:
            return local_mean(batch)

    rules.processes_agree(with_term(Pairs))


def test_a_term_knows_where_it_is_also_after_an_interruption() -> None:
    heard: list[Progress] = []

    def note(batch: Batch) -> Tensor:
        heard.append(batch.progress)
        return batch.progress.update * batch.logits.mean()

    build = with_loss(note)
    saved = ToyStep.begin(ToyRun(), build, 0).updates(range(3)).save()
    ToyStep.begin(ToyRun(), build, 0).resume(saved).updates(range(3, 6))
    assert heard == [Progress(update, 6, float(update)) for update in range(6)]
    rules.interruption_is_harmless(build)
    rules.processes_agree(build)
