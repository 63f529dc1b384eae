"""The rule that turns a scenario's name into steps."""

import doctest
import json

import pytest

from contseg.datasets import scenario
from contseg.datasets.errors import UserError
from contseg.datasets.scenario import Scenario, known_orders, known_tasks, other_names, parse_scenario
from contseg.tests.material import material

N = {"voc": 20, "ade": 150, "shapes": 6, "isprs": 5, "cityscapes": 19, "cityscapes-awt": 19}


@pytest.mark.parametrize(
    ("task", "n", "expected"),
    [
        ("19-1", 20, [19, 1]),
        ("15-5", 20, [15, 5]),
        ("15-1", 20, [15, 1, 1, 1, 1, 1]),
        ("10-1", 20, [10] + [1] * 10),
        ("10-10", 20, [10, 10]),
        ("10-5", 20, [10, 5, 5]),
        ("5-3", 20, [5, 3, 3, 3, 3, 3]),
        ("5-5", 20, [5, 5, 5, 5]),
        ("5-1", 20, [5] + [1] * 15),
        ("4-4", 20, [4] * 5),
        ("2-2", 20, [2] * 10),
        ("2-1", 20, [2] + [1] * 18),
        ("10-4", 20, [10, 4, 4, 2]),  # the last may be short
        ("10-4-5-1", 20, [10, 4, 5, 1]),
        ("offline", 20, [20]),
        ("100-50", 150, [100, 50]),
        ("100-10", 150, [100, 10, 10, 10, 10, 10]),
        ("100-5", 150, [100] + [5] * 10),
        ("50-50", 150, [50, 50, 50]),
        ("50-20", 150, [50, 20, 20, 20, 20, 20]),
        ("3-1", 6, [3, 1, 1, 1]),
        ("1-1", 20, [1] * 20),
        ("10-2", 20, [10] + [2] * 5),
        ("10-3", 20, [10, 3, 3, 3, 1]),
        ("11-3", 20, [11, 3, 3, 3]),
        ("16-1", 20, [16, 1, 1, 1, 1]),
        # Cityscapes
        ("14-1", 19, [14] + [1] * 5),
        ("14-5", 19, [14, 5]),
        ("18-1", 19, [18, 1]),
        ("13-1", 19, [13] + [1] * 6),
        ("13-6", 19, [13, 6]),
        ("10-1", 19, [10] + [1] * 9),
        ("10-9", 19, [10, 9]),
        # ISPRS
        ("4-1", 5, [4, 1]),
        ("2-3", 5, [2, 3]),
        ("2-1", 5, [2, 1, 1, 1]),
    ],
)
def test_sizes_of_steps(task, n, expected):
    scenario = parse_scenario(f"data/{task}/overlapped", n)
    assert [len(group) for group in scenario.groups] == expected
    assert sum(scenario.groups, ()) == tuple(range(1, n + 1))
    assert scenario.task == task


@pytest.mark.parametrize(
    ("written", "standard"),
    [
        ("voc/15-5s/overlapped", "voc/15-1/overlapped"),
        ("voc/10-10s/disjoint", "voc/10-1/disjoint"),
        ("voc/10-5-5/disjoint", "voc/10-5/disjoint"),
        ("voc/15-1-1-1-1-1/disjoint", "voc/15-1/disjoint"),
        ("voc/19-1b/disjoint", "voc/19-1@b/disjoint"),
        ("voc/15-1b/disjoint", "voc/15-1@b/disjoint"),
        ("voc/15-5s_b/disjoint", "voc/15-1@b/disjoint"),
        ("voc/15-5s_s/disjoint", "voc/15-1@s/disjoint"),
        ("ade/50/overlapped", "ade/50-50/overlapped"),
        ("ade/50b/partitioned", "ade/50-50@b/partitioned"),
        ("ade/100-10c/partitioned", "ade/100-10@c/partitioned"),
        ("voc/[1-3 | 5]/overlapped", "voc/[1-3:5]/overlapped"),
        ("isprs/2-2-1/overlapped", "isprs/2-2/overlapped"),
    ],
)
def test_names_of_the_literature_have_a_standard_form(written, standard):
    n = N[written.split("/")[0]]
    assert parse_scenario(written, n).name == standard
    assert parse_scenario(standard, n) == parse_scenario(written, n)


def test_every_known_task_is_in_standard_form():
    for dataset, n in N.items():
        for task in known_tasks(dataset):
            assert parse_scenario(f"{dataset}/{task}/overlapped", n).name == f"{dataset}/{task}/overlapped"
    assert known_tasks("data of a user") == ()


