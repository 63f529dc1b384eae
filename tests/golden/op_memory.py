"""F-MEM-ROUND, F-MEM-GREEDY, F-MEM-LABEL and F-AUGM-CE: who is stored, with which labels, and the loss on them."""

import numpy as np
import torch

from contseg.datasets.memory import Kept, greedy, round_robin, stored_table
from contseg.datasets.scenario import parse_scenario
from contseg.datasets.view import StepView, label_table
from contseg.methods.batch import divided
from contseg.methods.registry import build_method
from contseg.methods.replay import augmented_cross_entropy
from contseg.tests.golden.harness import Fixture, make_batch, make_step, operation

TASKS = {(1, 0): "15-1", (3, 2): "15-1", (4, 0): "10-1"}  # (step, step in which it was training data)


@operation("memory_round_robin")
def memory_round_robin(fixture: Fixture) -> None:
    held = fixture.arrays["in_membership"].astype(bool)
    order, classes = fixture.arrays["in_candidate_order"], fixture.arrays["in_class_order"]
    taken = round_robin(held[order][:, classes - 1], fixture["cfg_size"])
    images, of = (np.array(found) for found in zip(*((order[i], classes[c]) for i, c in taken), strict=True))
    fixture.check("released_selected", images)
    fixture.check("released_class", of)
    fixture.check("released_grouped", images[np.argsort(of, kind="stable")])


@operation("memory_greedy")
def memory_greedy(fixture: Fixture) -> None:
    size, pops = fixture["cfg_size"], iter(fixture["in_pops"])
    slots: list[list[tuple[int, int]]] = []  # of each class: step and image
    for step in (0, 1):
        held = fixture.arrays[f"in_membership_{step}"].astype(bool)
        order = fixture["in_order_" + str(step)]
        slots += [[] for _ in range(fixture[f"cfg_classes_{step}"])]
        greedy(slots, [(step, i) for i in order], held[order][:, : len(slots)], size, lambda _: next(pops))
        for of in range(step + 1):
            under = np.zeros(len(fixture.arrays[f"in_membership_{of}"]), int)
            for c, slot in enumerate(slots, 1):
                under[[i for t, i in slot if t == of]] = c
            fixture.check(f"released_slot_{step}" + (f"_from_{of}" if step else ""), under)
    assert next(pops) == -1


@operation("memory_labels")
def memory_labels(fixture: Fixture) -> None:
    step, seen_at = fixture["cfg_step"], fixture["cfg_seen_at"]
    steps = parse_scenario(f"voc/{TASKS[step, seen_at]}/overlapped", 20).steps
    views = [StepView((), label_table(s, "ignore"), "") for s in steps[: step + 1]]
    raw = fixture.arrays["in_raw_labels"]

    def mapped(labels: str) -> np.ndarray:
        return stored_table(labels, Kept("", seen_at, 0), views, steps[step])[raw]

    fixture.check("released_ssul", mapped("all"))
    fixture.check("released_dkd", mapped("current"))
    fixture.check("released_ciss", mapped("own"))
    fixture.check("paper_own", mapped("own"))


@operation("memory_augm")
def memory_augm(fixture: Fixture) -> None:
    n_old = fixture["cfg_old_classes"]
    current, memory = (fixture.leaf(f"in_logits_{half}") for half in ("current", "memory"))
    old = torch.cat([fixture.tensor(f"in_logits_old_{half}") for half in ("current", "memory")])
    labels, kept = (fixture.tensor(f"in_labels_{half}") for half in ("current", "memory"))
    method = build_method("MiB-AugM")
    stored = torch.arange(2 * len(labels)) >= len(labels)

    pixels = augmented_cross_entropy(memory, kept, n_old)
    fixture.check("paper_memory_map", pixels)
    as_background = torch.where(kept == 255, 0, kept)  # as released
    released = augmented_cross_entropy(memory, as_background, n_old)
    fixture.check("released_memory_map", released)
    fixture.check("released_memory", released.mean())
    fixture.check_gradient("released_grad_memory", released.mean(), memory)

    def losses(kept: torch.Tensor) -> dict[str, torch.Tensor]:
        apart = divided(torch.cat([labels, kept]), stored, True)
        step = make_step(n_old, memory.shape[1] - n_old)
        batch = make_batch(fixture, step, apart[0], torch.cat([current, memory]), old)
        batch._memory = apart[1:]
        return method.losses(batch)

    fixture.check("paper_memory", losses(kept)["augm"] / 0.5)
    fixture.check_gradient("paper_grad_memory_mean_valid", losses(kept)["augm"] / 0.5, memory)
    found = losses(as_background)
    valid = (labels != 255).to(memory.dtype).mean()  # the release: a mean over all pixels
    total = valid * found["unce"] + found["augm"] + found["unkd"]
    fixture.check("released_total", total)
    fixture.check_gradient("released_grad_total_current", total, current)
    fixture.check_gradient("released_grad_total_memory", total, memory)
