"""Lists that others wrote, read by id; equal to ours or not; and a scenario that takes them."""

import json

import numpy as np
import pytest
import torch

from contseg.datasets.base import SegmentationDataset
from contseg.datasets.errors import UserError
from contseg.datasets.scenario import parse_scenario
from contseg.datasets.tools.splits import compare, export, our_lists, read_lists, write_scenario
from contseg.datasets.view import step_view

IDS = tuple(f"2007_{k:06d}" for k in range(12))
VAL = tuple(f"2008_{k:06d}" for k in range(6))


class Table(SegmentationDataset):
    """Four classes; image k holds class 1 + k % 4, and class 1 too if k < 6."""

    class_names = ("background", "a", "b", "c", "d")

    def ids(self, split):
        return IDS if split == "train" else VAL

    def files(self, image_id, split):
        return None

    def load(self, image_id, split):
        k = int(image_id[-6:])
        label = torch.tensor([[0, 1 + k % 4, int(k < 6)]], dtype=torch.uint8)
        return torch.full((3, 1, 3), k, dtype=torch.uint8), label


@pytest.fixture
def data():
    return Table("own")


OVERLAPPED = {0: (0, 1, 2, 3, 4, 5, 8, 9), 1: (2, 6, 10), 2: (3, 7, 11)}  # task 2-1: classes 1 2 | 3 | 4
DISJOINT = {0: (0, 1, 4, 5, 8, 9), 1: (2, 6, 10), 2: (3, 7, 11)}


def ids(positions, names=IDS):
    return tuple(names[k] for k in positions)


def scenario(setup="overlapped"):
    return parse_scenario(f"own/2-1/{setup}", 4)


def no_lists():
    return {"train": None, "val": None}


def test_ours(data):
    lists = our_lists(data, scenario())
    assert lists["train"] == {t: ids(p) for t, p in OVERLAPPED.items()}
    assert our_lists(data, scenario("disjoint"))["train"] == {t: ids(p) for t, p in DISJOINT.items()}
    assert lists["val"] == {0: ids(range(6), VAL), 1: ids([2], VAL), 2: ids([3], VAL)}
    assert lists["test"] == dict.fromkeys(range(3), ids(range(6), VAL))


@pytest.mark.parametrize("what", ["folder", "json", "npy", "txt"])
def test_there_and_back(data, tmp_path, what):
    lists = export(data, scenario(), tmp_path / "out")
    assert (tmp_path / "out" / "train.txt").read_text().split() == list(IDS)
    assert np.load(tmp_path / "out" / "train-1.npy").tolist() == [2, 6, 10]
    paths = {"folder": [tmp_path / "out"], "json": [tmp_path / "out" / "splits.json"]}
    back = read_lists(paths.get(what) or sorted((tmp_path / "out").glob(f"*-?.{what}")), data, no_lists())
    assert back == lists
    nearest, equal, text = compare(data, back, scenario())
    assert equal
    assert nearest.name == "own/2-1/overlapped"
    assert "own/2-1/overlapped" in text


def test_lists_of_another_scenario_do_not_mix(data, tmp_path):
    """Steps 2 and 3 of the first would be read as steps of the second."""
    export(data, parse_scenario("own/1-1/overlapped", 4), tmp_path)
    export(data, parse_scenario("own/1-1/disjoint", 4), tmp_path)
    two = parse_scenario("own/2-2/disjoint", 4)
    error_of(lambda: export(data, two, tmp_path), str(tmp_path), "test_on_val-2.npy, a list of another scenario")


class Photos(Table):
    """The same images under names as cameras and people give them."""

    def ids(self, split):
        return tuple(f"img.{split} {k:06d}" for k in range(12 if split == "train" else 6))


@pytest.mark.parametrize("what", ["npy", "txt", "json"])
def test_names_with_dots_and_spaces(tmp_path, what):
    data = Photos("own")
    lists = export(data, scenario(), tmp_path)
    paths = [tmp_path / "splits.json"] if what == "json" else sorted(tmp_path.glob(f"*-?.{what}"))
    assert read_lists(paths, data, {split: tmp_path / f"{split}.txt" for split in ("train", "val")}) == lists