@pytest.mark.parametrize("dataset", ["voc", "ade"])
def test_groups_are_those_that_mib_ships(dataset):
    reference = json.loads(material("data", f"{dataset}_reference_splits", "scenarios.json").read_text())["scenarios"]
    for task, groups in reference.items():
        mine = parse_scenario(f"{dataset}/{task}/overlapped", N[dataset]).groups
        assert [sorted(g) for g in mine] == [sorted(g) for g in groups], task


def test_letters_of_mib_and_plop():
    """A letter that both use: b is another order in 19-1b (MiB) than in 15-5s_b (PLOP)."""
    assert parse_scenario("voc/19-1@b/disjoint", 20).groups[1] == (5,)
    assert parse_scenario("voc/15-1@b/disjoint", 20).groups[1:] == ((17,), (3,), (6,), (18,), (10,))
    assert parse_scenario("voc/15-1@w/disjoint", 20).groups[1:] == ((3,), (15,), (6,), (5,), (17,))
    assert known_orders("voc") == (*"bcdefghijklmnopqrstuvw", "ciss_h")
    assert known_orders("ade") == ("b", "c")


def test_the_h_of_ciss_is_another_order():
    theirs = parse_scenario("voc/10-1@ciss_h/overlapped", 20).groups
    assert theirs[0] == (12, 9, 19, 6, 4, 10, 5, 18, 14, 16)
    assert theirs[1:] == ((15,), (3,), (8,), (7,), (11,), (13,), (2,), (20,), (17,), (1,))
    ours = parse_scenario("voc/10-1_h/overlapped", 20).groups
    assert ours == ((*theirs[0][:-1], 15), (16,), *theirs[2:])


def test_cil_has_three_sets_of_cityscapes():
    groups = parse_scenario("cityscapes/5-6-8@cil/overlapped", 19).groups
    assert groups == ((1, 2, 9, 10, 11), (3, 4, 5, 6, 7, 8), (12, 13, 14, 15, 16, 17, 18, 19))


def test_other_names_are_those_of_the_released_task_files():
    """Code, its name, the same here; AWT's first, CISS_partitioned's four and STAR's 1-1, six steps up to class 10."""
    assert [(n["code"], n["theirs"], n["ours"]) for n in other_names()] == [
        ("AWT", "voc 15-1a ... 15-1j", "15-1@b ... 15-1@k"),
        ("CISS_partitioned", "voc 15-1_d, 15-5_d", "15-1@e, 15-5@e"),
        ("CISS_partitioned", "voc 15-1_e, 15-5_e", "15-1@v, 15-5@v"),
        ("CISS_partitioned", "voc 10-1_h, 10-5_h", "10-1@ciss_h, 10-5@ciss_h"),
        ("STAR", "voc 1-1", "[1|2|3|4|5|6-10]"),
    ]
    for names in other_names():
        for task in names["ours"].replace(" ... ", ", ").split(", "):
            assert parse_scenario(f"voc/{task}/overlapped", 20).steps
    star = parse_scenario("voc/[1|2|3|4|5|6-10]/overlapped", 20).groups
    assert [len(g) for g in star] == [1, 1, 1, 1, 1, 5]


@pytest.mark.parametrize("dataset", ["voc", "ade"])
def test_every_order_is_a_permutation(dataset):
    n = N[dataset]
    for order in known_orders(dataset):
        for task in ("10-10", "19-1"):
            classes = sum(parse_scenario(f"{dataset}/{task}@{order}/overlapped", n).groups, ())
            assert sorted(classes) == list(range(1, n + 1))


def test_cuts_of_one_order_nest():
    """100-50c's step 0 is 50c's first two steps: one order, three tasks."""
    fifty, hundred = (parse_scenario(f"ade/{t}@c/overlapped", 150).groups for t in ("50-50", "100-50"))
    assert sorted(fifty[0] + fifty[1]) == sorted(hundred[0])
    assert parse_scenario("ade/100-10@c/overlapped", 150).groups[1] == (3, 4, 7, 18, 39, 64, 73, 101, 113, 137)


def test_random_orders():
    seeded = [parse_scenario("voc/15-1@random/overlapped", 20, seed=s) for s in range(20)]
    assert len({s.groups for s in seeded}) == 20
    assert {s.name for s in seeded} == {"voc/15-1@random/overlapped"}
    fixed = parse_scenario("voc/15-1@random7/overlapped", 20, seed=3)
    assert fixed.groups == seeded[7].groups
    assert fixed.name == "voc/15-1@random7/overlapped"
    # the same on every platform and version of Python: a literal
    assert sum(parse_scenario("d/2-1@random0/overlapped", 6).groups, ()) == (4, 3, 2, 6, 5, 1)


