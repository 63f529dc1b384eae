"""Step and Scenario: which classes are learned when.

Labels are those of the data set (0 background, 1..n foreground, 255 void). Channels are those of the network:
channel 0 is background, then the foreground classes in the order in which they were learned.

A scenario is written ``DATASET/TASK/SETUP``, for example ``voc/15-1/overlapped``. The task is

- ``15-1``: base and increment, repeated; the last step may be short
- ``10-5-3-2``: three or more numbers, the size of every step
- ``offline``: one step with every class
- ``[1-6|9|10,11]``: the classes of every step; classes that are not named belong to no step (printed with ``:``)
- ``15-1@b``, ``@random``, ``@random7``: a class order, by a name of ``orders.toml``, drawn from the run's seed, or by
  a seed of its own

In the setup ``domain`` a step brings images of new domains (cities) and no class: ``cityscapes/11-5/domain`` counts
domains, in the order of the data set's ``domains``. All classes are learned at step 0, and labels are complete.

Names of the literature are understood and printed in this form: ``15-5s`` and ``10-10s`` (one class a step), ``50``
(= ``50-50``), ``10-5-5`` (= ``10-5``), ``100-50b`` and ``15-5s_b`` (= ``@b``).
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from contseg.datasets.errors import UserError, unknown

BACKGROUND = 0
VOID = 255

SETUPS = ("sequential", "disjoint", "overlapped", "partitioned", "domain")
RELEASED = "domain+plop"  # split as in PLOP's code: test images of later steps were partly trained on

# the tasks that papers report, for ``list``; any other task is read by the same rule
TASKS = {
    "voc": (
        "19-1", "15-5", "15-1", "10-10", "10-5", "10-1", "5-5", "5-3", "5-1", "4-4", "2-2", "2-1", "1-1", "offline",
    ),
    "ade": ("100-50", "100-10", "100-5", "50-50", "50-20", "50-10", "25-25", "offline"),
    "cityscapes": ("14-1", "10-1", "13-1", "14-5", "18-1", "13-6", "10-9", "5-6-8@cil", "offline"),
    "cityscapes-awt": ("14-1", "10-1", "14-5", "18-1", "offline"),
    "shapes": ("3-3", "3-1", "offline"),
}  # fmt: skip
# those whose steps are domains
DOMAIN_TASKS = {"cityscapes": ("11-5", "11-1", "1-1", "offline"), "shapes-domains": ("1-1", "2-1", "offline")}


@dataclass(frozen=True)
class Step:
    """One increment, as a method sees it: future classes are not known.

    ``old_classes`` and ``new_classes`` hold foreground labels of the data set in the order of learning. In the setup
    ``domain`` all classes are new at step 0, and none later. ``background``: whether channel 0 can be predicted; it
    cannot where data by domain have no label 0.
    """

    index: int
    setup: str
    old_classes: tuple[int, ...]
    new_classes: tuple[int, ...]
    background: bool = True

    @property
    def seen_classes(self) -> tuple[int, ...]:
        """Foreground labels learned up to and including this step; channel k is class ``seen_classes[k - 1]``."""
        return self.old_classes + self.new_classes

    @property
    def keeps_labels(self) -> bool:
        """Whether labels of old classes are kept, and not turned into background."""
        return self.setup in ("sequential", "domain")

    @property
    def n_old(self) -> int:
        """O: logit channels of the previous model, background included; 0 at step 0."""
        return 1 + len(self.old_classes) if self.old_classes else 0

    @property
    def n_new(self) -> int:
        """N: logit channels added by this step (at step 0 background is one of them); 0 where it brings a domain."""
        return self.n_classes - self.n_old

    @property
    def n_classes(self) -> int:
        """C = O + N: all logit channels after this step, background included."""
        return 1 + len(self.seen_classes)


@dataclass(frozen=True)
class Scenario:
    """A data set's classes in the order in which they are learned, and the rule that chooses images and labels.

    ``groups`` holds the foreground labels of every step, in the order of learning. ``lists``, if given, are imported
    training ids by step (``data import-splits``); ``setup`` is then ``overlapped+NAME``; labels follow ``overlapped``.
    ``domains``, of the setup ``domain`` alone: the domains of every step. ``groups`` then has all classes at step 0.
    """

    dataset: str
    task: str
    setup: str
    groups: tuple[tuple[int, ...], ...]
    order: str = ""
    lists: tuple[tuple[str, ...], ...] = ()
    domains: tuple[tuple[str, ...], ...] = ()
    background: bool = True

    @property
    def rule(self) -> str:
        """The setup without the name of imported lists."""
        return self.setup.partition("+")[0]

    @property
    def name(self) -> str:
        """``voc/15-1/overlapped``; with a class order ``voc/15-1@b/overlapped``."""
        return f"{self.dataset}/{self.task}{'@' + self.order if self.order else ''}/{self.setup}"

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The increments, in order."""
        before = [sum(self.groups[:t], ()) for t in range(len(self.groups))]
        return tuple(Step(t, self.rule, before[t], group, self.background) for t, group in enumerate(self.groups))

    def offline(self) -> Scenario:
        """The same classes and domains in one step, ascending, so that every order has the same joint training."""
        lists = (tuple(sorted(set().union(*self.lists))),) if self.lists else ()
        domains = (tuple(sorted(sum(self.domains, ()))),) if self.domains else ()
        groups = (tuple(sorted(sum(self.groups, ()))),)
        return replace(self, task="offline", groups=groups, lists=lists, domains=domains)


