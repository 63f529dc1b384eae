"""Archives that mean harm, or are simply broken: refused in one line, and nothing is left behind."""

import gzip
import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from contseg.datasets.errors import UserError
from contseg.datasets.tools.archive import unpack

FILES = {"top/a.txt": b"first", "top/sub/b.bin": bytes(1024), "top/empty": b""}


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, content in files.items():
            z.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes], extra: tuple[tarfile.TarInfo, ...] = (), mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as t:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            t.addfile(info, io.BytesIO(content))
        for info in extra:
            t.addfile(info)
    return path


def entry(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def refused(archive: Path, *parts: str, **bounds: int) -> None:
    """One line that has these parts; no folder, and nothing beside the archive."""
    into = archive.parent / "into"
    before = sorted(archive.parent.parent.rglob("*"))
    with pytest.raises(UserError) as error:
        unpack(archive, into, **bounds)
    text = str(error.value)
    assert "\n" not in text
    assert str(archive) in text
    for part in parts:
        assert part in text
    assert sorted(archive.parent.parent.rglob("*")) == before


@pytest.mark.parametrize("mode", ["zip", "w", "w:gz", "w:xz"])
def test_content(tmp_path, mode):
    archive = tmp_path / "a"
    make_zip(archive, FILES) if mode == "zip" else make_tar(archive, FILES, mode=mode)
    assert unpack(archive, tmp_path / "into") == 3
    found = {
        str(p.relative_to(tmp_path / "into")): p.read_bytes() for p in (tmp_path / "into").rglob("*") if p.is_file()
    }
    assert found == FILES


def test_keep_renames_and_leaves_out(tmp_path):
    archive = make_tar(tmp_path / "a.tgz", FILES)
    assert unpack(archive, tmp_path / "into", lambda n: n.removeprefix("top/") if "sub" in n else None) == 1
    assert [str(p.relative_to(tmp_path / "into")) for p in (tmp_path / "into").rglob("*.*")] == ["sub/b.bin"]


def test_an_existing_folder_is_never_touched(tmp_path):
    (tmp_path / "into").mkdir()
    (tmp_path / "into" / "mine").write_text("mine")
    with pytest.raises(FileExistsError):
        unpack(make_zip(tmp_path / "a.zip", FILES), tmp_path / "into")
    assert (tmp_path / "into" / "mine").read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["../out.txt", "top/../../out.txt", "/etc/out.txt", "C:/out.txt", "..\\out.txt", "top\\..\\..\\out.txt"]
)
def test_paths_that_lead_outside(tmp_path, name):
    for archive in (
        make_zip(tmp_path / "a.zip", {**FILES, name: b"x"}),
        make_tar(tmp_path / "a.tgz", {**FILES, name: b"x"}),
    ):
        refused(archive, "outside")


def test_links_and_devices(tmp_path):
    for number, info in enumerate(
        [
            entry("top/link", tarfile.SYMTYPE, "/etc/passwd"),
            entry("top/link", tarfile.SYMTYPE, "a.txt"),
            entry("top/link", tarfile.LNKTYPE, "top/a.txt"),
            entry("top/pipe", tarfile.FIFOTYPE),
            entry("top/device", tarfile.CHRTYPE),
        ]
    ):
        refused(make_tar(tmp_path / f"{number}.tgz", FILES, (info,)), "link or a device", info.name)


def test_a_link_in_a_zip(tmp_path):
    link = zipfile.ZipInfo("top/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive = make_zip(tmp_path / "a.zip", FILES)
    with zipfile.ZipFile(archive, "a") as z:
        z.writestr(link, "/etc/passwd")
    refused(archive, "link", "top/link")


def test_a_path_given_twice(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z, pytest.warns(UserWarning, match="Duplicate"):
        z.writestr("top/a", "1")
        z.writestr("top/a", "2")
    refused(tmp_path / "a.zip", "top/a", "twice")
    refused(make_zip(tmp_path / "b.zip", {"top": b"a file", "top/a": b"in it"}))


def test_bombs(tmp_path):
    big = {"zeros": bytes(1 << 20)}
    for archive in (make_zip(tmp_path / "a.zip", big), make_tar(tmp_path / "a.tgz", big)):
        assert archive.stat().st_size < 5000
        refused(archive, "more than 1,000,000 bytes", max_bytes=1_000_000)
    many = {f"f{k}": b"" for k in range(101)}
    for archive in (make_zip(tmp_path / "b.zip", many), make_tar(tmp_path / "b.tgz", many)):
        refused(archive, "100 files", max_files=100)


def test_a_zip_that_lies_about_its_size(tmp_path):
    archive = make_zip(tmp_path / "a.zip", {"zeros": bytes(1 << 20)})
    data = archive.read_bytes()
    size = (1 << 20).to_bytes(4, "little")
    assert data.count(size) == 2  # in the local header and in the directory
    archive.write_bytes(data.replace(size, (1000).to_bytes(4, "little")))
    refused(archive)


def test_a_header_that_would_fill_the_memory(tmp_path):
    """A PAX header that declares 4 GB: tarfile would read it in one piece."""
    header = entry("pax", tarfile.XHDTYPE)
    header.size = 4 << 30
    (tmp_path / "a.tar").write_bytes(header.tobuf(tarfile.PAX_FORMAT) + bytes(4096))
    refused(tmp_path / "a.tar", "header")


def test_an_endless_stream_behind_a_gzip(tmp_path):
    """Skipping an entry decompresses it: the bound holds for what is skipped, too."""
    info = tarfile.TarInfo("zeros")
    info.size = 200 << 20
    with gzip.open(tmp_path / "a.tgz", "wb") as f:
        f.write(info.tobuf() + bytes(200 << 20))
    refused(tmp_path / "a.tgz", "more than", max_bytes=1 << 20)


def test_truncated(tmp_path):
    noise = {"a": b"", "noise": bytes(range(256)) * 64}
    for archive in (
        make_zip(tmp_path / "a.zip", noise),
        make_tar(tmp_path / "a.tgz", noise),
        make_tar(tmp_path / "a.tar", noise, mode="w"),
    ):
        archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 4])
        refused(archive, "damaged")


def test_corrupt(tmp_path):
    archive = make_zip(tmp_path / "a.zip", {"noise": bytes(range(256)) * 64})
    data = bytearray(archive.read_bytes())
    data[60] ^= 255
    archive.write_bytes(data)
    refused(archive, "damaged")


def test_no_archive_at_all(tmp_path):
    (tmp_path / "page.zip").write_bytes(b"<!DOCTYPE html><html>404</html>")
    refused(tmp_path / "page.zip", "web page")
    (tmp_path / "text.zip").write_bytes(b"hello " * 500)
    refused(tmp_path / "text.zip", "neither a zip nor a tar")
    (tmp_path / "empty.zip").write_bytes(b"")
    refused(tmp_path / "empty.zip")
    refused(tmp_path / "missing.zip", "no archive")


def test_an_encrypted_zip(tmp_path):
    archive = make_zip(tmp_path / "a.zip", {"a": b"x"})
    data = archive.read_bytes()
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = data.index(mark) + offset
        data = data[:at] + bytes([data[at] | 1]) + data[at + 1 :]
    archive.write_bytes(data)
    refused(archive, "cannot be unpacked")
