"""Memory: who is stored is a function of data and seed; which labels; what enters keys, batches and records."""

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from contseg.benchmark.train.batches import StepBatches
from contseg.benchmark.train.rng import HalfStored, Order
from contseg.datasets.errors import UserError
from contseg.datasets.memory import greedy, round_robin
from contseg.methods.batch import divided
from contseg.methods.registry import build_method
from contseg.methods.replay import augmented_cross_entropy
from contseg.tests.told import Told
from contseg.tests.unit.networks import make_steps
from contseg.tests.unit.probe import grid, keys, mini
from contseg.tests.unit.steps import Grid, Images, signal_at

SMALL = "FT+Memory[size=2]"


def stored(plan: Any, step: int, run: int = 0) -> list[tuple[str, int]]:
    return [(s.image_id, s.step) for s in plan.runs[run].cells[step].node.view.stored]


# --- the choice ----------------------------------------------------------------------------------------------------


def slow_round_robin(held: np.ndarray, size: int) -> list[tuple[int, int]]:
    """The release's loop, with an end: it stops after a whole round without an image."""
    left, taken = list(range(len(held))), []
    while len(taken) < size:
        before = len(taken)
        for c in range(held.shape[1]):
            found = next((i for i in left if held[i, c]), None)
            if found is not None and len(taken) < size:
                left.remove(found)
                taken.append((found, c))
        if len(taken) == before:
            break
    return taken


@pytest.mark.parametrize("size", [1, 3, 10, 200])
def test_classes_take_turns(size: int) -> None:
    held = np.random.default_rng(size).random((40, 5)) < [0.5, 0.3, 0.1, 0.05, 0.0]
    taken = round_robin(held, size)
    assert taken == slow_round_robin(held, size)
    assert len(taken) == min(size, int(held.any(1).sum())), "all that show a class, if they are fewer than size"


def test_the_class_with_fewest_images_gets_one_and_the_one_with_most_gives() -> None:
    slots = [["a0", "a1", "a2"], ["b0"], []]
    greedy(slots, ["x", "y", "z"], np.array([[1, 1, 0], [0, 0, 1], [0, 0, 0]], bool), 5, lambda n: n - 1)
    assert slots == [["a0", "a1"], ["b0", "x"], ["y"]]  # x fills memory; y, for a class below 5 // 3, makes a2 go


def test_candidates_are_the_memory_and_the_images_of_the_step_before() -> None:
    plan = grid(method="FT+Memory[size=3]", scenario="mini/1-1-1-1/overlapped")
    before: set[str] = set()
    assert stored(plan, 0) == []
    for t in (1, 2, 3):
        kept = dict(stored(plan, t))
        last = plan.runs[0].cells[t - 1].node.view.ids
        assert len(kept) == 3 and kept.keys() <= before.union(last)
        assert all(step == t - 1 for i, step in kept.items() if i not in before), "an image of the step before"
        assert all(step < t - 1 for i, step in kept.items() if i in before), "kept with the step that it was stored in"
        before = set(kept)


def test_all_images_that_show_a_class_are_taken_if_they_are_few() -> None:
    plan = grid(method="FT+Memory", scenario="mini/2-1/overlapped")
    assert [i for i, _ in stored(plan, 1)] == list(plan.runs[0].cells[0].node.view.ids)


@pytest.mark.parametrize("policy", ["round", "greedy"])
def test_the_choice_follows_the_seed_and_not_the_order_of_the_files(policy: str) -> None:
    def chosen(seed: int, data: Told | None = None) -> list[list[tuple[str, int]]]:
        plan = grid(method=f"FT+Memory[size=3,policy={policy}]", seeds=(seed,), data=data)
        return [stored(plan, t) for t in range(3)]

    assert chosen(0) == chosen(0)
    assert len({str(chosen(seed)) for seed in range(6)}) > 1
    turned = mini()
    turned.present["train"] = turned.present["train"][::-1].copy()
    turned.names["train"] = turned.names["train"][::-1]
    assert chosen(0, turned) == chosen(0)


def test_a_choice_is_literal() -> None:
    """No version of a library may change it: orders are hashes."""
    found = {p: [stored(grid(method=f"FT+Memory[size=4,policy={p}]"), t) for t in (1, 2)] for p in ("round", "greedy")}
    assert found == LITERAL


