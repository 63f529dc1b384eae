"""Which images and labels a step sees: against published lists, literal sizes and slow oracles."""

import json

import numpy as np
import pytest

from contseg.datasets.base import SegmentationDataset
from contseg.datasets.errors import UserError
from contseg.datasets.index import Index, gather, row
from contseg.datasets.registry import open_dataset
from contseg.datasets.scenario import VOID, Scenario, parse_scenario
from contseg.datasets.view import held_out, label_table, partition, seen, selection, step_view, tune_view, val_view
from contseg.tests.material import material

SETUPS = ("sequential", "disjoint", "overlapped", "partitioned")


def table256(present: np.ndarray, labels: list[int]) -> np.ndarray:
    """Presence with one column for each of 256 raw labels."""
    full = np.zeros((len(present), 256), bool)
    full[:, labels] = present
    return full


@pytest.fixture(scope="module")
def voc() -> dict[str, np.ndarray]:
    with np.load(material("data", "voc_reference_splits", "voc_labels.npz"), allow_pickle=False) as data:
        return {
            s: table256(data[f"{k}_present"], [*range(21), VOID]) for s, k in (("train", "train_aug"), ("val", "val"))
        }


@pytest.fixture(scope="module")
def ade() -> dict[str, np.ndarray]:
    with np.load(material("data", "ade_reference_splits", "ade_labels.npz"), allow_pickle=False) as data:
        bits = {s: np.unpackbits(data[f"{s}_present_packed"], axis=1)[:, :151] for s in ("train", "val")}
    return {s: table256(b, list(range(151))) for s, b in bits.items()}


def reference(dataset: str, kind: str, sign: str) -> list[tuple[str, int, np.ndarray]]:
    """(task, step, indices) of the published lists; ``sign`` "-ov" or "" (those without)."""
    with np.load(material("data", f"{dataset}_reference_splits", "reference_index.npz"), allow_pickle=False) as data:
        lists = {k: data[k] for k in data.files}
    found = []
    for key, indices in lists.items():
        _, _, task, name = key.split("/")
        which, step = name.rsplit("-", 1)
        if which == kind and task.endswith("-ov") == (sign == "-ov"):
            found.append((task.removesuffix("-ov"), int(step), indices))
    return found


def seen_in(present: np.ndarray, scenario: Scenario, index: int) -> np.ndarray:
    return np.flatnonzero(present[:, list(scenario.steps[index].seen_classes)].any(1))


class TestPublishedLists:
    @pytest.mark.parametrize(("sign", "setup"), [("-ov", "overlapped"), ("", "disjoint"), ("", "sequential")])
    def test_voc_train(self, voc, sign, setup):
        lists = reference("voc", "train", sign)
        assert len(lists) == 10
        for task, step, indices in lists:
            scenario = parse_scenario(f"voc/{task}/{setup}", 20)
            np.testing.assert_array_equal(np.flatnonzero(selection(voc["train"], scenario, step)), indices)

    def test_voc_val(self, voc):
        new, learned = reference("voc", "val", ""), reference("voc", "test_on_val", "")
        assert len(new) == len(learned) == 10
        for task, step, indices in new:
            scenario = parse_scenario(f"voc/{task}/overlapped", 20)
            np.testing.assert_array_equal(np.flatnonzero(selection(voc["val"], scenario, step)), indices)
        for task, step, indices in learned:
            np.testing.assert_array_equal(
                seen_in(voc["val"], parse_scenario(f"voc/{task}/disjoint", 20), step), indices
            )

    def test_ade_partition(self, ade):
        lists = reference("ade", "train", "")
        assert len(lists) == 22
        for task, step, indices in lists:  # some of them were saved in the order of a Python set
            scenario = parse_scenario(f"ade/{task}/partitioned", 150)
            np.testing.assert_array_equal(np.flatnonzero(selection(ade["train"], scenario, step)), np.sort(indices))

    def test_ade_overlapped(self, ade):
        scenario = parse_scenario("ade/100-10/overlapped", 150)
        for split, kind in (("train", "train"), ("val", "val")):
            lists = reference("ade", kind, "-ov")
            assert len(lists) == 6
            for _, step, indices in lists:
                np.testing.assert_array_equal(np.flatnonzero(selection(ade[split], scenario, step)), np.sort(indices))
        for _, step, indices in reference("ade", "test_on_val", "-ov"):
            np.testing.assert_array_equal(seen_in(ade["val"], scenario, step), np.sort(indices))