def test_an_empty_name(data, tmp_path):
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"train": [["2007_000001", ""]]}))
    with pytest.raises(UserError, match="'' is not a train image"):
        read_lists([path], data, no_lists())


def test_positions_in_another_list(data, tmp_path):
    """The same index file names other images when its list has another order."""
    (tmp_path / "theirs.txt").write_text(
        "".join(f"/JPEGImages/{i}.jpg /SegmentationClassAug/{i}.png\n" for i in IDS[::-1])
    )
    for t, positions in OVERLAPPED.items():
        np.save(tmp_path / f"train-{t}.npy", np.array([11 - p for p in positions]))
    paths = sorted(tmp_path.glob("*.npy"))
    theirs = read_lists(paths, data, {"train": tmp_path / "theirs.txt", "val": None})
    assert theirs["train"] == {t: ids(p) for t, p in OVERLAPPED.items()}
    wrong = read_lists(paths, data, no_lists())
    _, equal, text = compare(data, wrong, scenario())
    assert not equal
    assert "train step 1: 3 theirs, 3 ours; only theirs 3 (2007_000001, 2007_000005, 2007_000009), only ours 3" in text


def test_dkds_arrays_of_lines(data, tmp_path):
    for t, positions in DISJOINT.items():
        lines = [f"/JPEGImages/{i}.jpg /SegmentationClassAug/{i}.png" for i in ids(positions)]
        np.save(tmp_path / f"disjoint_15-1_train_{t:02d}.npy", np.array(lines))
    np.save(tmp_path / "disjoint_15-1_test_02.npy", np.array(VAL))
    theirs = read_lists([tmp_path], data, no_lists())
    nearest, equal, text = compare(data, theirs, scenario())
    assert equal
    assert nearest.setup in ("sequential", "disjoint")
    assert "own/2-1/disjoint and own/2-1/sequential" in text


@pytest.mark.parametrize(("steps", "left"), [((1, 2), "0"), ((0, 1), "2"), ((1,), "0, 2")])
def test_lists_of_some_of_the_steps(data, tmp_path, steps, left):
    """Equal as far as they go; what is left out is said, and no scenario is made of them."""
    for t in steps:
        np.save(tmp_path / f"train-{t}.npy", np.array(OVERLAPPED[t]))
    theirs = read_lists([tmp_path], data, no_lists())
    nearest, equal, text = compare(data, theirs, scenario())
    assert equal and nearest == scenario()
    assert f"equal as far as they go, without step {left} ({len(steps)} train lists)" in text
    assert "all equal" not in text
    np.save(tmp_path / "train-1.npy", np.array([2, 6]))
    _, equal, text = compare(data, read_lists([tmp_path], data, no_lists()), scenario())
    assert not equal and "only ours 1 (2007_000010)" in text


def test_equal_class_orders_are_counted_not_listed(monkeypatch):
    """Nine orders of ten that change no step: one line names the plain scenario, and how many more there are."""
    names = ("background", *(f"class {c}" for c in range(1, 21)))
    monkeypatch.setattr(Table, "class_names", names)
    voc = Table("voc")
    lists = our_lists(voc, parse_scenario("voc/offline/overlapped", 20))
    _, equal, text = compare(voc, {**lists, "val": {}, "test": {}}, None)
    assert equal and "voc/offline/overlapped" in text
    assert len(text) < 400 and "other class orders with the same steps" in text


def test_text_in_any_order_and_twice(data, tmp_path):
    for t, positions in OVERLAPPED.items():
        (tmp_path / f"train_{t}.txt").write_text("\n".join([*ids(positions)[::-1], IDS[positions[0]]]))
    assert read_lists([tmp_path], data, no_lists())["train"] == {t: ids(p) for t, p in OVERLAPPED.items()}


def test_an_empty_array_is_an_empty_step(data, tmp_path):
    np.save(tmp_path / "train-0.npy", np.array([]))  # float64, as numpy makes it
    assert read_lists([tmp_path], data, no_lists())["train"] == {0: ()}