LITERAL = {
    policy: [[(f"train{i:03d}", step) for i, step in memory.items()] for memory in memories]
    for policy, memories in {
        "round": ({2: 0, 3: 0, 6: 0, 7: 0}, {1: 1, 2: 0, 3: 0, 6: 0}),
        "greedy": ({2: 0, 3: 0, 6: 0, 7: 0}, {1: 1, 2: 0, 3: 0, 7: 0}),
    }.items()
}

# --- labels --------------------------------------------------------------------------------------------------------


def tables(labels: str, setup: str = "overlapped") -> dict[tuple[int, int], list[int]]:
    """(step, step of the stored image) -> channels of the labels 0..4."""
    plan = grid(method=f"FT+Memory[labels={labels}]", scenario=f"mini/2-1/{setup}")
    views = [c.node.view for c in plan.runs[0].cells]
    return {(t, s.step): s.table[:5].tolist() for t, view in enumerate(views) for s in view.stored}


def test_a_stored_image_has_the_table_of_its_own_step_of_all_or_of_the_current_one() -> None:
    first, second, third = [0, 1, 2, 0, 0], [0, 0, 0, 3, 0], [0, 0, 0, 0, 4]
    assert tables("own") == {(1, 0): first, (2, 0): first, (2, 1): second}
    assert tables("current") == {(1, 0): second, (2, 0): third, (2, 1): third}
    assert tables("all") == {(1, 0): [0, 1, 2, 3, 0], (2, 0): [0, 1, 2, 3, 4], (2, 1): [0, 1, 2, 3, 4]}
    assert tables("own", "sequential")[2, 1] == [0, 1, 2, 3, 0], "old labels that its own step kept"


def test_an_image_is_read_through_its_own_table(tmp_path: Path) -> None:
    made = Grid(tmp_path, ("FT+Memory[mix=append]",))
    node = made.node(1)
    device = SimpleNamespace(device=torch.device("cpu"), process_index=0, num_processes=1)
    images = StepBatches(node, made.plan.config, made.data, device).images  # type: ignore[arg-type]
    images.transform = lambda image, label, draw: (image, label)
    current = len(node.view.ids)
    assert len(images) == current + len(node.view.stored) > current
    for i, one in enumerate(node.view.stored, current):
        raw = made.data.load(one.image_id, "train")[1].numpy()
        assert images[i][1].tolist() == one.table.take(raw).tolist()


# --- keys ----------------------------------------------------------------------------------------------------------


def test_step_0_is_shared_and_no_image_is_no_memory() -> None:
    plan = grid(method=("FT", SMALL, "FT+Memory[size=0]", "FT+Memory[size=2,loss=augm]"))
    plain, small, none, augm = (keys(plan, method=m) for m in [r.method for r in plan.runs])
    assert none == plain
    assert small[0] == augm[0] == plain[0]
    assert len({plain[1], small[1], augm[1]}) == len({plain[2], small[2], augm[2]}) == 3


@pytest.mark.parametrize("change", ["size=1", "labels=all", "labels=current", "mix=append", "loss=augm", "loss=bce"])
def test_every_choice_moves_the_later_keys(change: str) -> None:
    settings = {"size": "4"} | dict([change.split("=")])
    other = f"FT+Memory[{','.join(f'{k}={v}' for k, v in settings.items())}]"
    one, two = (keys(grid(method=m)) for m in ("FT+Memory[size=4]", other))
    assert one[0] == two[0] and one[1] != two[1] and one[2] != two[2]


def test_policies_that_store_the_same_images_share_a_training() -> None:
    """Every candidate is stored: by either rule."""
    one, two = (keys(grid(method=f"FT+Memory[policy={p}]")) for p in ("round", "greedy"))
    assert one == two


def test_the_content_of_a_stored_image_is_in_the_key() -> None:
    image = stored(grid(method=SMALL), 1)[0][0]
    data = [mini(contents={image: content}) for content in (0, 1)]
    assert len({keys(grid(method=SMALL, data=d))[1] for d in data}) == 2


@pytest.mark.parametrize(
    ("row", "same"),
    [
        ("SSUL-M", "SSUL+Memory[labels=all]"),
        ("DKD-M", "DKD+Memory[labels=current,mix=append]"),
        ("STAR-M", "STAR+Memory[size=50,labels=current,mix=append]"),
    ],
)
def test_a_row_of_a_paper_is_its_base_with_a_memory(row: str, same: str) -> None:
    one, two = (keys(grid(method=m, scenario="mini/2-1/overlapped")) for m in (row, same))
    assert one == two