VOC_SIZES = """
19-1 | 10410, 548 | 10034, 548
15-5 | 9568, 2145 | 8437, 2145
15-1 | 9568, 487, 299, 491, 500, 548 | 8437, 378, 299, 420, 500, 548
10-1 |6139, 528, 1177, 444, 482, 3898, 487, 299, 491, 500, 548|3706, 188, 868, 227, 201, 3247, 378, 299, 420, 500, 548
5-3 | 2836, 2331, 1542, 2095, 4484, 1468 | 1753, 1517, 624, 1296, 3924, 1468
5-5 | 2836, 3604, 5542, 2145 | 1753, 1953, 4731, 2145
2-2 | 1072, 1151, 1039, 2080, 1345, 1701, 925, 4236, 790, 1048 | 653, 936, 303, 1378, 436, 1056, 428, 3625, 719, 1048
"""
ADE_SIZES = """
100-50 | 20192, 9390 | 10806, 9390 | 13452, 6744
100-10 | 20192, 1710, 2294, 2747, 4279, 2844 | 10806, 861, 1009, 1445, 3231, 2844 | 13452, 1130, 1200, 1366, 1550, 1498
50-50 | 20177, 13186, 9390 | 4838, 5968, 9390 | 8219, 6384, 5593
"""


class TestPublishedSizes:
    @pytest.mark.parametrize("line", VOC_SIZES.strip().splitlines())
    def test_voc(self, voc, line):
        self.compare("voc", voc["train"], line, ("overlapped", "disjoint"))

    @pytest.mark.parametrize("line", ADE_SIZES.strip().splitlines())
    def test_ade(self, ade, line):
        self.compare("ade", ade["train"], line, ("overlapped", "disjoint", "partitioned"))

    def compare(self, dataset, present, line, setups):
        task, *columns = line.split("|")
        for setup, column in zip(setups, columns, strict=True):
            scenario = parse_scenario(f"{dataset}/{task.strip()}/{setup}", {"voc": 20, "ade": 150}[dataset])
            sizes = [int(selection(present, scenario, t).sum()) for t in range(len(scenario.groups))]
            assert sizes == [int(n) for n in column.split(",")], setup

    def test_voc_val_seen(self, voc):
        scenario = parse_scenario("voc/15-1/overlapped", 20)
        assert [len(seen_in(voc["val"], scenario, t)) for t in range(6)] == [1240, 1277, 1329, 1353, 1421, 1449]

    def test_ade_images_without_a_class_and_with_future_ones(self, ade):
        steps = partition(ade["train"], parse_scenario("ade/100-50/partitioned", 150))
        assert (steps == -1).sum() == 14
        assert ade["train"][steps == 0][:, 101:151].any(1).sum() == 2646


# --- packs of real images ------------------------------------------------------------------------------------------

PACKS = {
    "voc_small": {},
    "camvid_small": {"cars-people": "[1-6|9|10,11]"},
    "voc_fullres_sample": {},
    "voc_animals": {"animals 2-1-1-1": "[8,12|13|17|10]", "animals+person 3-1-1-1": "[8,12,15|13|17|10]"},
}


@pytest.mark.parametrize("pack", PACKS)
def test_packs_give_the_expected_lists(pack, tmp_path):
    root = material("data", pack)
    dataset = open_dataset("voc" if pack == "voc_fullres_sample" else pack, root, tmp_path)
    expected = json.loads((root / "expected_splits.json").read_text())["scenarios"]
    compared = 0
    for name, splits in expected.items():
        task, setup = name.rsplit("/", 1)
        task = PACKS[pack].get(task.split(" (")[0], task)
        for split, lists in splits.items():
            scenario = parse_scenario(
                f"{pack}/{task}/{'overlapped' if setup == 'val_seen' else setup}", dataset.n_foreground
            )
            for t, ids in enumerate(lists):
                compared += 1
                if setup == "val_seen":
                    assert np.array(dataset.ids("val"))[seen(dataset, scenario.steps[t])].tolist() == ids
                elif ids:
                    assert split in ("train", "train_aug")
                    assert list(step_view(dataset, scenario, t).ids) == ids
                else:
                    with pytest.raises(UserError, match=f"step {t} has no training image in setup '{setup}'"):
                        step_view(dataset, scenario, t)
    assert compared == {"voc_small": 63, "camvid_small": 22, "voc_fullres_sample": 42, "voc_animals": 24}[pack]


# --- small tables and slow oracles -----------------------------------------------------------------------------------


