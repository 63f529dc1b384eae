"""101 of 101 fixtures of ``golden``, and those of the other folders whose operation the suite has."""

from typing import Any

import pytest
import torch

from contseg.tests.golden.harness import DTYPES, FOLDERS, load_checkers, manifest, run

pytestmark = pytest.mark.numeric

CASES = [("golden", e) for e in manifest("golden")]
CASES += [(f, e) for f in FOLDERS[1:] for e in manifest(f) if e["operation"] in load_checkers()]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("folder", "entry"), CASES, ids=[e["file"] for _, e in CASES])
def test_equals_reference(folder: str, entry: dict[str, Any], dtype: torch.dtype) -> None:
    run(folder, entry, dtype)