# --- batches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "parts"), [(8, 1), (8, 2), (8, 4), (7, 1), (6, 2), (2, 1)])
@pytest.mark.parametrize("images", [3, 5, 20])
def test_half_of_each_batch_is_stored_and_every_process_has_its_share(batch: int, parts: int, images: int) -> None:
    half = batch // 2
    order = HalfStored(Order(30, batch - half, 0, 1), Order(images, half, 0, 1, "memory order"), parts)
    seen: list[int] = []
    for update in range(2 * images):
        found = [i for _, i in order[update]]
        assert len(found) == batch
        assert sum(i >= 30 for i in found) == half
        seen += [i - 30 for i in found if i >= 30]
        micro = [found[p * batch // parts : (p + 1) * batch // parts] for p in range(parts)]
        shares = [sum(i >= 30 for i in part) for part in micro]
        assert max(shares) - min(shares) <= 1
        if batch % (4 * parts) == 0:
            assert {sum(i >= 30 for i in part[rank::2]) for part in micro for rank in (0, 1)} == {half // parts // 2}
    assert {*seen} == {*range(images)}
    current = [[i for _, i in order[u] if i < 30] for u in range(4)]
    assert current == [[i for _, i in Order(30, batch - half, 0, 1)[u]] for u in range(4)]


def flags(tmp_path: Path, method: str, processes: int = 1) -> list[list[list[Any]]]:
    """Of every process: images, labels, which are stored, and the labels of these, batch by batch."""
    made = Grid(tmp_path, (method,), ("train.updates=4",))
    node = made.node(1)
    ranks = [
        SimpleNamespace(device=torch.device("cpu"), process_index=r, num_processes=processes) for r in range(processes)
    ]
    return [
        [list(b) for b in StepBatches(node, made.plan.config, made.data, r).updates(0, 4)]  # type: ignore[arg-type]
        for r in ranks
    ]


@pytest.mark.parametrize("method", ["FT+Memory[size=3]", "FT+Memory[size=3,mix=append]"])
def test_two_processes_see_what_one_sees(method: str, tmp_path: Path) -> None:
    (one,), two = flags(tmp_path, method), flags(tmp_path, method, 2)
    for whole, *parts in zip(one, *two, strict=True):
        for field in range(4):
            assert torch.equal(whole[field][0::2], parts[0][field])
            assert torch.equal(whole[field][1::2], parts[1][field])
    assert any(batch[2].any() for batch in one)


def test_labels_of_stored_images_are_given_beside_and_hidden_only_if_apart() -> None:
    labels, mine = torch.tensor([[[1, 255]], [[2, 0]]]), torch.tensor([False, True])
    shared, apart = divided(labels, mine, False), divided(labels, mine, True)
    assert torch.equal(shared[0], labels)
    assert apart[0].tolist() == [[[1, 255]], [[255, 255]]]
    assert shared[2].tolist() == apart[2].tolist() == [[[255, 255]], [[2, 0]]]


def test_a_pass_and_an_epoch_count_what_they_say(tmp_path: Path) -> None:
    """A pass is over the step's images; updates are counted from both only where stored ones are appended."""
    for mix, more in (("half", 0), ("append", 1)):
        made = Grid(tmp_path / mix, (f"FT+Memory[size=4,mix={mix}]", "FT"), ("train.updates=", "train.epochs=3"))
        node, plain = made.node(1, f"FT+Memory[size=4{',mix=append' if more else ''}]"), made.node(1, "FT")
        assert len(node.view.stored) == 4 and node.view.ids == plain.view.ids
        assert node.updates == 3 * max(1, (len(node.view.ids) + 4 * more) // 4)
        device = SimpleNamespace(device=torch.device("cpu"), process_index=0, num_processes=1)
        batches = StepBatches(node, made.plan.config, made.data, device)  # type: ignore[arg-type]
        assert sum(len(x) for x, _ in batches.whole_pass()) == len(node.view.ids)


# --- the losses ----------------------------------------------------------------------------------------------------


def test_augmented_cross_entropy_against_a_slow_oracle() -> None:
    g = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(2, 6, 3, 4, generator=g, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 255])[torch.randint(7, (2, 3, 4), generator=g)]
    found, p = augmented_cross_entropy(logits, labels, 4), logits.softmax(1)
    for b, i, j in itertools.product(range(2), range(3), range(4)):
        y = int(labels[b, i, j])
        q = p[b, [0, 4, 5], i, j].sum() if y in (0, 4, 5) else p[b, y, i, j] if y != 255 else torch.tensor(1.0)
        assert found[b, i, j].item() == pytest.approx(-q.log().item(), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", ["FT+Memory[loss=augm]", "DKD+Memory[loss=bce]"])
def test_a_batch_without_a_stored_image_has_no_loss_of_memory(name: str) -> None:
    from contseg.benchmark.contract.toy_run import ToyRun, second_step

    make = second_step(ToyRun(), lambda: build_method(name))
    assert make is not None
    batch = make().batch(0)
    term = make().terms["augm" if "augm" in name else "old bce"]
    assert term(batch) > 0
    batch._memory = divided(batch.labels, torch.zeros(4, dtype=torch.bool), True)[1:]
    del batch.stored_labels
    assert term(batch) == 0


# --- a run ---------------------------------------------------------------------------------------------------------


def test_a_run_that_is_stopped_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """The choice is the plan's, so a resumed step has the same memory; here it is stopped and planned anew."""
    sets = ("train.updates=24",)
    method = "MiB+Memory[size=3]"
    whole = Grid(tmp_path / "whole", (method,), sets)
    whole.run()
    cut = Grid(tmp_path / "cut", (method,), sets, data=Images())
    cut.run(cut.node(0).key)
    signal_at(cut.data, "train", 50)
    assert cut.runner().run().interrupted
    again = Grid(tmp_path / "cut", (method,), sets)
    assert stored(again.plan, 1) == stored(whole.plan, 1) != []
    again.run()
    assert again.matrices() == whole.matrices()
    keys = [c.node.key for c in again.plan.runs[0].cells]
    assert [again.store.meta(k)["sha256"] for k in keys] == [whole.store.meta(k)["sha256"] for k in keys]
    assert again.store.meta(keys[1])["cost"]["resumed"]


def test_a_record_names_the_memory_and_its_images(tmp_path: Path) -> None:
    made = Grid(tmp_path, ("FT+Memory[size=3]", "FT"))
    made.run()
    with_memory, plain = ([made.store.record(c.path) for c in r.cells] for r in made.plan.runs)
    assert all(r is not None and "memory" not in r and "stored" not in r["sees"] for r in plain)
    first, second = (r["memory"] for r in with_memory if r is not None)
    settings = {"size": 3, "policy": "round", "labels": "own", "mix": "half", "apart": False}
    assert {k: first[k] for k in settings} == {k: second[k] for k in settings} == settings
    assert first["images"] == [] and [tuple(x) for x in second["images"]] == stored(made.plan, 1)
    assert len(second["images"]) == 3 and second["bytes"] == 0
    view = made.node(1, "FT+Memory[size=3]").view
    assert second["also_current"] == len({i for i, _ in stored(made.plan, 1)} & {*view.ids})


# --- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Joint+Memory", "Joint has no earlier steps"),
        ("NearestPrototype+Memory", "NearestPrototype trains nothing after step 0"),
        ("DKD-M+Memory", "DKD-M has a memory already"),
        ("FT+Memory[size=-1]", "size of Memory must be >= 0, not -1"),
        ("FT+Memory[labels=mine]", "unknown labels of Memory 'mine'"),
    ],
)
def test_what_cannot_be_stored_is_one_line(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        build_method(text)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_half_of_one_image_is_none() -> None:
    with pytest.raises(UserError, match=r"FT\+Memory.*train.batch is 1: raise it to 2 or more, or take mix=append"):
        grid("train.batch=1", "model.norm=group", method="FT+Memory")
    grid("train.batch=1", "model.norm=group", method="FT+Memory[mix=append]")


def test_the_size_is_declared_as_external_data() -> None:
    memories = [build_method(name).memory for name in ("SSUL-M", "STAR-M", "FT+Memory[size=7]", "FT+Memory[size=0]")]
    assert [m and m.external for m in memories] == [("mem=100",), ("mem=50",), ("mem=7",), None]


def test_an_add_on_keeps_the_memory_of_its_base() -> None:
    assert build_method("DKD-M+UAC").memory == build_method("DKD-M").memory
    steps = make_steps(2, 1)
    assert replace(build_method(SMALL), memory=None).active(steps[1]).keys() == {"ce"}
