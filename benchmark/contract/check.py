"""The contract check: does a method behave, and which rule does it break first?

::

    contseg check MiB "PLOP+SDR"            # or --all

    from contseg.benchmark.contract.check import assert_contract      # in tests of your own, after load_plugins
    def test_contract(): assert_contract("MyMethod")

It takes a few seconds a method, on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from contseg.benchmark.contract.rules import RULES, Broken
from contseg.benchmark.contract.toy_run import Build
from contseg.methods.registry import addons, build_method, methods, reason

# combinations of the papers; every add-on is also checked alone
COMPOSED = (
    "LwF+SDR",
    "ILT+SDR",
    "MiB+SDR",
    "PLOP+SDR",
    "EWC+SDR",
    "MiB+EWF",
    "PLOP+EWF",
    "MiB+UCD",
    "PLOP+UCD",
    "MiB+AWT",
    "MiB+NeST",
    "PLOP+NeST[old_rows=frozen]",
    "Joint[like=RCIL]",
    "STAR+UAC",
    "Adapter[adc=true]",
    "SSUL+UCB[threshold=0.5,stretch=false]",
    "MiB+Memory[loss=augm]",
    "DKD+Memory[loss=bce]",
)
CARRIERS = {"UCB": "PLOP"}  # of add-ons that FT cannot carry


@dataclass(frozen=True)
class Report:
    """The result of a check; ``rule`` and ``reason`` are empty if every rule holds."""

    method: str
    rules: int
    rule: str = ""
    reason: str = ""

    @property
    def passed(self) -> bool:
        return not self.rule

    def __str__(self) -> str:
        if self.passed:
            return f"{self.method}: all {self.rules} rules hold"
        return f"{self.method} breaks rule {self.rules}, {self.rule}: {self.reason}"


def check_method(method: str | Build) -> Report:
    """Check a method by its name, or by a function that builds a new one at each call."""
    build = method if callable(method) else lambda: build_method(method)
    name = build().name
    with torch.random.fork_rng(devices=[]):
        for number, rule in enumerate(RULES, 1):
            title = (rule.__doc__ or rule.__name__).partition("\n")[0].rstrip(".")
            try:
                rule(build)
            except Broken as broken:
                return Report(name, number, title, str(broken))
            except Exception as error:
                return Report(name, number, title, reason(error))
    return Report(name, len(RULES))


def every_name() -> list[str]:
    """Every registered method, every add-on on a method that carries it, and the combinations of the papers."""
    return [*methods(), *carried(), *COMPOSED]


def carried() -> list[str]:
    """Every add-on on FT, or on another method where FT has nothing for it to act on."""
    return [f"{CARRIERS.get(name, 'FT')}+{name}" for name in addons()]


def assert_contract(method: str | Build) -> None:
    """For tests: raises an ``AssertionError`` that names the first broken rule."""
    report = check_method(method)
    assert report.passed, str(report)
