"""Downloads over loopback: resumed, checked, complete or absent; every failure is one line."""

import hashlib
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from contseg.datasets.errors import UserError
from contseg.datasets.tools import download
from contseg.datasets.tools.download import Patience, Source, fetch
from contseg.tests.unit.loopback import Site, serve

CONTENT = bytes(range(256)) * 1200  # 300 kB


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def source(site: Site, content: bytes = CONTENT) -> Source:
    return Source(site.url, "file.bin", f"md5:{hashlib.md5(content).hexdigest()}", "http://the.official/page")


def get(site: Site, folder: Path, content: bytes = CONTENT, timeout: float = 5.0) -> Path:
    return fetch(source(site, content), folder, say=lambda line: None, patience=Patience(timeout, retries=3, pause=0.0))


def one_line(error: pytest.ExceptionInfo[UserError], *parts: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


def test_plain(tmp_path):
    with serve(Site(CONTENT)) as site:
        path = get(site, tmp_path / "new" / "folder")
    assert path.read_bytes() == CONTENT
    assert site.asked == [""]
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


def test_a_broken_line_is_resumed_where_it_broke(tmp_path):
    with serve(Site(CONTENT, cut_after=[100_000, 50_000])) as site:
        path = get(site, tmp_path)
    assert path.read_bytes() == CONTENT
    assert site.asked == ["", "bytes=100000-", "bytes=150000-"]


def test_more_breaks_than_retries_as_long_as_bytes_arrive(tmp_path):
    with serve(Site(CONTENT, cut_after=[30_000] * 8)) as site:
        assert get(site, tmp_path).read_bytes() == CONTENT
    assert len(site.asked) == 9  # eight times 30 000 bytes, then the rest


def test_a_killed_download_goes_on(tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:123_456])
    with serve(Site(CONTENT)) as site:
        assert get(site, tmp_path).read_bytes() == CONTENT
    assert site.asked == ["bytes=123456-"]


def test_a_complete_part_is_not_fetched_again(tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    with serve(Site(CONTENT)) as site:
        assert get(site, tmp_path).read_bytes() == CONTENT
    assert site.asked == [f"bytes={len(CONTENT)}-"]


def test_a_server_without_ranges_starts_again(tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    with serve(Site(CONTENT, ranges=False)) as site:
        assert get(site, tmp_path).read_bytes() == CONTENT


def test_the_part_of_another_file_is_thrown_away(tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)
    with serve(Site(CONTENT)) as site:
        assert get(site, tmp_path).read_bytes() == CONTENT
    assert site.asked == ["bytes=1000-", ""]


def test_what_is_there_is_checked_and_kept(tmp_path):
    (tmp_path / "file.bin").write_bytes(CONTENT)
    with serve(Site(CONTENT)) as site:
        get(site, tmp_path)
    assert site.asked == []


def test_what_is_there_and_wrong_is_named(tmp_path):
    (tmp_path / "file.bin").write_bytes(b"something else")
    with serve(Site(CONTENT)) as site, pytest.raises(UserError) as error:
        get(site, tmp_path)
    one_line(error, str(tmp_path / "file.bin"), "damaged", "delete it")
    assert site.asked == []


def test_corrupt(tmp_path):
    with serve(Site(CONTENT[:-1] + b"?")) as site, pytest.raises(UserError) as error:
        get(site, tmp_path)
    one_line(error, "md5", "http://the.official/page", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_web_page_instead(tmp_path):
    page = b"\n<!DOCTYPE html><html>please log in</html>"
    with serve(Site(page, kind="text/html")) as site, pytest.raises(UserError) as error:
        get(site, tmp_path)
    one_line(error, "web page", "http://the.official/page")
    assert list(tmp_path.iterdir()) == []


def test_a_web_page_put_there_by_hand(tmp_path):
    (tmp_path / "file.bin").write_bytes(b"<html>captcha</html>")
    with serve(Site(CONTENT)) as site, pytest.raises(UserError) as error:
        get(site, tmp_path)
    one_line(error, "web page")


def test_gone(tmp_path):
    with serve(Site(CONTENT, statuses=[404])) as site, pytest.raises(UserError) as error:
        get(site, tmp_path)
    one_line(error, "404", "http://the.official/page", "file.bin")
    assert len(site.asked) == 1


def test_a_busy_server_is_asked_again(tmp_path):
    with serve(Site(CONTENT, statuses=[503, 500])) as site:
        assert get(site, tmp_path).read_bytes() == CONTENT


def test_a_silent_server_is_left_and_the_bytes_kept(tmp_path):
    with serve(Site(CONTENT, stall=[3.0])) as site:
        assert get(site, tmp_path, timeout=0.3).read_bytes() == CONTENT
    assert site.asked == ["", f"bytes={len(CONTENT) // 2}-"]


def test_a_slow_server_is_waited_for(tmp_path):
    with serve(Site(CONTENT, drip=(60_000, 0.1))) as site:
        assert get(site, tmp_path, timeout=0.4).read_bytes() == CONTENT
    assert site.asked == [""]


def test_no_network(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        site = Site(CONTENT, url=f"http://127.0.0.1:{free.getsockname()[1]}/file.bin")
        with pytest.raises(UserError) as error:
            get(site, tmp_path)
    one_line(error, "refused", "by hand", "http://the.official/page", f"put it into {tmp_path}")


def test_no_space_is_said_before_the_first_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with serve(Site(CONTENT)) as site, pytest.raises(UserError) as error:
        get(site, tmp_path)
    one_line(error, "no space", "1,000", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_no_space_while_writing(tmp_path):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    (tmp_path / "file.bin.part").symlink_to(full)
    with serve(Site(CONTENT)) as site, pytest.raises(UserError) as error:
        get(site, tmp_path)
    one_line(error, "no space left", str(tmp_path))


def test_an_endless_file_is_refused(tmp_path, monkeypatch):
    with serve(Site(CONTENT, length=1 << 50)) as site, pytest.raises(UserError) as error:
        get(site, tmp_path)
    one_line(error, "far more")
    monkeypatch.setattr(download, "LARGEST", 200_000)
    monkeypatch.setattr(download, "_refuse_size", lambda *a: None)
    with serve(Site(CONTENT, drip=(10_000, 0.0))) as site, pytest.raises(UserError) as error:
        get(site, tmp_path)
    one_line(error, "does not end")
