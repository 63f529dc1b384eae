"""Which of our files a stored result names: those that make its numbers, and no others."""

from importlib.util import find_spec

from contseg.benchmark.contract.check import every_name
from contseg.benchmark.store.origin import BESIDE, Origin, evaluation_files, training_files
from contseg.methods.base import argmax
from contseg.methods.registry import build_method
from contseg.tests.unit.probe import grid


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


def test_a_shared_result_has_one_origin_whichever_method_of_the_grid_made_it() -> None:
    """Else a grid of one of them would train again what a grid of another one stored."""
    found: dict[str, Origin] = {}
    shared = 0
    for name in every_name():
        for key, origin in grid(method=name).origins.known.items():
            shared += key in found
            assert found.setdefault(key, origin) == origin, name
    assert shared > len(every_name())