class Drawn(SegmentationDataset):
    """Images that exist as a presence table only."""

    class_names = tuple(f"class {i}" for i in range(8))

    def __init__(self, present: np.ndarray, contents: str = "") -> None:
        super().__init__("drawn")
        self.present, self.contents = present, contents

    def ids(self, split):
        return tuple(f"{split}{i:03d}" for i in range(len(self.present)))

    def files(self, image_id, split):
        return None

    def _read(self, ids, split) -> Index:
        return gather(row(p, (4, 4), f"{self.contents}{i}".encode()) for i, p in zip(ids, self.present, strict=True))


def random_present(seed: int, n: int = 60, classes: int = 7, share: float = 0.25) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return table256(rng.random((n, classes + 2)) < share, [*range(classes + 1), VOID])


def slow_selection(present: np.ndarray, scenario: Scenario, index: int) -> list[int]:
    """The sentences of the table in ``datasets/view.py``, image by image."""
    step, chosen = scenario.steps[index], []
    for i, image in enumerate(present):
        classes = {c for c in range(1, 255) if image[c]}
        wanted = bool(classes & set(step.new_classes))
        if scenario.setup in ("sequential", "disjoint"):
            wanted = wanted and classes <= set(step.seen_classes)
        if wanted:
            chosen.append(i)
    return chosen


def slow_partition(present: np.ndarray, groups: tuple[tuple[int, ...], ...]) -> list[int]:
    """The rule of the reference lists' README, line by line."""
    step_of = {c: t for t, g in enumerate(groups) for c in g}
    total = {c: sum(p[c] for p in present) for c in step_of}
    given = dict.fromkeys(step_of, 0)
    steps = [-1] * len(present)
    for c in sorted(step_of):
        for i, image in enumerate(present):
            if image[c] and steps[i] == -1:
                classes = [k for k in sorted(step_of) if image[k]]
                scores = [120 * (1 - given[k] / total[k]) + sum(total[j] for j in classes) / total[k] for k in classes]
                steps[i] = step_of[classes[scores.index(max(scores))]]
                for k in classes:
                    given[k] += step_of[k] == steps[i]
    return steps


TASKS = ("5-1", "3-2", "2-2", "[1,2|5]", "[7|1-3]", "offline", "3-2@random4")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seed", range(3))
def test_selection_is_the_rule_in_words(task, seed):
    present = random_present(seed)
    for setup in SETUPS[:3]:
        scenario = parse_scenario(f"d/{task}/{setup}", 7)
        for t in range(len(scenario.groups)):
            assert np.flatnonzero(selection(present, scenario, t)).tolist() == slow_selection(present, scenario, t)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seed", range(3))
def test_partition_is_the_rule_in_words(task, seed):
    present, scenario = random_present(seed), parse_scenario(f"d/{task}/partitioned", 7)
    assert partition(present, scenario).tolist() == slow_partition(present, scenario.groups)


def test_partition_puts_every_image_with_a_class_in_one_step():
    present, scenario = random_present(5), parse_scenario("d/3-2/partitioned", 7)
    chosen = np.array([selection(present, scenario, t) for t in range(3)])
    np.testing.assert_array_equal(chosen.sum(0), present[:, 1:8].any(1))


def test_label_tables_by_hand():
    """Classes 2 and 1 first, then 3; raw labels 0, 1, 2, 3, 4 and void."""
    columns = [0, 1, 2, 3, 4, VOID]
    expected = {
        ("overlapped", 0): [0, 2, 1, 0, 0],
        ("overlapped", 1): [0, 0, 0, 3, 0],
        ("disjoint", 1): [0, 0, 0, 3, 0],
        ("partitioned", 1): [0, 0, 0, 3, 0],
        ("sequential", 0): [0, 2, 1, 0, 0],
        ("sequential", 1): [0, 2, 1, 3, 0],
    }
    for (setup, index), channels in expected.items():
        step = parse_scenario(f"d/[2,1|3]/{setup}", 4).steps[index]
        assert label_table(step, "ignore")[columns].tolist() == [*channels, VOID]
        assert label_table(step, "background")[columns].tolist() == [*channels, 0]


def test_view_holds_ids_and_table():
    present = table256(np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]], bool), [0, 1, 2, 3])
    view = step_view(Drawn(present), parse_scenario("d/[1|2]/overlapped", 7), 1)
    assert view.ids == ("train001", "train002")
    assert view.table.dtype == np.uint8
    assert view.table[:4].tolist() == [0, 0, 2, 0]
    assert view.split == "train"


