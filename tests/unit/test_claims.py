"""One holder a step, whoever dies, sleeps or comes at the same moment."""

import errno
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contseg.benchmark.cli.cache import listing, prune
from contseg.benchmark.store import claims
from contseg.benchmark.store.claims import STALE, Claim
from contseg.benchmark.store.files import Store
from contseg.datasets.errors import UserError


@pytest.fixture
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leave(folder: Path, pid: int, place: str = "", age: float = 0, name: str = "claim.json", **more: Any) -> None:
    """The claim of another process."""
    path = folder / name
    content = {"id": "old", "host": socket.gethostname(), "place": place or claims._place(), "pid": pid, **more}
    path.write_text(json.dumps(content))
    then = path.stat().st_mtime - age
    os.utime(path, (then, then))


def test_one_holder_until_it_gives_the_step_back(tmp_path: Path) -> None:
    one, other = Claim(tmp_path / "step"), Claim(tmp_path / "step")
    assert one.acquire() and not other.acquire()
    assert other.holder() == f"{socket.gethostname()}:{os.getpid()}"
    one.release()
    assert not [*tmp_path.rglob("*.*")]
    assert other.acquire()


@pytest.mark.parametrize(
    ("place", "age", "taken"),
    [("", 0, True), ("elsewhere", 0, False), ("elsewhere", STALE / 2, False), ("elsewhere", STALE + 5, True)],
)
def test_a_dead_claimant_is_followed(tmp_path: Path, dead: int, place: str, age: float, taken: bool) -> None:
    """At once on this machine; after a minute of silence from another one, or another container of its host name."""
    leave(tmp_path, dead, place, age)
    claim = Claim(tmp_path)
    assert claim.acquire() is taken
    if taken:
        assert not Claim(tmp_path).acquire()
        claim.release()
        assert not [*tmp_path.iterdir()]


def test_a_process_number_that_is_used_again_is_not_the_claimant(tmp_path: Path) -> None:
    leave(tmp_path, os.getpid(), started=claims._started(os.getpid()))
    assert not Claim(tmp_path).acquire()
    leave(tmp_path, os.getpid(), started="1")
    assert Claim(tmp_path).acquire()


def test_a_claim_of_another_namespace_of_process_numbers_stands(tmp_path: Path) -> None:
    """What another container of this host name claims, where its process number is nobody's or somebody else's here."""
    script = (
        "import sys, pathlib, contseg.benchmark.store.claims as c\nprint(c.Claim(pathlib.Path(sys.argv[1])).acquire())"
    )
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", script, str(tmp_path)]
    try:
        inside = subprocess.run(unshare, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("no unshare")
    if inside.returncode and "Operation not permitted" in inside.stderr:
        pytest.skip("namespaces are not available here")
    assert inside.stdout.strip() == "True", inside.stderr
    content = json.loads((tmp_path / "claim.json").read_text())
    (tmp_path / "claim.json").write_text(json.dumps({**content, "pid": 2**22 + 1}))  # a number that nobody has here
    assert not Claim(tmp_path).acquire()
    os.utime(tmp_path / "claim.json", (1, 1))
    assert Claim(tmp_path).acquire()


@pytest.mark.parametrize("content", [{}, {"place": ""}])
def test_without_a_place_no_process_is_asked_for(
    tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch, content: dict[str, str]
) -> None:
    """Claims of earlier versions, and systems other than Linux: on Windows the question would be Ctrl-C."""
    monkeypatch.setattr(claims, "_place", lambda: content.get("place", "here"))
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a signal was sent"))
    path = tmp_path / "claim.json"
    path.write_text(json.dumps({"id": "old", "host": socket.gethostname(), "pid": dead, **content}))
    assert not Claim(tmp_path).acquire()
    os.utime(path, (1, 1))
    assert Claim(tmp_path).acquire()


def test_a_pipe_in_place_of_a_claim_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "claim.json")
    assert not Claim(tmp_path).acquire()
    os.utime(tmp_path / "claim.json", (1, 1))
    claim = Claim(tmp_path)
    assert claim.acquire()
    claim.release()
    assert not [*tmp_path.iterdir()]


