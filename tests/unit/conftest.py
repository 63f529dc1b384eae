"""The method of ``tests.unit.probe``, known by name for the length of a test."""

import pytest


@pytest.fixture
def probe_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    from contseg.methods import registry
    from contseg.tests.unit.probe import probe

    registry.methods()
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    registry.register_method("Probe")(probe)