def parse_scenario(
    text: str, n_foreground: int, seed: int = 0, *, domains: tuple[str, ...] = (), background: bool = True
) -> Scenario:
    """``voc/15-1/overlapped`` for a data set of ``n_foreground`` classes; ``seed`` draws the order of ``@random``.

    ``voc/15-1/overlapped+FILE.json`` takes the images of every step from a file of ``data import-splits``.
    ``domains``: those of the data set; ``background``: whether it has the label 0 (``view.scenario_of``).

    >>> parse_scenario("voc/15-5s/overlapped", 20).name
    'voc/15-1/overlapped'
    """
    text, plus, path = text.partition("+")
    if text.endswith("/domain"):
        scenario = _by_domain(text, n_foreground, seed, domains)
        if plus and f"domain+{path}" != RELEASED:
            raise unknown(f"setup in {text + plus + path!r}:", f"domain+{path}", ("domain", RELEASED))
        return replace(scenario, setup=f"domain{plus}{path}", background=background)
    scenario = _by_rule(text, n_foreground, seed)
    if not plus:
        return scenario
    return replace(
        scenario,
        setup=f"{scenario.setup}+{Path(path).stem}",
        lists=_read_lists(Path(os.path.expanduser(path)), scenario),
    )


def _by_domain(text: str, n_foreground: int, seed: int, domains: tuple[str, ...]) -> Scenario:
    """Domains are counted as classes are elsewhere."""
    if not domains:
        with_some = " and ".join(DOMAIN_TASKS)
        raise UserError(f"scenario {text!r}: this data set is not divided into domains; {with_some} are")
    numbered = _by_rule(text, len(domains), seed)
    named = tuple(tuple(domains[k - 1] for k in group) for group in numbered.groups)
    groups = (tuple(range(1, n_foreground + 1)), *((),) * (len(named) - 1))
    return replace(numbered, groups=groups, domains=named)


def _by_rule(text: str, n_foreground: int, seed: int) -> Scenario:
    parts = text.split("/")
    if len(parts) != 3 or not all(parts):
        raise UserError(f"scenario {text!r}: write DATASET/TASK/SETUP, for example voc/15-1/overlapped")
    dataset, written, setup = parts
    if setup not in SETUPS:
        raise unknown(f"setup in {text!r}:", setup, SETUPS)
    if written.startswith("["):
        return Scenario(dataset, _plain(written), setup, _named_groups(written, n_foreground))
    sizes, order = _sizes_and_order(written, n_foreground)
    task = _standard(sizes, n_foreground)
    classes = _class_order(dataset, task, order, n_foreground, seed)
    if task == "offline":
        classes = sorted(classes)
    ends = [sum(sizes[: t + 1]) for t in range(len(sizes))]
    groups = tuple(tuple(classes[end - size : end]) for size, end in zip(sizes, ends, strict=True))
    return Scenario(dataset, task, setup, groups, order)


def _read_lists(path: Path, scenario: Scenario) -> tuple[tuple[str, ...], ...]:
    """Training ids by step, from a file that ``data import-splits`` wrote for these classes."""
    import json

    if not path.exists():
        raise UserError(f"there is no file {path}: behind the + of a setup stands a file of `data import-splits`")
    try:
        content = json.loads(path.read_text("utf-8"))
        groups, lists = content["groups"], content["train"]
        made = tuple(tuple(sorted(set(map(str, ids)))) for ids in lists)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a file of `data import-splits` ({type(error).__name__}: {error})") from error
    if groups != [list(g) for g in scenario.groups] or len(made) != len(groups):
        raise UserError(f"{path} holds lists of {content.get('scenario')}, which has other steps than {scenario.name}")
    return made


def known_tasks(dataset: str) -> tuple[str, ...]:
    """The literature's tasks of a data set, in standard form; none for a user's data set."""
    return TASKS.get(dataset, ())