def test_a_claim_cut_short_by_a_full_disk_grows_stale(tmp_path: Path) -> None:
    leave(tmp_path, 0, age=STALE + 5)
    (tmp_path / "claim.json").write_text("")
    assert not Claim(tmp_path).acquire()  # just written, whoever it was
    os.utime(tmp_path / "claim.json", (1, 1))
    assert Claim(tmp_path).acquire() and not Claim(tmp_path).acquire()


def interrupted(monkeypatch: pytest.MonkeyPatch, by: Callable[[], None]) -> None:
    """Something happens just after the next claim was found abandoned."""
    looked = Claim._abandoned

    def look(self: Claim, path: Path) -> bool:
        answer = looked(self, path)
        monkeypatch.setattr(Claim, "_abandoned", looked)
        by()
        return answer

    monkeypatch.setattr(Claim, "_abandoned", look)


def test_of_two_that_saw_a_claim_abandoned_one_gets_it(
    tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(tmp_path, dead)
    first, second = Claim(tmp_path), Claim(tmp_path)
    got: list[bool] = []
    interrupted(monkeypatch, lambda: got.append(first.acquire()))
    assert not second.acquire() and got == [True]
    assert not Claim(tmp_path).acquire()  # the first one's claim stands


def test_what_was_abandoned_may_be_done_and_given_back_meanwhile(
    tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(tmp_path, dead)
    first, second, third = Claim(tmp_path), Claim(tmp_path), Claim(tmp_path)

    def meanwhile() -> None:
        assert first.acquire()
        first.release()
        assert third.acquire()

    interrupted(monkeypatch, meanwhile)
    assert not second.acquire()
    assert not Claim(tmp_path).acquire()
    third.release()
    assert not [*tmp_path.iterdir()]


def test_a_holder_that_slept_does_not_give_back_its_followers_claim(tmp_path: Path) -> None:
    sleeper, follower = Claim(tmp_path), Claim(tmp_path)
    assert sleeper.acquire()
    os.utime(tmp_path / "claim.json", (1, 1))
    assert follower.acquire()
    sleeper.release()
    assert not Claim(tmp_path).acquire()
    follower.release()
    assert not [*tmp_path.iterdir()]


def test_the_last_of_several_dead_ones_counts(tmp_path: Path, dead: int) -> None:
    leave(tmp_path, dead)
    leave(tmp_path, os.getpid(), name="claim-old.json", id="newer")
    assert not Claim(tmp_path).acquire()
    leave(tmp_path, dead, name="claim-old.json", id="newer")
    assert Claim(tmp_path).acquire()


def test_the_heartbeat_keeps_a_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT", 0.01)
    claim = Claim(tmp_path)
    assert claim.acquire()
    os.utime(claim.path, (1, 1))
    beats = threading.Event()
    while claim.path.stat().st_mtime == 1:
        beats.wait(0.01)
    assert not Claim(tmp_path).acquire()
    claim.release()


def test_many_at_once(tmp_path: Path, dead: int) -> None:
    """Twenty threads run for the same steps, every other one abandoned: one holder each."""
    folders = [tmp_path / str(i) for i in range(20)]
    for folder in folders:
        folder.mkdir()
        if int(folder.name) % 2:
            leave(folder, dead)
    got: list[str] = []
    start = threading.Barrier(20)

    def race() -> None:
        start.wait()
        got.extend(f.name for f in folders if Claim(f).acquire())

    threads = [threading.Thread(target=race) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(f.name for f in folders)


def test_a_full_disk_leaves_no_empty_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(json, "dumps", full)
    with pytest.raises(UserError, match="the disk is full"):
        Claim(tmp_path).acquire()
    assert not [*tmp_path.iterdir()]


def test_a_step_that_somebody_trains_is_not_pruned(tmp_path: Path, dead: int) -> None:
    """Its first checkpoint comes after minutes; without the folder nobody would resume from it."""
    store, under_way, left = Store(tmp_path), "a" * 64, "b" * 64
    claim = Claim(store.step(under_way))
    assert claim.acquire()
    store.step(left).mkdir(parents=True)
    leave(store.step(left), dead)
    assert prune(store, None, True).startswith("removed 1 steps")
    assert store.steps() == [under_way]
    assert "(under way)" in listing(store)
    claim.release()
