"""The harness itself: what a checker may leave out, and what it must not stumble over."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contseg.tests.golden import harness
from contseg.tests.golden.harness import DTYPES, Fixture, manifest, run


def changed(monkeypatch: pytest.MonkeyPatch, folder: Path, file: str, arrays: dict[str, Any]) -> dict[str, Any]:
    """The manifest's entry for a fixture of this name that holds other arrays."""
    (entry,) = (e for e in manifest("golden") if e["file"] == file)
    np.savez(folder / file, **arrays)
    monkeypatch.setattr(harness, "_place", lambda _: folder)
    digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    return {**entry, "sha256": digest, "arrays": {k: entry["arrays"].get(k, {}) for k in arrays}}


def stored(file: str) -> dict[str, np.ndarray]:
    with np.load(harness._place("golden") / file) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", ["kd", "unce", "unkd", "bce_ignore"])
def test_a_fixture_without_a_map_is_checked(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arrays = {k: v for k, v in stored(f"{name}__s1.npz").items() if not k.startswith("released_map")}
    assert arrays
    run("golden", changed(monkeypatch, tmp_path, f"{name}__s1.npz", arrays), torch.float64)


def test_a_step_may_have_two_digits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = np.zeros(256, np.uint8)
    table[20] = 20  # of 10-1's eleventh step only "tvmonitor" is labelled, and it is the last channel
    arrays = {"released_lut__10-1__step10__train__sdr": table}
    fixture = run("golden", changed(monkeypatch, tmp_path, "label_remap__voc.npz", arrays), DTYPES[0])
    assert fixture.compared == set(arrays)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tie_is_excused_in_float32_alone(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arrays = stored("plop_pseudo__s1.npz")
    k = int(np.argmin([arrays[f"paper_margin_{i}"] for i in (0, 1)]))
    entry = changed(monkeypatch, tmp_path, "plop_pseudo__s1.npz", arrays | {f"paper_margin_{k}": np.float64(1e-9)})
    if dtype == torch.float64:  # what is stored is wrong, and is noticed
        with pytest.raises(AssertionError, match=f"paper_margin_{k}"):
            run("golden", entry, dtype)
    else:
        excused = run("golden", entry, dtype).excused
        assert {f"paper_{what}_{k}" for what in ("labels", "factor", "loss", "margin")} <= excused.keys()
        assert f"paper_labels_{1 - k}" not in excused


def test_numbers_beyond_float32_are_excused_there_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arrays = {"released_mean": np.array([1.0, 1e300])}
    entry = changed(monkeypatch, tmp_path, "kd__s1.npz", arrays)
    single, double = (Fixture("golden", entry, d) for d in (torch.float32, torch.float64))
    single.check("released_mean", np.array([1.0, np.inf]))
    assert single.excused and not single.missed()
    with pytest.raises(AssertionError):
        single.check("released_mean", np.array([2.0, np.inf]))
    with pytest.raises(AssertionError):
        double.check("released_mean", np.array([1.0, np.inf]))
    with pytest.raises(AssertionError, match="nothing is excused in float64"):
        double.excuse("released_mean", "no reason will do")
