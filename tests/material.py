"""The material beside the checkout: reference lists, golden values, image packs. None of it is committed."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("CONTSEG_SHARED") or ROOT.parent / "shared").resolve()


def search_path(*folders: Path | str) -> str:
    """``PYTHONPATH`` of a program that is to find these folders' modules, and what this one finds by its own."""
    own = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join([*map(str, folders), *([own] if own else [])])


def material(*parts: str) -> Path:
    """``material("golden", "manifest.json")``: the path, or a skip that says what is missing."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no {path}: set CONTSEG_SHARED to the folder of the shared material")
    return path
