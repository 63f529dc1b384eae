"""``check --all``: every method that is registered, and the combinations that papers make, keep the contract."""

import pytest

from contseg.benchmark.contract.check import assert_contract, every_name


@pytest.mark.parametrize("name", every_name())
def test_contract(name: str) -> None:
    assert_contract(name)
