"""Which files of contseg made a stored result: stored with it, compared before it is reused, in no key.

A stored result (a step's weights, an observer's state, a score) names the hashes of the files that made it, and the
lineage of the results that it was made from. If these differ from the present ones, ``run`` says so and repeats the
work, unless ``Store.trust``. A result that names no files is older than this rule; it is accepted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any

from contseg.benchmark.store.files import Store, digest
from contseg.methods.code import ours

Code = dict[str, Any]  # {"files": {path: hash}, "on": [lineage of each result that it was made from]}

# what makes numbers: these modules, all of ours that they import, and the modules of a method's terms and hooks
TRAINING = ("contseg.benchmark.train.trainer", "contseg.datasets.images")
EVALUATION = ("contseg.benchmark.train.evaluate", "contseg.benchmark.train.test_set", "contseg.datasets.images")
# imported there but left out: their values are in the keys, or they only store, count and report
BESIDE = {"contseg"} | {  # the package's own file holds the version
    f"contseg.{folder}.{name}"
    for folder, names in {
        "benchmark.plan": "config build protocol",
        "benchmark.store": "origin files claims",
        "benchmark.train": "checkpoint watch",
        "datasets": "atomic base errors index progress scenario view",
        "methods": "code faults identity ranges registry visible",
    }.items()
    for name in names.split()
}


@dataclass(frozen=True)
class Origin:
    """The origin of a result in the folder of ``step``: our files, and the keys of the results it is made from."""

    kind: str  # "model", "observer" or "score"
    step: str
    files: Mapping[str, str]
    on: tuple[str, ...] = ()


@dataclass
class Origins:
    """The origins of all results of a plan, by key, with the present code."""

    known: dict[str, Origin] = field(default_factory=dict)
    _expected: dict[str, Code] = field(default_factory=dict)

    def add(self, key: str, origin: Origin) -> None:
        self.known.setdefault(key, origin)

    def expected(self, key: str) -> Code:
        """The code that a result made now would name."""
        if key not in self._expected:
            origin = self.known[key]
            on = [lineage(self.expected(k)) for k in origin.on]
            self._expected[key] = {"files": dict(origin.files), "on": on}
        return self._expected[key]

    def now(self, key: str, made: Mapping[str, Code | None], store: Store) -> Code:
        """The code of a result that is made now from stored ones; ``made``: that of results not stored yet."""
        origin = self.known[key]
        on = [lineage(made[k] if k in made else self.stored(k, store)) for k in origin.on]
        return {"files": dict(origin.files), "on": on}

    def stored(self, key: str, store: Store) -> Code | None:
        """The code that a stored result names; ``None`` if it names none."""
        return store.code(self._path(key, store))

    def kept(self, key: str, store: Store) -> bool:
        """Whether a result is in the cache, whichever code made it."""
        return bool(self._path(key, store).exists())

    def current(self, key: str, store: Store) -> bool:
        """Whether a result is in the cache, made by the present code or by code that is trusted."""
        return self.kept(key, store) and not self.differs(key, store)

    def differs(self, key: str, store: Store) -> list[str]:
        """The files that changed since a result was made; none if it can be reused."""
        origin, code = self.known[key], self.stored(key, store)
        if store.trust:
            return []
        if code is None and origin.kind != "model" and store.code(store.model(origin.step)) is not None:
            return ["code that is not known"]  # left by an older training of its step
        return differing(code, self.expected(key))

    def _path(self, key: str, store: Store) -> Any:
        origin = self.known[key]
        return store.model(key) if origin.kind == "model" else getattr(store, origin.kind)(origin.step, key)


def lineage(code: Code | None) -> str:
    """A code in 16 digits; "" if it, or one that it was made from, is unknown."""
    return "" if code is None or "" in code["on"] else digest(code)[:16]


def differing(stored: Code | None, expected: Code) -> list[str]:
    """The files in which two codes differ; none if the stored one is unknown."""
    if stored is None:
        return []
    mine, today = stored["files"], expected["files"]
    names = sorted(name for name in {*mine, *today} if mine.get(name) != today.get(name))
    pairs = zip(stored["on"], expected["on"], strict=False)
    same = len(stored["on"]) == len(expected["on"]) and all(a in ("", b) for a, b in pairs)
    return names or ([] if same else ["files of an earlier step"])


def training_files(things: Iterable[Any]) -> Mapping[str, str]:
    """Our files that make the weights of a step with these terms and hooks."""
    return _files(frozenset(TRAINING) | _modules(things))


def evaluation_files(predict: Any) -> Mapping[str, str]:
    """Our files that make a score with this prediction rule."""
    return _files(frozenset(EVALUATION) | _modules([predict]))


def observer_files(term: Any) -> Mapping[str, str]:
    """Our files that make an observer's state, in addition to those of the training that it observes."""
    return _files(_modules([term]))


@cache
def _files(modules: frozenset[str]) -> Mapping[str, str]:
    return ours(sorted(modules), BESIDE.__contains__)


def _modules(things: Iterable[Any]) -> frozenset[str]:
    """The modules that define the classes and functions of these things, and of what their fields hold."""
    found: set[str] = set()
    for thing in things:
        if isinstance(thing, (list, tuple)):
            found |= _modules(thing)
        elif is_dataclass(thing) and not isinstance(thing, type):
            found |= {type(thing).__module__} | _modules(getattr(thing, f.name) for f in fields(thing) if f.init)
        elif callable(thing):
            found.add(getattr(thing, "__module__", None) or "")
    return frozenset(found - {""})
