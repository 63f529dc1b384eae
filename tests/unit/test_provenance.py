"""What a record says of the code: a commit of contseg's own repository or none, and a command that works anywhere."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from contseg.benchmark.store import provenance


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    provenance.commit.cache_clear()
    yield
    provenance.commit.cache_clear()


def repository(folder: Path) -> str:
    """A repository of one commit; gives that commit's first 12 digits."""
    folder.mkdir(parents=True)
    own = ["git", "-C", str(folder), "-c", "user.name=A. Uthor", "-c", "user.email=a@example.org"]
    subprocess.run([*own, "init", "--quiet"], check=True)
    (folder / "file.txt").write_text("1")
    subprocess.run([*own, "add", "."], check=True)
    subprocess.run([*own, "commit", "--quiet", "--message", "first"], check=True)
    return subprocess.check_output([*own, "rev-parse", "--short=12", "HEAD"], text=True).strip()


def test_a_checkout_has_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = repository(tmp_path / "contseg")
    monkeypatch.setattr(provenance, "HOME", tmp_path / "contseg")
    assert provenance.commit() == first
    (tmp_path / "contseg/file.txt").write_text("2")
    provenance.commit.cache_clear()
    assert provenance.commit() == f"{first}+"


def test_the_repository_around_an_environment_is_not_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository(tmp_path / "project")
    installed = tmp_path / "project/.venv/lib/python3/site-packages/contseg"
    installed.mkdir(parents=True)
    monkeypatch.setattr(provenance, "HOME", installed)
    assert provenance.commit() == ""


def test_the_repository_of_a_git_hook_is_not_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = repository(tmp_path / "contseg"), repository(tmp_path / "theirs")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "theirs/.git"))
    monkeypatch.setattr(provenance, "HOME", tmp_path / "contseg")
    assert provenance.commit() == first


def test_the_command_is_the_installed_one_and_names_no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["/opt/x/run_benchmark.py", "run", "--data", "voc=/home/me/VOC2012", "--methods", "MiB[kd=1|10]"]
    monkeypatch.setattr(sys, "argv", words)
    assert provenance.command() == "contseg run --data voc=VOC2012 --methods 'MiB[kd=1|10]'"
