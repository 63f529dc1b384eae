"""The material beside the checkout: reference lists, golden values, picture packs. None of it is committed."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("CONTSEG_SHARED") or ROOT.parent / "shared").resolve()


def material(*parts: str) -> Path:
    """``material("golden", "manifest.json")``: the path, or a skip that says what is missing."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no {path}: set CONTSEG_SHARED to the folder of the shared material")
    return path
