"""Steps by domain: the numbers of images that logs of SegACIL show, and what the released rule trains on."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contseg.datasets.domains import DomainStep, as_released, by_domain, images_for
from contseg.datasets.errors import UserError
from contseg.datasets.formats.cityscapes import CITIES
from contseg.datasets.registry import open_dataset
from contseg.datasets.scenario import DOMAIN_TASKS, TASKS, VOID, Scenario, parse_scenario
from contseg.datasets.view import label_table, scenario_of, scored_view, step_view, tune_view
from contseg.run_benchmark import main

VAL = ("frankfurt", "lindau", "munster")
# train files ascending by city, then val files
CITY_OF = [
    city for val in (False, True) for city in sorted(CITIES) if (city in VAL) == val for _ in range(CITIES[city])
]

ONE_BY_ONE = [176, 198, 95, 75, 156, 76, 97, 213, 47, 139]
RELEASED = {
    "11-5": ([1504, 702, 573], [376, 552, 695], 496),
    "11-1": ([1504, *ONE_BY_ONE], [376, 421, 470, 494, 513, 552, 571, 595, 649, 661, 695], 501),
    "1-1": (
        [139, 252, 68, 87, 156, 79, 292, 115, 113, 76, 123, *ONE_BY_ONE],
        [35, 98, 115, 137, 176, 196, 269, 298, 326, 346, 376, 421, 470, 494, 513, 552, 571, 595, 649, 661, 695],
        541,
    ),
}


def by_task(task: str, setup: str = "domain", **data: bool) -> Scenario:
    return parse_scenario(f"cityscapes/{task}/{setup}", 19, domains=tuple(CITIES), **data)


def city_groups(task: str) -> tuple[tuple[str, ...], ...]:
    return by_task(task).domains


def test_cities():
    assert (len(CITIES), sum(CITIES.values()), sum(CITIES[c] for c in VAL)) == (21, 3475, 500)
    assert [g[0] for g in city_groups("11-5")] == ["aachen", "dusseldorf", "ulm"]
    assert city_groups("1-1") == tuple((c,) for c in CITIES)
    assert city_groups("offline") == (tuple(CITIES),)
    assert [len(cities) for cities in city_groups("11-5")] == [11, 5, 5]


def trained_on(steps: list[DomainStep]) -> int:
    """How many test images of the last step some step trained on."""
    return int(np.isin(steps[-1].test, np.concatenate([step.train for step in steps])).sum())


@pytest.mark.parametrize("task", RELEASED)
def test_images_as_released(task):
    train, test, leaked = RELEASED[task]
    steps = as_released(CITY_OF, city_groups(task))
    assert [len(s.train) for s in steps] == train
    assert [len(s.test) for s in steps] == test
    assert trained_on(steps) == leaked
    assert trained_on(steps[:1]) == 0


def test_offline_as_released_has_no_leak():
    steps = as_released(CITY_OF, city_groups("offline"))
    assert (len(steps[0].train), len(steps[0].test), trained_on(steps)) == (2780, 695, 0)


@pytest.mark.parametrize("task", [*RELEASED, "offline"])
def test_by_domain_has_no_leak(task):
    """Every image is in one place; tasks differ only in when a city comes, so their last tests are equal."""
    groups = city_groups(task)
    steps = by_domain(CITY_OF, groups)
    trained = np.concatenate([s.train for s in steps])
    assert (len(trained), len(steps[-1].test), trained_on(steps)) == (2772, 703, 0)
    assert sorted([*trained, *steps[-1].test]) == list(range(3475))
    for t, (step, group) in enumerate(zip(steps, groups, strict=True)):
        assert {CITY_OF[i] for i in step.train} == set(group)
        assert {CITY_OF[i] for i in step.test} == {c for g in groups[: t + 1] for c in g}
    assert set(steps[-1].test) == set(by_domain(CITY_OF, city_groups("1-1"))[-1].test)


def test_one_city_a_step_trains_as_released():
    """Where a step has one city, both rules train on the same images."""
    groups = city_groups("1-1")
    for a, b in zip(as_released(CITY_OF, groups), by_domain(CITY_OF, groups), strict=True):
        np.testing.assert_array_equal(a.train, b.train)


def test_the_shuffle_is_a_literal():
    """Five and five images of two cities, the same on every platform."""
    steps = as_released(["a"] * 5 + ["b"] * 5, [("a",), ("b",)])
    assert [s.train.tolist() for s in steps] == [[2, 1, 4, 0], [7, 6, 9, 5]]
    assert [s.test.tolist() for s in steps] == [[3], [8, 5]]


# --- the scenario ---------------------------------------------------------------------------------------------------


def test_steps_bring_no_class():
    scenario = by_task("11-5", background=False)
    assert scenario.name == "cityscapes/11-5/domain"
    assert [s.new_classes for s in scenario.steps] == [tuple(range(1, 20)), (), ()]
    assert [(s.n_old, s.n_new, s.n_classes) for s in scenario.steps] == [(0, 20, 20), (20, 0, 20), (20, 0, 20)]
    assert all(s.keeps_labels and not s.background for s in scenario.steps)
    assert by_task("11-5", "domain+plop").name == "cityscapes/11-5/domain+plop"
    assert by_task("11-5", "domain+plop").steps[1].setup == "domain"


def test_offline_is_one_step_of_all_domains():
    whole = by_task("11-5", "domain+plop").offline()
    assert (whole.name, whole.groups) == ("cityscapes/offline/domain+plop", (tuple(range(1, 20)),))
    assert whole.domains == (tuple(sorted(CITIES)),)
    assert by_task("11-1@random3", "domain+plop").offline().domains == whole.domains


def test_explicit_domains_and_an_order_of_ones_own():
    assert by_task("[1,3|2]").domains == (("aachen", "darmstadt"), ("bremen",))
    drawn = by_task("11-5@random7").domains
    assert sorted(sum(drawn, ())) == sorted(CITIES) and drawn != city_groups("11-5")


def test_labels_are_kept():
    """Void is void, and so is label 0 where channel 0 cannot be predicted, whatever the protocol says."""
    kept = np.arange(256, dtype=np.uint8)
    kept[20:] = 0
    for background, void, of_void in ((True, "background", 0), (True, "ignore", VOID), (False, "background", VOID)):
        for step in by_task("11-5", background=background).steps:
            expected = kept.copy()
            expected[VOID] = of_void
            expected[0] = 0 if background else VOID
            np.testing.assert_array_equal(label_table(step, void), expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("shapes/1-1/domain", "not divided into domains; cityscapes and shapes-domains are"),
        ("shapes-domains/5-1/domain", "the data set has 4"),
        ("shapes-domains/2-2/domain+plob", "domain+plop"),
        ("shapes-domains/2-2/domains", "domain"),
        ("shapes-domains/2-2@b/domain", "class order"),
    ],
)
def test_mistakes_are_one_line(text, words):
    with pytest.raises(UserError) as error:
        scenario_of(open_dataset(text.partition("/")[0]), text)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_tasks_that_are_listed(capsys):
    for name, tasks in DOMAIN_TASKS.items():
        for task in tasks:
            found = parse_scenario(f"{name}/{task}/domain", 19, domains=tuple(CITIES))
            assert found.task == task
    assert {"14-1", "10-1", "13-1", "5-6-8@cil"} <= set(TASKS["cityscapes"])
    assert main(["list", "scenarios"]) == 0
    shown = capsys.readouterr().out
    for word in ("11-5, 11-1, 1-1, offline", "21: aachen, bremen, ..., munster", "domain+plop", "day, fog, night"):
        assert word in shown


# --- the images -----------------------------------------------------------------------------------------------------


def test_drawn_domains():
    """200 and 50 images of each domain; labels are those of `shapes`, day is as drawn, the others are not."""
    dataset, plain = open_dataset("shapes-domains"), open_dataset("shapes")
    scenario = scenario_of(dataset, "shapes-domains/1-1/domain")
    views = [step_view(dataset, scenario, t) for t in range(4)]
    tests = [scored_view(dataset, scenario, t) for t in range(4)]
    assert [len(v.ids) for v in views] == [200] * 4
    assert [len(v.ids) for v in tests] == [50, 100, 150, 200]
    assert not set(sum((v.ids for v in views), ())) & set(tests[-1].ids)
    for view, name in zip(views, dataset.domains, strict=True):
        assert {dataset.domain_of(i) for i in view.ids} == {name}
        image_id = next(i for i in view.ids if i.startswith("train"))
        image, label = dataset.load(image_id, "train")
        drawn, same = plain.load(image_id, "train")
        assert (label == same).all() and (image == drawn).all() == (name == "day")
        assert image.dtype == drawn.dtype
    prints = {d.fingerprint("train_0001", "train") for d in (dataset, plain)}
    assert len(prints) == 2


def test_both_splits_are_one():
    dataset = open_dataset("shapes-domains")
    pool = images_for(dataset, scenario_of(dataset, "shapes-domains/1-1/domain"))
    assert pool.ids("train") == pool.ids("val") == dataset.ids("train") + dataset.ids("val")
    assert pool is images_for(pool, scenario_of(dataset, "shapes-domains/1-1/domain"))
    assert images_for(dataset, scenario_of(dataset, "shapes-domains/3-3/overlapped")) is dataset
    assert pool.fingerprint("val_0003", "train") == dataset.fingerprint("val_0003", "val")
    assert (pool.load("val_0003", "train")[0] == dataset.load("val_0003", "val")[0]).all()


@pytest.mark.parametrize("setup", ["domain", "domain+plop"])
def test_tools_show_and_write_the_images_of_the_steps(tmp_path, capsys, setup):
    text = f"shapes-domains/2-1/{setup}"
    dataset = open_dataset("shapes-domains")
    scenario = scenario_of(dataset, text)
    trains = [list(step_view(dataset, scenario, t).ids) for t in range(3)]
    tests = [list(scored_view(dataset, scenario, t).ids) for t in range(3)]
    assert main(["data", "show", text]) == 0
    shown = capsys.readouterr().out
    assert [int(line.split()[2]) for line in shown.splitlines() if line.startswith("step")] == [*map(len, trains)]
    assert "1000 images of train and val" in shown
    assert main(["data", "export-splits", text, "--out", str(tmp_path)]) == 0
    for t in range(3):
        assert sorted((tmp_path / f"train-{t}.txt").read_text().split()) == sorted(trains[t])
        assert sorted((tmp_path / f"test_on_val-{t}.txt").read_text().split()) == sorted(tests[t])
    assert not list(tmp_path.glob("val-*"))  # no step brings a class
    assert main(["data", "import-splits", str(tmp_path), "--scenario", text]) == 2
    assert "steps by domain cannot be imported" in capsys.readouterr().err


def test_tuning_holds_out_training_images():
    dataset = open_dataset("shapes-domains")
    scenario = scenario_of(dataset, "shapes-domains/1-1/domain")
    held = tune_view(dataset, scenario, 1)
    kept = [set(step_view(dataset, scenario, t, split="tune-train").ids) for t in (0, 1)]
    whole = [set(step_view(dataset, scenario, t).ids) for t in (0, 1)]
    assert set(held.ids) == (whole[0] | whole[1]) - kept[0] - kept[1]


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory) -> Path:
    """3475 pairs of files with the names of the download, all of the same made-up content."""
    root = tmp_path_factory.mktemp("cityscapes")
    ids = (0, 7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33)
    Image.fromarray(np.full((1, len(ids), 3), 9, np.uint8)).save(root / "image.png")
    Image.fromarray(np.array([ids], np.uint8)).save(root / "map.png")
    for city, n in CITIES.items():
        split = "val" if city in VAL else "train"
        for part, source, ending in (
            ("leftImg8bit", "image.png", "leftImg8bit"),
            ("gtFine", "map.png", "gtFine_labelIds"),
        ):
            folder = root / part / split / city
            folder.mkdir(parents=True)
            for k in range(n):
                os.link(root / source, folder / f"{city}_{k:06}_000019_{ending}.png")
    return root


@pytest.fixture(scope="module")
def streets(cityscapes):
    """The data set in these files, read once."""
    return open_dataset("cityscapes", cityscapes)


@pytest.mark.parametrize("setup", ["domain", "domain+plop"])
def test_plan_of_cityscapes(cityscapes, streets, tmp_path, capsys, setup):
    """The real command: images by step as published, and the leak in one line."""
    grid = ["--scenarios", *(f"cityscapes/{t}/{setup}" for t in ("11-5", "1-1")), "--methods", "FT"]
    assert main(["plan", *grid, "--data", f"cityscapes={cityscapes}", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    said = [line for line in shown.splitlines() if "are trained on" in line]
    assert [line.partition(" test images")[0] for line in said] == (
        ["cityscapes/11-5/domain+plop: 496 of the 695", "cityscapes/1-1/domain+plop: 541 of the 695"]
        if setup == "domain+plop"
        else []
    )
    scenario = scenario_of(streets, f"cityscapes/11-5/{setup}")
    trains = [len(step_view(streets, scenario, t).ids) for t in range(3)]
    assert trains == (RELEASED["11-5"][0] if setup == "domain+plop" else [1500, 700, 572])
    assert len(scored_view(streets, scenario, 2).ids) == (695 if setup == "domain+plop" else 703)
    assert not scenario.background and scenario_of(open_dataset("cityscapes-awt", cityscapes), scenario.name).background


def test_cityscapes_by_city_is_shown_with_its_labels(cityscapes, capsys):
    """Raw ids go up to 33, labels to 19."""
    assert main(["data", "show", "cityscapes/11-5/domain", "--root", str(cityscapes)]) == 0
    shown = capsys.readouterr().out
    assert [int(line.split()[2]) for line in shown.splitlines() if line.startswith("step")] == [1500, 700, 572]
    assert " 19 bicycle                 572 images" in shown


def test_class_incremental_cityscapes(streets):
    """Every image shows every class, so a task by class has all of them at each step; other ids are void."""
    for task, steps in (("14-1", 6), ("10-1", 10), ("13-1", 7), ("5-6-8@cil", 3)):
        scenario = scenario_of(streets, f"cityscapes/{task}/overlapped")
        assert len(scenario.steps) == steps
        assert [len(step_view(streets, scenario, t).ids) for t in range(steps)] == [2975] * steps
    assert [sorted(g) for g in scenario.groups] == [[1, 2, 9, 10, 11], [*range(3, 9)], [*range(12, 20)]]