def test_a_scenario_from_lists(data, tmp_path):
    """The images are theirs, the labels go by the setup; the digest is that of ours only if the images are."""
    lists = our_lists(data, scenario())
    lists["train"][1] = ids([2, 6])
    write_scenario(tmp_path / "theirs.json", scenario(), lists)
    theirs = parse_scenario(f"own/2-1/overlapped+{tmp_path / 'theirs.json'}", 4)
    assert theirs.name == "own/2-1/overlapped+theirs"
    assert theirs.steps == scenario().steps
    views = [step_view(data, s, 1) for s in (theirs, scenario())]
    assert views[0].ids == ids([2, 6])
    assert np.array_equal(views[0].table, views[1].table)
    assert step_view(data, theirs, 0).digest == step_view(data, scenario(), 0).digest
    assert views[0].digest != views[1].digest
    assert step_view(data, theirs.offline(), 0).ids == tuple(
        sorted({*ids(OVERLAPPED[0]), *ids([2, 6]), *ids(OVERLAPPED[2])})
    )


def test_lists_below_the_home_folder(data, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    export(data, scenario(), tmp_path / "out")
    assert parse_scenario("own/2-1/overlapped+~/out/splits.json", 4).name == "own/2-1/overlapped+splits"


def error_of(call, *parts):
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_lists_that_cannot_be_read(data, tmp_path):
    def read(name, content, **options):
        path = tmp_path / name
        np.save(path, content, **options) if name.endswith("npy") else path.write_text(content)
        return lambda: read_lists([path], data, no_lists())

    error_of(read("train-0.npy", np.array([0, 12])), "entry 12", "12 ids")
    error_of(read("train-1.npy", np.array([-1, 2])), "list of 12 ids")
    error_of(read("train-2.npy", np.array([0.5])), "float64")
    error_of(read("train-3.npy", np.array([{}], object), allow_pickle=True), "train-3.npy")
    error_of(read("train-4.txt", "2007_000001\n2099_000001\n"), "2099_000001", "not a train image of own")
    error_of(read("numbers.txt", "1"), "numbers.txt", "which list")
    error_of(read("lists.json", "[1, 2]"), "lists.json")
    error_of(read("test-0.npy", np.array([0])), "no training list")
    error_of(lambda: read_lists([tmp_path / "nowhere"], data, no_lists()), "there is no")


def test_two_scenarios_in_one_folder(data, tmp_path):
    np.save(tmp_path / "overlap_15-1_train_00.npy", np.array([0, 1]))
    np.save(tmp_path / "overlap_10-1_train_00.npy", np.array([0, 2]))
    error_of(lambda: read_lists([tmp_path], data, no_lists()), "second train list of step 0", "one scenario")


def test_lists_of_an_unknown_task(data, tmp_path):
    np.save(tmp_path / "train-0.npy", np.array([0, 1]))
    theirs = read_lists([tmp_path], data, no_lists())
    error_of(lambda: compare(data, theirs, None), "--scenario")
    error_of(
        lambda: compare(data, {**theirs, "train": {5: ()}}, scenario()), "own/2-1/overlapped does not have 6 steps"
    )
    error_of(lambda: write_scenario(tmp_path / "x.json", scenario(), theirs), "step 1")


def test_files_that_are_no_lists(data, tmp_path):
    def parse(path):
        return lambda: parse_scenario(f"own/2-1/overlapped+{path}", 4)

    error_of(parse(tmp_path / "nowhere.json"), "nowhere.json")
    (tmp_path / "bad.json").write_text("{")
    error_of(parse(tmp_path / "bad.json"), "bad.json")
    (tmp_path / "other.json").write_text(
        json.dumps({"scenario": "own/3-1/disjoint", "groups": [[1, 2, 3], [4]], "train": [[], []]})
    )
    error_of(parse(tmp_path / "other.json"), "own/3-1/disjoint", "other steps")
    write_scenario(tmp_path / "foreign.json", scenario(), {"train": dict.fromkeys(range(3), ("elsewhere",))})
    foreign = parse_scenario(f"own/2-1/overlapped+{tmp_path / 'foreign.json'}", 4)
    error_of(lambda: step_view(data, foreign, 0), "elsewhere", "not a training image", "`data import-splits`")
    error_of(lambda: parse_scenario("own/2-1/overlapped+gone.json", 4), "there is no file gone.json", "import-splits")
