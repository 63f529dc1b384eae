"""The faults that ``python -m contseg.tests.mutation`` plants, and the tests of each file. Literal text, no tests."""
# ruff: noqa: E501

from typing import NamedTuple


class Fault(NamedTuple):
    """``old``, which stands once in the file of that name, is replaced by ``new``."""

    file: str
    old: str
    new: str


# file -> names of its tests, without "test_"
TESTS = {
    "base.py": "defaults mib losses shared_steps",
    "batch.py": "losses mib sdr",
    "baselines.py": "baselines defaults",
    "cil.py": "sigmoid defaults",
    "dkd.py": "dkd defaults",
    "ewf.py": "ewf defaults",
    "ilt.py": "losses mib defaults",
    "importance.py": "importance defaults",
    "lwf.py": "losses mib defaults",
    "lwf_mc.py": "sigmoid defaults",
    "mib.py": "mib losses defaults",
    "plop.py": "plop defaults",
    "rcil.py": "rcil defaults",
    "reminder.py": "reminder defaults",
    "sdr.py": "sdr sparsity sdr_released losses defaults",
    "sdr_variants.py": "sdr_released sdr losses defaults",
    "ssul.py": "ssul defaults",
    "ucd.py": "ucd defaults",
    "confusion.py": "metrics",
    "evaluate.py": "evaluation",
    "metrics.py": "metrics",
    "segmenter.py": "segmenter",
    "encoders.py": "segmenter",
    "batches.py": "run processes golden_runs",
    "rng.py": "seeding",
    "paired_test.py": "paired_test",
    "scores.py": "reporter",
    "build.py": "plan step_keys shared_steps",
    "protocol.py": "protocol metrics",
    "trainer.py": "golden_runs run processes",
    "checkpoint.py": "kill",
    "distributed.py": "processes",
    "step_dataset.py": "pictures_of_step",
    "scenario.py": "scenario",
    "transforms.py": "transforms",
    "view.py": "view",
}

