"""Which of our files a stored result names: those that make its numbers, and no others."""

from importlib.util import find_spec

from contseg.benchmark.store.origin import BESIDE, evaluation_files, training_files
from contseg.methods.base import argmax
from contseg.methods.registry import build_method


def test_a_training_names_the_files_that_make_its_weights() -> None:
    files = set(training_files([*build_method("MiB").terms.values()]))
    assert {"methods/mib.py", "methods/losses.py", "benchmark/train/trainer.py", "benchmark/models/load.py"} <= files
    assert not {"methods/plop.py", "benchmark/train/evaluate.py", "benchmark/train/runner.py"} & files


def test_what_only_stores_or_stands_in_a_key_is_not_named() -> None:
    """``__init__.py`` holds the version: a new version alone repeats no work."""
    for files in (training_files([*build_method("MiB").terms.values()]), evaluation_files(argmax)):
        assert not {"__init__.py", "benchmark/train/checkpoint.py", "benchmark/store/files.py"} & set(files)
        assert not {"benchmark/plan/build.py", "methods/registry.py", "methods/identity.py"} & set(files)


def test_every_module_that_is_left_out_exists() -> None:
    assert [name for name in sorted(BESIDE) if find_spec(name) is None] == []
