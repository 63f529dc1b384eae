"""F-REMAP and F-FILTER: which labels and which images a step sees, against the released data set classes."""

import re

import numpy as np

from contseg.benchmark.plan.protocol import PROTOCOLS, Protocol
from contseg.datasets.scenario import VOID, Scenario, Step, parse_scenario
from contseg.datasets.view import label_table, selection
from contseg.tests.golden.harness import Fixture, operation

SIZES = {"voc": 20, "ade": 150}


@operation("label_remap")
def label_remap(fixture: Fixture) -> None:
    dataset = "ade" if "ade" in fixture.name else "voc"
    for key in (k for k in fixture.arrays if k.startswith("released_")):
        found = re.fullmatch(r"released_(?:lut__)?(.+?)__step(\d+)__(train|val|test)__(\w+)", key)
        assert found, key
        task, index, split, rule = found.groups()
        if rule == "sdr_nomask":
            fixture.no_counterpart(key, "SDR's sequential option trains on raw labels; here void follows the protocol")
            continue
        setup = "sequential" if rule == "mib_nomask" else "overlapped"
        step = parse_scenario(f"{dataset}/{task}/{setup}", SIZES[dataset]).steps[int(index)]
        protocol = PROTOCOLS[rule.removesuffix("_nomask")]
        if split == "train":
            table = label_table(step, protocol.void_in_training)
        else:
            everything = split == "test" or setup == "sequential"
            table = _scored(step.seen_classes if everything else step.new_classes, step, protocol, dataset)
        if dataset == "ade" and rule == "plop":
            table[VOID] = 0  # ADE20K has no void; the released class sends the value to background
        fixture.check(key, table[fixture.arrays["in_raw"]] if "in_raw" in fixture else table)


def _scored(classes: tuple[int, ...], step: Step, protocol: Protocol, dataset: str) -> np.ndarray:
    """What the released code scores when these classes are asked for, in terms of the protocol's fields."""
    learned_now = Step(step.index, "overlapped", tuple(c for c in step.seen_classes if c not in classes), classes)
    table = label_table(learned_now, "ignore")
    if protocol.future_at_test == "ignore":
        table[[label for label in range(1, 256) if label not in classes]] = VOID
    if not protocol.counts_class0(dataset):
        table[0] = VOID
    return table


@operation("filter_images")
def filter_images(fixture: Fixture) -> None:
    maps = fixture.arrays["in_labels"]
    present = np.array([np.isin(np.arange(256), m) for m in maps])
    for key in (k for k in fixture.arrays if k.startswith("released_")):
        found = re.fullmatch(r"released_(.+?)__step(\d+)__(overlapped|disjoint|test)", key)
        assert found, key
        task, index, setup = found[1], int(found[2]), found[3]
        scenario = parse_scenario(f"voc/{task}/{'overlapped' if setup == 'test' else setup}", 20)
        if setup == "test":  # as if all seen classes were learned in one step
            seen = scenario.steps[index].seen_classes
            scenario, index = Scenario("voc", "offline", "overlapped", (seen,)), 0
        fixture.check(key, np.flatnonzero(selection(present, scenario, index)))
