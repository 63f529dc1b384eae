"""The planted faults can be planted: each text stands once in its file, and each file's tests are there."""

from contseg.tests import mutation
from contseg.tests.faults import FAULTS


def test_every_fault_has_its_place_and_its_tests() -> None:
    files = mutation.tracked()
    assert len(FAULTS) > 80
    for fault in FAULTS:
        assert mutation.place(fault, files)
        assert mutation.tests_of(fault, files)
