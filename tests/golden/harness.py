"""Every golden fixture as a test: values and gradients of official code and of the intended formulas.

To add an operation write ``tests/golden/op_<anything>.py`` (found by its name)::

    @operation("kd")                                   # "operation" of the manifest, of golden or of golden_later
    def kd(fixture: Fixture) -> None:
        new = fixture.leaf("in_logits_new")            # a leaf tensor of the precision under test
        value = ...                                    # the suite's own term on these tensors
        fixture.check("released_mean", value)
        fixture.check_gradient("released_grad_mean", value, new)
        fixture.no_counterpart("released_cosine", "an option of the release that no method uses")

Every stored reference must be named once by one of the last three, else the fixture fails: nothing is left out
silently. Each fixture runs in float64 (tolerances of the manifest) and in float32 (rtol 2e-4, atol 2e-5 max|ref|).
In float32 a reference may be excused, never in float64, and only because of numbers that the fixture itself holds: a
margin or a range below the rounding, a value beyond the largest float32.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from contseg.datasets.scenario import Step
from contseg.methods.base import Batch, SegOutput
from contseg.tests.material import SHARED

SELECTION = Path(__file__).parent / "selection"
FOLDERS = ("golden", "golden_later", "golden_2026")
DTYPES = (torch.float64, torch.float32)
Checker = Callable[["Fixture"], None]
CHECKERS: dict[str, Checker] = {}


def operation(*names: str) -> Callable[[Checker], Checker]:
    """The decorated function checks every fixture of these operations."""

    def decorate(checker: Checker) -> Checker:
        for name in names:
            assert name not in CHECKERS, f"two checkers for {name!r}"
            CHECKERS[name] = checker
        return checker

    return decorate


def load_checkers() -> dict[str, Checker]:
    """Import every ``op_*.py`` of this folder."""
    for path in sorted(Path(__file__).parent.glob("op_*.py")):
        importlib.import_module(f"contseg.tests.golden.{path.stem}")
    return CHECKERS


@cache
def manifest(folder: str) -> list[dict[str, Any]]:
    """The entries of a folder: of the shared material or, without it, of the small selection kept here."""
    path = _place(folder) / "manifest.json"
    return json.loads(path.read_text())["fixtures"] if path.is_file() else []


def _place(folder: str) -> Path:
    return SHARED / folder if (SHARED / folder).is_dir() else SELECTION / folder


class Fixture:
    """One file of the material in one precision, and a book of which of its references were compared."""

    def __init__(self, folder: str, entry: dict[str, Any], dtype: torch.dtype) -> None:
        content = (_place(folder) / entry["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"], f"{entry['file']} is damaged"
        with np.load(io.BytesIO(content)) as file:
            self.arrays = {key: file[key] for key in file.files}
        self.name, self.entry, self.dtype = entry["file"].removesuffix(".npz"), entry, dtype
        self.compared: set[str] = set()
        self.without_counterpart: dict[str, str] = {}
        self.excused: dict[str, str] = {}

    # --- inputs

    def __contains__(self, key: str) -> bool:
        return key in self.arrays or f"{key}__idx" in self.arrays

    def __getitem__(self, key: str) -> Any:
        """A configuration value: a number, a string or a list."""
        return self.arrays[key].tolist()

    def tensor(self, key: str) -> Tensor:
        """An input: floats in the precision under test, integers (labels) as int64, booleans as they are."""
        found = torch.from_numpy(self.arrays[key].copy())
        if found.is_floating_point():
            return found.to(self.dtype)
        return found if found.dtype == torch.bool else found.to(torch.int64)

    def leaf(self, key: str) -> Tensor:
        """The same, to take gradients with respect to."""
        return self.tensor(key).requires_grad_()

    # --- comparison

    def check(self, key: str, value: Tensor | np.ndarray | float) -> None:
        """Compare a value with a stored reference, whole or sampled."""
        got = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        if key in self.arrays:
            self._compare(key, got)
            return
        got = got.astype(np.float64).ravel()
        self._compare(f"{key}__val", got[self.arrays[f"{key}__idx"]])
        self._compare(f"{key}__l2", np.sqrt((got**2).sum()))
        # the rounding of n numbers, as a random walk: l2 sqrt(n) times that of one
        self._compare(f"{key}__sum", got.sum(), scale=float(self.arrays[f"{key}__l2"]) * got.size**0.5)

    def check_gradient(self, key: str, value: Tensor, leaf: Tensor) -> None:
        """Compare d value / d leaf; zero where the value does not depend on the leaf."""
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value, leaf, retain_graph=True, allow_unused=True)
        else:
            gradient = None
        self.check(key, torch.zeros_like(leaf) if gradient is None else gradient)

    def no_counterpart(self, key: str, reason: str) -> None:
        """Say why a stored reference belongs to nothing in the suite."""
        for name in (key, f"{key}__idx"):
            if name in self.arrays:
                self.without_counterpart[key] = reason

    def resolves(self, margin: float, scale: float = 1.0) -> bool:
        """Whether this precision tells numbers of about ``scale`` apart that differ by a stored ``margin``."""
        return self.dtype == torch.float64 or margin > 100 * torch.finfo(self.dtype).eps * scale

    def excuse(self, key: str, reason: str) -> None:
        """Say why no implementation in float32 can give a reference. ``AssertionError`` in float64."""
        assert self.dtype != torch.float64, f"{key}: nothing is excused in float64"
        for name in (key, f"{key}__idx"):
            if name in self.arrays:
                self.excused[key] = reason

    def missed(self) -> list[str]:
        """References that were neither compared nor declared to have no counterpart."""
        stored = {k for k in self.arrays if not k.startswith(("in_", "cfg_")) and not k.endswith("__idx")}
        excused = {
            name + part
            for name in (*self.without_counterpart, *self.excused)
            for part in ("", "__val", "__sum", "__l2")
        }
        return sorted(stored - self.compared - excused)

    def _compare(self, key: str, got: np.ndarray, scale: float | None = None) -> None:
        self.compared.add(key)
        reference = self.arrays[key]
        assert got.shape == reference.shape, f"{key}: shape {got.shape}, reference {reference.shape}"
        if reference.dtype.kind not in "f":
            np.testing.assert_array_equal(got, reference, err_msg=key)
            return
        exact = self.entry["arrays"][key].get("tolerance", {"rtol": 1e-9, "atol": 1e-12})
        if self.dtype == torch.float64:
            rtol, atol = exact["rtol"], exact["atol"]
        else:
            beyond = np.isfinite(reference) & (np.abs(reference) > np.finfo(np.float32).max)
            if beyond.any():
                self.excused[key] = "numbers beyond the largest float32"
                got, reference = np.where(beyond, 0, got), np.where(beyond, 0, reference)
            finite = np.abs(reference[np.isfinite(reference)])
            scale = scale if scale is not None else finite.max(initial=0.0)
            rtol, atol = max(2e-4, exact["rtol"]), max(2e-5 * float(scale), 1e-30)
        np.testing.assert_allclose(got, reference, rtol=rtol, atol=atol, err_msg=f"{key} in {self.dtype}")


def run(folder: str, entry: dict[str, Any], dtype: torch.dtype) -> Fixture:
    """Check one fixture; ``AssertionError`` says which reference disagrees."""
    checker = load_checkers().get(entry["operation"])
    assert checker is not None, f"no checker for {entry['operation']!r}: add tests/golden/op_*.py"
    fixture = Fixture(folder, entry, dtype)
    checker(fixture)
    assert not fixture.missed(), f"{fixture.name}: not compared: {', '.join(fixture.missed())}"
    return fixture


# --- what checkers share --------------------------------------------------------------------------------------------


def make_step(old_classes: int, new_classes: int, setup: str = "disjoint", index: int = 1) -> Step:
    """A step with so many old classes, background included, and so many new ones."""
    old = tuple(range(1, old_classes))
    return Step(index, setup, old, tuple(range(len(old) + 1, len(old) + 1 + new_classes)))


def make_batch(
    fixture: Fixture,
    step: Step,
    labels: Tensor,
    logits: Tensor | None = None,
    old_logits: Tensor | None = None,
    features: Tensor | None = None,
    old_features: Tensor | None = None,
) -> Batch:
    """A batch as the trainer makes it; what the operation does not read is left at zero."""

    def output(z: Tensor | None, f: Tensor | None, classes: int) -> SegOutput:
        z = labels.new_zeros(len(labels), classes, 1, 1, dtype=fixture.dtype) if z is None else z
        f = labels.new_zeros(len(labels), 1, 1, 1, dtype=fixture.dtype) if f is None else f
        return SegOutput(z, f, f)

    images = torch.zeros(len(labels), 3, *labels.shape[1:], dtype=fixture.dtype)
    old = output(old_logits, old_features, step.n_old)
    return Batch(images, labels, output(logits, features, step.n_classes), old, step)
