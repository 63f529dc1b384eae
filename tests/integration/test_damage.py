"""What is damaged is noticed, set aside, named in a warning and done again, with the same numbers."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contseg.benchmark.store.files import Store
from contseg.tests.forked import call, kill, start
from contseg.tests.integration.grid import numbers, records, small, weights

METHODS = ("PLOP", "MiB+SDR")  # the second one reads an observer of step 0
SETS = ("train.updates=20,20", "run.checkpoint_updates=10")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def run(out: Path) -> tuple[int | None, str]:
    """To the end; exit code and all that was said."""
    return call(out.with_name(f"{out.name}.log"), "run", *small(out, *METHODS, sets=SETS))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("grid") / "out"
    code, said = run(out)
    assert code == 0, said
    return out


def under_way(out: Path) -> None:
    """Undo the last steps; kill the first of them behind a checkpoint."""
    for path, record in records(out).items():
        if record["step"] == 1:
            (out / "records" / path).unlink()
            shutil.rmtree(Store(out).step(record["step_key"]))
    process = start(out.with_name("first.log"), "run", *small(out, *METHODS, sets=SETS))
    deadline = time.monotonic() + 120
    while not [*out.rglob("checkpoint.safetensors")] and time.monotonic() < deadline:
        time.sleep(0.02)
    kill(process)


@pytest.mark.parametrize(("harm", "state"), [(flip, "model"), (cut, "observer-*")])
def test_every_kind_of_file(finished: Path, harm: Callable[[Path], None], state: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    under_way(out)
    (checkpoint,) = out.rglob("checkpoint.safetensors")
    (damaged, lost) = (out / "records" / path for path in records(out))
    base = Store(out).step(records(out)[str(lost.relative_to(out / "records"))]["step_key"])
    lost.unlink()  # made again from the score
    harmed = [checkpoint, damaged, *base.glob("score-*.json"), *base.glob(f"{state}.safetensors")]
    assert len(harmed) == 4
    for path in harmed:
        harm(path)
    code, said = run(out)
    assert code == 0, said[-3000:]
    for path in harmed:
        assert f"{path} is damaged: set aside as {path.name}.damaged" in said
        assert path.with_name(f"{path.name}.damaged").exists()
    assert numbers(out) == numbers(finished) and weights(out) == weights(finished)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"NO FULL DISK TESTED: a file system cannot be mounted here ({made.stderr.strip()})")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk(finished: Path, small_disk: Path) -> None:
    """One line; what was there stays; with room again the grid goes on."""
    out, rest = small_disk / "out", small_disk / "rest"
    log = small_disk.with_name("log")
    words = ["run", *small(out, *METHODS, sets=SETS)]
    rest.write_bytes(bytes(6_300_000))
    code, said = call(log, *words)
    lines = [x for x in said.splitlines() if x.startswith("error:")]
    assert code == 2 and len(lines) == 1 and "the disk is full" in lines[0], said
    assert "Traceback" not in said and not [*out.rglob("*.tmp")]
    kept = numbers(out)
    assert all(numbers(finished)[k] == v for k, v in kept.items())
    rest.unlink()
    assert call(log, *words)[0] == 0
    assert numbers(out) == numbers(finished)
