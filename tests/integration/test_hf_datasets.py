"""Hugging Face's ``datasets`` installed beside this project breaks nothing, in one process or in two.

Accelerate asks for it by metadata (``is_datasets_available``) and then runs ``from datasets import IterableDataset``,
which finds this project's package, first on the path. Without the names that it re-exports, two processes die inside
``prepare``.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from contseg.tests.material import ROOT

SCRIPT = """
import torch
from accelerate import Accelerator
from accelerate.utils import is_datasets_available

from contseg import datasets

accelerator = Accelerator(cpu=True)
assert is_datasets_available(), "the stand-in must be taken for Hugging Face's"
assert datasets.__file__ == {ours!r}, datasets.__file__

loader = torch.utils.data.DataLoader(torch.arange(16.0), batch_size=4)
model = torch.nn.Linear(1, 1)
model, optimizer, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), loader)
seen = 0
for x in loader:
    accelerator.backward(model(x[:, None]).mean())
    optimizer.step()
    seen += len(x)
print(f"process {{accelerator.process_index}} of {{accelerator.num_processes}} saw {{seen}}", flush=True)
accelerator.end_training()
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed packages with a stand-in for Hugging Face's ``datasets``."""
    (tmp_path / "site/datasets").mkdir(parents=True)
    (tmp_path / "site/datasets/__init__.py").write_text("class Dataset: pass\nclass IterableDataset: pass\n")
    (tmp_path / "site/datasets-4.0.0.dist-info").mkdir()
    (tmp_path / "site/datasets-4.0.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: datasets\nVersion: 4.0.0\n"
    )
    return tmp_path / "site"


@pytest.mark.parametrize("processes", [1, 2])
def test_prepare_with_hugging_face_datasets_beside(site: Path, tmp_path: Path, processes: int) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(ours=str(ROOT / "datasets/__init__.py")))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"] if processes == 2 else []
    done = subprocess.run(
        [sys.executable, *launch, str(script)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(site)])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = sorted(re.findall(r"process \d of \d saw \d+", done.stdout))  # two processes may share a line
    assert told == [f"process {i} of {processes} saw {16 // processes}" for i in range(processes)]


def test_the_names_that_others_ask_for_are_torchs() -> None:
    import torch.utils.data

    from contseg import datasets

    assert datasets.IterableDataset is torch.utils.data.IterableDataset
    assert datasets.Dataset is torch.utils.data.Dataset
    with pytest.raises(AttributeError, match="load_dataset"):
        datasets.load_dataset  # noqa: B018
