"""Files of the cache: whole, or noticed, set aside and named; a full disk harms nothing that was there."""

import errno
import json
import os
import random
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from contseg.benchmark.store.files import (
    LostStateError,
    Store,
    read_meta,
    read_sealed,
    read_tensors,
    write_json,
    write_sealed,
    write_tensors,
)
from contseg.datasets.errors import UserError

TENSORS = {"weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor([3, 250]), "none": torch.zeros(0)}
META = {"title": "shapes step 0", "progress": {"update": 20, "seconds": 1.5}}
SCORE = {"matrix": {"seen": [[12, 3], [4, 50]]}, "images": 7}


def same_tensors(path: Path) -> bool:
    """Whether the file is read as it was written; ``False`` if it is noticed to be damaged."""
    loaded = read_tensors(path)
    if loaded is None:
        return False
    tensors, meta = loaded
    assert tensors.keys() == TENSORS.keys() and all(torch.equal(tensors[k], v) for k, v in TENSORS.items())
    assert META.items() <= meta.items()
    return True


def same_score(path: Path) -> bool:
    value = read_sealed(path)
    assert value is None or SCORE.items() <= value.items()
    return value is not None


KINDS: list[tuple[str, Callable[[Path], None], Callable[[Path], bool]]] = [
    ("state.safetensors", lambda p: write_tensors(p, TENSORS, META), same_tensors),
    ("score.json", lambda p: write_sealed(p, SCORE), same_score),
]


@pytest.mark.parametrize(("name", "write", "same"), KINDS)
def test_a_flipped_bit_is_noticed_or_does_no_harm(
    name: str, write: Callable[[Path], None], same: Callable[[Path], bool], tmp_path: Path
) -> None:
    """One bit of every byte. Only what means nothing may change unnoticed: padding, the name of a checksum."""
    path, draw = tmp_path / name, random.Random(0)
    write(path)
    content, unnoticed = path.read_bytes(), []
    for i in range(len(content)):
        flipped = bytearray(content)
        flipped[i] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            if same(path):
                unnoticed.append(i)
        assert len(said) == (i not in unnoticed) and all("is damaged: set aside" in str(w.message) for w in said)
    assert len(unnoticed) < 0.15 * len(content)


@pytest.mark.parametrize(("name", "write", "same"), KINDS)
def test_a_file_cut_short_is_set_aside(
    name: str, write: Callable[[Path], None], same: Callable[[Path], bool], tmp_path: Path
) -> None:
    path = tmp_path / name
    write(path)
    content = path.read_bytes()
    for size in (0, 1, 7, 8, 9, len(content) // 2, len(content) - 2):
        path.write_bytes(content[:size])
        with pytest.warns(UserWarning, match=rf"{name} is damaged: set aside as {name}.damaged"):
            assert not same(path)
        assert not path.exists() and (tmp_path / f"{name}.damaged").read_bytes() == content[:size]
    write(path)
    assert same(path)


def test_a_file_without_a_seal_is_taken_as_it_is(tmp_path: Path) -> None:
    """Earlier caches have none over their metadata."""
    from safetensors.torch import save_file

    path = tmp_path / "old.safetensors"
    write_tensors(path, TENSORS, META)
    header = {"format": "1", "sha256": read_meta(path)["sha256"], "meta": json.dumps(META)}
    save_file(TENSORS, path, metadata=header)
    assert same_tensors(path)


def test_another_format_is_said(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(TENSORS, tmp_path / "new.safetensors", metadata={"format": "2"})
    with pytest.raises(UserError, match=r"new.safetensors was written by an incompatible version"):
        read_tensors(tmp_path / "new.safetensors")
    write_sealed(tmp_path / "records/a.json", {"format": 3})
    with pytest.raises(UserError, match=r"a.json was written by an incompatible version"):
        Store(tmp_path).record(Path("a.json"))


def test_a_record_of_format_1_is_as_good_as_none(tmp_path: Path) -> None:
    write_sealed(tmp_path / "records/a.json", {"format": 1, "key": "k"})
    write_sealed(tmp_path / "records/b.json", {"format": 2, "key": "k"})
    assert [Store(tmp_path).record_of(Path(f"{n}.json"))[0] for n in "ab"] == [None, "k"]


def test_lost_terms_have_their_step_done_again(tmp_path: Path) -> None:
    """A model is of no use without the state of its terms."""
    store = Store(tmp_path)
    write_tensors(store.terms("k"), TENSORS, {})
    write_tensors(store.model("k"), TENSORS, {"terms": True})
    assert store.read_terms("k").keys() == TENSORS.keys()
    store.terms("k").write_bytes(b"cut")
    with pytest.warns(UserWarning, match=r"terms.safetensors is damaged"), pytest.raises(LostStateError):
        store.read_terms("k")
    assert not store.model("k").exists()


@pytest.mark.parametrize(
    ("number", "wanted"),
    [
        (errno.ENOSPC, "the disk is full: .* was not written; nothing earlier was harmed"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EROFS, "cannot write .*; choose another folder with --out"),
        (errno.EACCES, "cannot write"),
    ],
)
@pytest.mark.parametrize("write", [lambda p: write_json(p, {"a": 2}), lambda p: write_tensors(p, TENSORS, META)])
def test_a_full_disk_harms_nothing(
    number: int, wanted: str, write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("what was there")

    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=wanted):
        write(path)
    assert path.read_text() == "what was there" and [*tmp_path.iterdir()] == [path]


def test_a_finished_step_leaves_no_half_written_file(tmp_path: Path) -> None:
    """One that a killed program was writing; the step's own files stay."""
    store = Store(tmp_path)
    folder = store.step("ab" * 32)
    folder.mkdir(parents=True)
    left = folder / ".observer-1.safetensors.9b62cfc1.tmp"
    for path in (left, store.model("ab" * 32), store.checkpoint("ab" * 32), store.begun("ab" * 32)):
        path.write_text("x")
    store.drop_checkpoint("ab" * 32)
    assert [p.name for p in folder.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    "value",
    [
        {"empty": [[], {}, [[]]], "é": 'ü\n\\"/\u2028', "numbers": [1e-7, -0.0, 1e300, 2**70, True, None]},
        {"a file's name that is not UTF-8": os.fsdecode(b"\xff")},
        SCORE,
        [],
    ],
)
def test_json_has_the_bytes_of_pythons_own_encoder(value: object, tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", value)
    assert (tmp_path / "file.json").read_text() == json.dumps(value, indent=1) + "\n"


def test_json_holds_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["state.safetensors", "score.json"])
def test_a_file_that_may_not_be_read_is_not_missing(name: str, tmp_path: Path) -> None:
    """Another user's, for example: a step without its parent's weights would be tried again forever."""
    path = tmp_path / name
    path.symlink_to(path)  # nobody can open it, root included
    with pytest.raises(UserError, match=f"cannot read .*{name}: "):
        read_tensors(path) if path.suffix == ".safetensors" else read_sealed(path)
    assert path.is_symlink()


def test_a_score_that_could_not_be_read_for_once_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system that does not answer, for example: the file is not damaged."""
    store, path = Store(tmp_path), tmp_path / "score.json"
    write_sealed(path, SCORE | {"code": {"files": {}, "on": []}})

    def fail(_: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="Input/output error"):
        patch.setattr(Path, "read_text", fail)
        store.code(path)
    assert store.code(path) == {"files": {}, "on": []}