def test_random_orders_are_uniform():
    """Each of the six orders of three classes, about a sixth of the time."""
    drawn = [sum(parse_scenario("d/1-1@random/disjoint", 3, seed=s).groups, ()) for s in range(1200)]
    counts = [drawn.count(order) for order in set(drawn)]
    assert len(counts) == 6
    assert all(140 < c < 260 for c in counts)  # five standard deviations


def test_explicit_groups():
    scenario = parse_scenario("voc/[8,12|13|15-17]/disjoint", 20)
    assert scenario.groups == ((8, 12), (13,), (15, 16, 17))
    assert scenario.steps[2].old_classes == (8, 12, 13)


def test_steps_count_channels():
    first, second, third = parse_scenario("d/2-1/overlapped", 4).steps
    assert (first.index, first.setup, first.old_classes, first.new_classes) == (0, "overlapped", (), (1, 2))
    assert [(s.n_old, s.n_new, s.n_classes) for s in (first, second, third)] == [(0, 3, 3), (3, 1, 4), (4, 1, 5)]
    assert third.seen_classes == (1, 2, 3, 4)


def test_a_step_knows_nothing_of_the_future():
    """The first steps of two scenarios that part later are equal."""
    assert parse_scenario("d/2-1/overlapped", 4).steps[0] == parse_scenario("d/2-2/overlapped", 4).steps[0]


def test_offline_is_one_step_with_every_class():
    for name in ("voc/15-1/disjoint", "voc/15-1@b/disjoint", "voc/10-10/disjoint"):
        joint = parse_scenario(name, 20).offline()
        assert joint.task == "offline"
        assert joint.groups == (tuple(range(1, 21)),)
        assert (joint.dataset, joint.setup) == ("voc", "disjoint")
        assert joint == parse_scenario(joint.name, 20)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("voc/15-1", "DATASET/TASK/SETUP"),
        ("voc/15-1/", "DATASET/TASK/SETUP"),
        ("a/b/c/d", "DATASET/TASK/SETUP"),
        ("voc/15-1/overlaped", "did you mean 'overlapped'"),
        ("voc/25-1/overlapped", "does not fit: 25 + 1 classes, the data set has 20"),
        ("voc/15-10/overlapped", "does not fit: 15 + 10 classes, the data set has 20"),
        ("voc/20-1/overlapped", "does not fit"),
        ("voc/10-5-4/overlapped", "19 classes, the data set has 20"),
        ("voc/10-5-6/overlapped", "21 classes, the data set has 20"),
        ("voc/0-5/overlapped", "at least one class"),
        ("voc/10-0-10/overlapped", "at least one class"),
        ("voc/fifteen/overlapped", "BASE-INCREMENT"),
        ("voc/15-1@/overlapped", "BASE-INCREMENT"),
        ("voc/15-1b@c/overlapped", "BASE-INCREMENT"),
        ("voc/15-1@z/overlapped", "class order"),
        ("mine/15-1@b/overlapped", "class order"),
        ("voc/[1,2|2]/overlapped", "learned twice"),
        ("voc/[1,2|21]/overlapped", "label 21"),
        ("voc/[0,2|3]/overlapped", "label 0"),
        ("voc/[1-99|100]/overlapped", "label 99"),
        ("voc/[1,|3]/overlapped", "labels of every step"),
        ("voc/[3-1|4]/overlapped", "at least one class"),
    ],
)
def test_mistakes_are_one_clear_line(name, says):
    with pytest.raises(UserError, match=says.replace("+", r"\+")) as error:
        parse_scenario(name, 20)
    assert "\n" not in str(error.value)


def test_an_order_of_another_class_count_is_refused():
    with pytest.raises(UserError, match="20 classes; the data set opened as 'voc' has 11"):
        parse_scenario("voc/6-5@b/overlapped", 11)


def test_scenarios_are_values():
    assert parse_scenario("voc/15-5/disjoint", 20) == parse_scenario("voc/15-5/disjoint", 20)
    assert len({parse_scenario("voc/15-5/disjoint", 20), parse_scenario("voc/15-5/disjoint", 20)}) == 1
    assert Scenario("d", "offline", "disjoint", ((1,),)).name == "d/offline/disjoint"


def test_examples_in_the_text():
    assert doctest.testmod(scenario).failed == 0