FAULTS = [
    # defaults
    Fault("sdr.py", """    repulsion: Weight | None = 1e-3,
    sparsity: Weight | None = 1e-3,
    formulation: Formulation = "intended",
) -> Method:
    \"\"\"The four""", """    repulsion: Weight | None = 1e-2,
    sparsity: Weight | None = 1e-3,
    formulation: Formulation = "intended",
) -> Method:
    \"\"\"The four"""),
    Fault("rcil.py", "    kd: Weight = 100.0,", "    kd: Weight = 10.0,"),
    Fault("ucd.py", "temperature: Positive = 0.07", "temperature: Positive = 0.1"),
    Fault("reminder.py", "    csw: Weight = 0.5,", "    csw: Weight = 1.0,"),
    Fault("ssul.py", "def ssul(threshold: Share = 0.7,", "def ssul(threshold: Share = 0.5,"),
    Fault("plop.py", "pod_logits: Weight = 0.0005,", "pod_logits: Weight = 0.005,"),
    Fault("importance.py", "def ewc(weight: Weight = 500.0, alpha: Share = 0.9,", "def ewc(weight: Weight = 500.0, alpha: Share = 0.1,"),
    Fault("importance.py", "    every: Count = 10,", "    every: Count = 1,"),
    Fault("dkd.py", "    first_positive: Weight = 2.0,", "    first_positive: Weight = 1.0,"),
    # reductions
    Fault("ssul.py", "batch.reduce(batch.valid.sum().to(total.dtype)).clamp(min=1)", "batch.n_pixels"),
    Fault("rcil.py", "[*(F.relu(stage) for stage in out.stages), out.embedding", "[*out.stages, out.embedding"),
    Fault("base.py", "return batch.reduce(total) / batch.n_valid", "return batch.reduce(total) / batch.n_pixels"),
    Fault("mib.py", "return batch.reduce(_sums(batch, self.keeps_old)[0]) / batch.n_valid", "return batch.reduce(_sums(batch, self.keeps_old)[0]) / batch.n_pixels"),
    Fault("mib.py", "return ce, kd / n_old", "return ce, kd"),
    Fault("lwf_mc.py", "return batch.reduce((pixels * batch.valid).sum()) / batch.n_valid", "return batch.reduce((pixels * batch.valid).sum()) / batch.n_pixels"),
    Fault("plop.py", "return batch.reduce((factor * pixels.sum((1, 2))).sum()) / batch.n_pixels", "return batch.reduce((factor * pixels.sum((1, 2))).sum()) / batch.n_valid"),
    Fault("dkd.py", "return batch.reduce((pixels * batch.valid).sum()) / batch.n_valid", "return batch.reduce((pixels * batch.valid).sum()) / batch.n_pixels"),
    Fault("cil.py", "batch.reduce(labelled.sum().to(total.dtype)).clamp(min=1)", "batch.n_valid"),
    Fault("reminder.py", "return batch.reduce(total) / batch.reduce(count).clamp(min=1)", "return batch.reduce(total) / batch.n_valid"),
    Fault("lwf.py", 'reduction="sum") / n_old', 'reduction="sum")'),
    Fault("sdr.py", "gaps = (centroids - prototypes[old]).square().mean(1)", "gaps = (centroids - prototypes[old]).square().sum(1)"),
    Fault("sdr.py", "return inverse.sum() / pairs.sum().clamp(min=1)", "return inverse.sum() / present.sum().clamp(min=1)"),
    # constants, signs and indices of the losses
    Fault("sdr.py", "old = slice(1, batch.step.n_old)\n        present", "old = slice(0, batch.step.n_old)\n        present"),
    Fault("sdr.py", "return torch.where(labels == 0, batch.old_feature_prediction, 0)", "return batch.old_feature_prediction"),
    Fault("sdr.py", 'step.index == 0 and step.setup != "overlapped"', "step.index == 0"),
    Fault("sdr.py", "torch.lt(tile, 0, out=weighted), value=-2)", "torch.le(tile, 0, out=weighted), value=-2)"),
    Fault("sdr.py", "ratios = torch.where(counted, exponentials / torch.where(counted, sums + phi, 1), 0)", "ratios = torch.where(counted, exponentials / torch.where(counted, sums, 1), 0)"),
    Fault("sdr_variants.py", "    keeps_old = False", "    keeps_old = True"),
    Fault("sdr_variants.py", "(n - present.cumsum(0) + 1)", "(n - present.cumsum(0))"),
    Fault("mib.py", "first.bias[0] -= math.log(len(new.bias) + 1)", "first.bias[0] -= math.log(len(new.bias))"),
    Fault("cil.py", "bits = -(q * log_q).sum(1) / math.log(2)", "bits = -(q * log_q).sum(1)"),
    Fault("plop.py", "background = logits[:, :1] + logits[:, n_old:].sum(1, keepdim=True)", "background = logits[:, :1]"),
    Fault("plop.py", "math.sqrt(step.n_classes / step.n_new) / len(distances)", "math.sqrt(step.n_classes / step.n_old) / len(distances)"),
    Fault("plop.py", "before = torch.stack([(n - 1) // 2, n // 2])", "before = torch.stack([n // 2, n // 2])"),
    Fault("reminder.py", "return temperature**2 * (pixels * chosen).sum()", "return temperature * (pixels * chosen).sum()"),
    Fault("reminder.py", "        ctx.model.eval()\n", ""),
    Fault("rcil.py", "share = torch.where(draw < 0.33, 1.0, torch.where(draw < 0.66, 0.0, 0.5))", "share = torch.where(draw < 0.33, 1.0, torch.where(draw < 0.5, 0.0, 0.5))"),
    Fault("rcil.py", "WINDOWS = (4, 8, 12, 16, 20, 24)", "WINDOWS = (4, 8, 12, 16, 20)"),
    Fault("ucd.py", "positive = same & ~itself & used", "positive = same & used"),
    Fault("ucd.py", "keys = torch.cat([current, previous]).detach()", "keys = torch.cat([current, previous])"),
    Fault("ewf.py", "return sqrt(n_new / (n_old + n_new))", "return sqrt(n_new / n_old)"),
    Fault("ewf.py", "state[name].lerp_(old.to(state[name]), 1 - alpha)", "state[name].lerp_(old.to(state[name]), alpha)"),
    Fault("ssul.py", "sure = (channel >= 2) & (best >= threshold)", "sure = (channel >= 1) & (best >= threshold)"),
    Fault("dkd.py", "auxiliary = F.conv2d(out.embedding.detach(), rows[:1]", "auxiliary = F.conv2d(out.embedding, rows[:1]"),
    Fault("importance.py", "torch._foreach_addcmul_(gradients, factors, way, 2 * self.weight)", "torch._foreach_addcmul_(gradients, factors, way, self.weight)"),
    Fault("importance.py", "closes = self._updates > 0 and self._updates % self.every == 0", "closes = self._updates % self.every == 1"),
    Fault("baselines.py", "new = F.normalize(ctx.reduce(torch.as_tensor(sums))[ctx.step.n_old :], dim=1)", "new = F.normalize(ctx.reduce(torch.as_tensor(sums))[ctx.step.n_old :], dim=0)"),
    # the way through a step
    Fault("trainer.py", "old = copy.deepcopy(model).eval().requires_grad_(False)", "old = copy.deepcopy(model).train().requires_grad_(False)"),
    Fault("trainer.py", "decay = (1 - update / self.total) ** self.train.power", "decay = (1 - (update + 1) / self.total) ** self.train.power"),
    Fault("trainer.py", "                for term in self.shared.values():\n                    term.end_step(self.context)\n", "                pass\n"),
    Fault("trainer.py", "            if term.observes:\n", "            if not term.observes:\n"),
    Fault("batches.py", "ends = [*starts[1:], n]", "ends = [*starts[1:], n - 1]"),
    Fault("rng.py", 'derive(self.seed, self.step, "order", epoch)', 'derive(self.seed, self.step, "order")'),
    Fault("build.py", '"reads": reads,', '"reads": [],'),
    Fault("build.py", '"setup": step.setup if uses_setup else None,', '"setup": None,'),
    # network, data and scores
    Fault("segmenter.py", "F.pad(means, ((w - 1) // 2, w // 2, (h - 1) // 2, h // 2)", "F.pad(means, (w // 2, (w - 1) // 2, h // 2, (h - 1) // 2)"),
    Fault("encoders.py", "conv.padding = (dilation * (conv.kernel_size[0] - 1) // 2,) * 2", "conv.padding = ((conv.kernel_size[0] - 1) // 2,) * 2"),
    Fault("scenario.py", "return self.n_classes - self.n_old", "return len(self.new_classes)"),
    Fault("view.py", "table[VOID] = VOID if void == \"ignore\" else BACKGROUND", "table[VOID] = VOID"),
    Fault("view.py", "allowed = [BACKGROUND, *step.seen_classes, VOID]", "allowed = [BACKGROUND, *step.new_classes, VOID]"),
    Fault("transforms.py", "        if 0 < w <= width and 0 < h <= height:", "        if 0 < w < width and 0 < h < height:"),
    Fault("transforms.py", "    steps[0] /= 2\n", ""),
    Fault("step_dataset.py", 'f"augmentation/{seed}/{step}/{epoch}/{image_id}"', 'f"augmentation/{seed}/{step}/{image_id}"'),
    Fault("confusion.py", "pairs = rows * n_cols + cols.long()", "pairs = rows * n_rows + cols.long()"),
    Fault("evaluate.py", "rows = void_last(labels, n_labels) + (~group)", "rows = void_last(labels, n_labels) + group"),
    Fault("metrics.py", "union = truth + counts.sum(0) - hits + eps", "union = truth + counts.sum(0) + eps"),
    Fault("metrics.py", "max(row[g] for row in a[g:-1]) - final[g]", "max(row[g] for row in a[g:]) - final[g]"),
    Fault("paired_test.py", "np.std(differences, ddof=1)", "np.std(differences, ddof=0)"),
    Fault("scores.py", "cells[f\"{name}_std\"] = grouped[name].std(ddof=1)", "cells[f\"{name}_std\"] = grouped[name].std(ddof=0)"),
]  # fmt: skip
