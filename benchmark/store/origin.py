"""Which files of contseg made a stored number: written beside it, compared before it is taken over; in no key.

What is kept (a step's weights, an observer's state, a score) names the hashes of the files that made it and the lineage
of what it was made from. If these are not those of today, `run` says so and does the work again, unless
``Store.trust``. What names none is older than this rule, and taken as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any

from contseg.benchmark.store.files import Store, digest
from contseg.methods.code import ours

Code = dict[str, Any]  # {"files": {path: hash}, "on": [lineage of each thing that it was made from]}

# what makes numbers: these modules and all of ours that they import, with the modules of the method's terms and hooks
TRAINING = ("contseg.benchmark.train.trainer", "contseg.datasets.images")
EVALUATION = ("contseg.benchmark.train.evaluate", "contseg.benchmark.train.test_set", "contseg.datasets.images")
# imported there, and left out: what they say stands in the keys, or they only keep, count and report
BESIDE = frozenset(
    f"contseg.{module}"
    for module in (
        *("benchmark.plan.config", "benchmark.plan.build", "benchmark.plan.protocol"),
        *("benchmark.store.origin", "benchmark.store.files", "benchmark.store.claims"),
        *("benchmark.train.checkpoint", "benchmark.train.memory"),
        *(
            "datasets.atomic",
            "datasets.base",
            "datasets.errors",
            "datasets.index",
            "datasets.scenario",
            "datasets.view",
        ),
        *("methods.code", "methods.faults", "methods.ranges", "methods.registry", "methods.visible"),
    )
)


@dataclass(frozen=True)
class Origin:
    """What makes a thing that is kept in the folder of ``step``: our files, and the keys of what it is made from."""

    kind: str  # "model", "observer" or "score"
    step: str
    files: Mapping[str, str]
    on: tuple[str, ...] = ()


@dataclass
class Origins:
    """The origins of all that a plan needs, by key, as the code is today."""

    known: dict[str, Origin] = field(default_factory=dict)
    _expected: dict[str, Code] = field(default_factory=dict)

    def add(self, key: str, origin: Origin) -> None:
        self.known.setdefault(key, origin)

    def expected(self, key: str) -> Code:
        """What a thing made today would say."""
        if key not in self._expected:
            origin = self.known[key]
            on = [lineage(self.expected(k)) for k in origin.on]
            self._expected[key] = {"files": dict(origin.files), "on": on}
        return self._expected[key]

    def now(self, key: str, made: Mapping[str, Code | None], store: Store) -> Code:
        """What a thing says that is made now, from what is stored; ``made``: of what is not stored yet."""
        origin = self.known[key]
        on = [lineage(made[k] if k in made else self.stored(k, store)) for k in origin.on]
        return {"files": dict(origin.files), "on": on}

    def stored(self, key: str, store: Store) -> Code | None:
        """What a kept thing says; ``None`` where it says nothing."""
        return store.code(self._path(key, store))

    def kept(self, key: str, store: Store) -> bool:
        """Whether a thing is in the cache, whoever made it."""
        return bool(self._path(key, store).exists())

    def current(self, key: str, store: Store) -> bool:
        """Whether a thing is kept, and made by the code of today or by code that is trusted."""
        return self.kept(key, store) and not self.differs(key, store)

    def differs(self, key: str, store: Store) -> list[str]:
        """The files by which a kept thing was made otherwise; none if it may be taken over."""
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
    """A code in 16 digits; "" if it is unknown, or made from what is."""
    return "" if code is None or "" in code["on"] else digest(code)[:16]


def differing(stored: Code | None, expected: Code) -> list[str]:
    """The files in which two codes differ. One that is unknown differs in none."""
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
    """Our files that make an observer's state, beside those of the training on which it rides."""
    return _files(_modules([term]))


@cache
def _files(modules: frozenset[str]) -> Mapping[str, str]:
    return ours(sorted(modules), BESIDE.__contains__)


def _modules(things: Iterable[Any]) -> frozenset[str]:
    """Where the classes and functions of these things, and of what their fields hold, are defined."""
    found: set[str] = set()
    for thing in things:
        if isinstance(thing, (list, tuple)):
            found |= _modules(thing)
        elif is_dataclass(thing) and not isinstance(thing, type):
            found |= {type(thing).__module__} | _modules(getattr(thing, f.name) for f in fields(thing) if f.init)
        elif callable(thing):
            found.add(getattr(thing, "__module__", None) or "")
    return frozenset(found - {""})
