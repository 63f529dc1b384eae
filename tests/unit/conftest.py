"""Methods that are known for the length of a test."""

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture
def own_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is forgotten after it, and its plugin files, ``my_*.py``, are loaded anew."""
    from contseg.methods import registry

    registry.methods()
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    yield
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


@pytest.fixture
def probe_is_known(own_plugins: None) -> None:
    """The method of ``tests.unit.probe``, by its name."""
    from contseg.methods import registry
    from contseg.tests.unit.probe import probe

    registry.register_method("Probe")(probe)