def known_orders(dataset: str) -> tuple[str, ...]:
    """The class orders of a data set that have a name: letters, then longer names."""
    tables = literature()["orders"]
    found = {o for where, t in tables.items() if where.split("/")[0] == dataset for o in t}
    return tuple(sorted(found, key=lambda o: (len(o), o)))


def other_names() -> tuple[dict[str, str], ...]:
    """Names of released code that mean something else here: ``code``, ``theirs``, ``ours`` and a ``note`` each."""
    return tuple(literature()["other_names"])


def _sizes_and_order(written: str, n: int) -> tuple[list[int], str]:
    """``15-5s_b`` -> ([15, 1, 1, 1, 1, 1], "b")."""
    task, _, order = written.partition("@")
    if task == "offline":
        return [n], order
    match = re.fullmatch(r"(\d+(?:-\d+)*)(s?)(?:_?([a-z]))?", task)
    if not match or (match[3] and order) or (written.endswith("@")):
        raise UserError(f"task {written!r}: write BASE-INCREMENT (15-1), all sizes (10-5-5), or 'offline'")
    sizes = [int(s) for s in match[1].split("-")]
    if len(sizes) == 1:
        sizes *= 2  # MiB's "50" is 50-50
    if match[2]:
        sizes = [sizes[0], 1]  # "15-5s": one class a step
    if 0 in sizes:
        raise UserError(f"task {written!r}: a step needs at least one class")
    if len(sizes) == 2:
        if sum(sizes) > n:
            raise UserError(f"task {written!r} does not fit: {sizes[0]} + {sizes[1]} classes, the data set has {n}")
        sizes = _repeat(sizes[0], sizes[1], n)
    elif sum(sizes) != n:
        raise UserError(f"task {written!r} does not fit: its steps have {sum(sizes)} classes, the data set has {n}")
    return sizes, match[3] or order


def _repeat(base: int, increment: int, n: int) -> list[int]:
    """[base, increment, increment, ..., remainder]."""
    full, rest = divmod(n - base, increment)
    return [base, *[increment] * full, *([rest] if rest else [])]


def _standard(sizes: list[int], n: int) -> str:
    """The shortest name of these sizes."""
    if len(sizes) == 1:
        return "offline"
    if sizes == _repeat(sizes[0], sizes[1], n):
        return f"{sizes[0]}-{sizes[1]}"
    return "-".join(map(str, sizes))


def _plain(written: str) -> str:
    """Explicit groups in a form for file names and Markdown tables: ``:`` instead of ``|``."""
    return re.sub(r"\s", "", written).replace("|", ":")


def _named_groups(written: str, n: int) -> tuple[tuple[int, ...], ...]:
    """``[1-3|5]`` -> ((1, 2, 3), (5,))."""
    body = _plain(written)
    span = r"\d+(-\d+)?"
    if not re.fullmatch(rf"\[{span}([,:]{span})*\]", body):
        raise UserError(f"task {written!r}: write the labels of every step, for example [1-6|9|10,11]")
    for label in map(int, re.findall(r"\d+", body)):  # before a range is counted out
        if not 1 <= label <= n:
            raise UserError(f"task {written!r}: label {label} is not one of the data set's classes 1..{n}")
    groups = []
    for group in body[1:-1].split(":"):
        ends = [[int(x) for x in item.split("-")] for item in group.split(",")]
        groups.append(tuple(label for end in ends for label in range(end[0], end[-1] + 1)))
    labels = [label for group in groups for label in group]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"task {written!r}: label {label} is learned twice")
    if not all(groups):
        raise UserError(f"task {written!r}: a step needs at least one class")
    return tuple(groups)


def _class_order(dataset: str, task: str, order: str, n: int, seed: int) -> list[int]:
    """Foreground labels in the order of learning."""
    if not order:
        return list(range(1, n + 1))
    if match := re.fullmatch(r"random(\d*)", order):
        drawn = int(match[1] or seed)
        return sorted(range(1, n + 1), key=lambda label: hashlib.sha256(f"{drawn}:{label}".encode()).digest())
    tables = literature()["orders"]
    found = {**tables.get(dataset, {}), **tables.get(f"{dataset}/{task}", {})}
    if order not in found:
        raise unknown(f"class order of {dataset}/{task}:", order, [*found, "random", "random0"])
    if len(found[order]) != n:
        raise UserError(
            f"class order {order!r} is one of {len(found[order])} classes; the data set opened as {dataset!r} has {n}"
        )
    return found[order]


@cache
def literature() -> dict[str, Any]:
    """The tables of ``orders.toml``."""
    import tomllib  # only for lettered orders and partitions

    with Path(__file__).with_name("orders.toml").open("rb") as file:
        return tomllib.load(file)