def test_equal_steps_have_equal_digests():
    dataset = Drawn(random_present(1))
    digest = {
        (task, setup, t): step_view(dataset, parse_scenario(f"d/{task}/{setup}", 7), t).digest
        for task in ("5-2", "5-1", "3-2")
        for setup in ("sequential", "disjoint", "overlapped")
        for t in (0, 1)
    }
    assert digest["5-2", "overlapped", 0] == digest["5-1", "overlapped", 0]
    assert digest["5-2", "disjoint", 0] == digest["5-1", "disjoint", 0] == digest["5-2", "sequential", 0]
    assert digest["5-2", "disjoint", 1] == digest["5-2", "overlapped", 1]  # nothing is in the future of the last step
    different = [digest[k] for k in (("5-2", "overlapped", 0), ("5-2", "disjoint", 0), ("3-2", "overlapped", 0))]
    different += [digest[k] for k in (("5-2", "sequential", 1), ("5-2", "disjoint", 1), ("5-1", "disjoint", 1))]
    assert len(set(different)) == len(different)


def test_digest_knows_contents_ids_and_void():
    present, scenario = random_present(1), parse_scenario("d/5-2/overlapped", 7)
    plain = step_view(Drawn(present), scenario, 0).digest
    assert plain == step_view(Drawn(present), scenario, 0).digest
    assert plain != step_view(Drawn(present, "other pixels"), scenario, 0).digest
    assert plain != step_view(Drawn(present[:-20]), scenario, 0).digest
    assert plain != step_view(Drawn(present), scenario, 0, void="ignore").digest
    without = present.copy()
    without[:, VOID] = False
    both = {step_view(Drawn(without), scenario, 0, void=v).digest for v in ("ignore", "background")}
    assert len(both) == 1  # where no pixel is void, the rule for void is nothing


def test_digest_does_not_know_names():
    dataset = Drawn(random_present(1))
    named, listed = (parse_scenario(f"{d}/{t}/overlapped", 7) for d, t in (("a", "5-1"), ("b", "[1-5|6|7]")))
    assert [step_view(dataset, named, t).digest for t in range(3)] == [
        step_view(dataset, listed, t).digest for t in range(3)
    ]


def test_held_out_fifth():
    dataset, scenario = Drawn(random_present(1, n=600)), parse_scenario("d/5-2/overlapped", 7)
    for t in (0, 1):
        whole, most, fifth = (
            set(step_view(dataset, scenario, t, split=s).ids) for s in ("train", "tune-train", "tune")
        )
        assert most | fifth == whole
        assert not most & fifth
        assert 0.14 < len(fifth) / len(whole) < 0.26
        assert step_view(dataset, scenario, t, split="tune").split == "train"
    assert held_out(("2007_000032", "2007_000039", "2007_000063")).shape == (3,)
    shares = held_out(tuple(f"{i}" for i in range(10000))).mean()
    assert 0.18 < shares < 0.22  # five standard deviations


def test_an_image_is_held_out_in_every_step_or_in_none():
    dataset, scenario = Drawn(random_present(2, n=300)), parse_scenario("d/2-1/overlapped", 7)
    held = set().union(*(step_view(dataset, scenario, t, split="tune").ids for t in range(6)))
    kept = set().union(*(step_view(dataset, scenario, t, split="tune-train").ids for t in range(6)))
    assert not held & kept
    assert tune_view(dataset, scenario, 5).ids == tuple(i for i in dataset.ids("train") if i in held)
    assert tune_view(dataset, scenario, 5).table.tolist() == list(range(256))


def test_validation_sees_everything_raw():
    present = random_present(3)
    view = val_view(Drawn(present))
    assert len(view.ids) == len(present)
    assert view.split == "val"
    np.testing.assert_array_equal(view.table, np.arange(256))
    step = parse_scenario("d/2-1/overlapped", 7).steps[1]
    np.testing.assert_array_equal(seen(Drawn(present), step), present[:, [1, 2, 3]].any(1))


def test_an_empty_step_is_named():
    present = table256(np.array([[1, 1, 0], [1, 1, 1]], bool), [0, 1, 2])
    with pytest.raises(UserError, match=r"d/\[1\|?:?3\]/overlapped: step 1 .*'overlapped'"):
        step_view(Drawn(present), parse_scenario("d/[1|3]/overlapped", 7), 1)


def test_wrong_words_are_a_programming_error():
    dataset, scenario = Drawn(random_present(1)), parse_scenario("d/5-2/overlapped", 7)
    with pytest.raises(ValueError, match="void"):
        step_view(dataset, scenario, 0, void="drop")
    with pytest.raises(ValueError, match="split"):
        step_view(dataset, scenario, 0, split="val")
