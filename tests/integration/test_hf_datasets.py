"""Hugging Face's ``datasets`` installed beside this project stays what it is, in one process or in two.

Accelerate asks for it by metadata (``is_datasets_available``) and then runs ``from datasets import IterableDataset``.
This project's own ``datasets`` is ``contseg.datasets``, also for a program that lies in the checkout.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from contseg.tests.integration.grid import small
from contseg.tests.material import ROOT, search_path

SCRIPT = """
import torch
from accelerate import Accelerator
from accelerate.utils import is_datasets_available

import datasets
from contseg.datasets.scenario import parse_scenario

accelerator = Accelerator(cpu=True)
assert is_datasets_available(), "the stand-in must be taken for Hugging Face's"
assert datasets.__file__ == {theirs!r}, datasets.__file__
assert len(parse_scenario("shapes/3-1/overlapped", 6).steps) == 4

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
    script.write_text(SCRIPT.format(theirs=str(site / "datasets/__init__.py")))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"] if processes == 2 else []
    done = subprocess.run(
        [sys.executable, *launch, str(script)],
        env={**os.environ, "PYTHONPATH": search_path(site)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = sorted(re.findall(r"process \d of \d saw \d+", done.stdout))  # two processes may share a line
    assert told == [f"process {i} of {processes} saw {16 // processes}" for i in range(processes)]


def test_the_checkouts_program_hides_nothing(site: Path, tmp_path: Path) -> None:
    """``python run_benchmark.py`` puts its own folder first on the path; it takes it off again."""
    plugin = tmp_path / "looks.py"
    plugin.write_text(
        "import datasets\nfrom contseg.methods.base import Method\n"
        "from contseg.methods.registry import register_method\n"
        f"assert datasets.__file__ == {str(site / 'datasets/__init__.py')!r}, datasets.__file__\n\n\n"
        '@register_method("Looks")\ndef looks() -> Method:\n    return Method("Looks", {})\n'
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"} | {"PYTHONPATH": search_path(site)}
    words = ["plan", *small(tmp_path / "out", "FT"), "--plugin", str(plugin)]
    line = [sys.executable, "run_benchmark.py", *map(str, words)]
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
