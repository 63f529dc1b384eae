"""From nothing to data over loopback: augmented labels and their list by rule, killed and resumed, all or nothing."""

from pathlib import Path

import numpy as np
import pytest

from contseg.datasets.errors import UserError
from contseg.datasets.palette import voc_palette
from contseg.datasets.registry import open_dataset
from contseg.datasets.tools import download, prepare
from contseg.datasets.tools.download import Source
from contseg.datasets.tools.prepare import prepare_ade, prepare_voc
from contseg.run_benchmark import main
from contseg.tests.unit import small_voc as small
from contseg.tests.unit.loopback import Site, serve


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def quiet(line: str) -> None:
    pass


def sites():
    voc, sbd = small.tar(small.voc_files()), small.tar(small.sbd_files(), "w:gz")
    return Site(voc), Site(sbd)


def run(root: Path, voc: Site, sbd: Site, aug: Path | None = None) -> Path:
    sources = small.source(voc.url, "voc.tar", voc.content), small.source(sbd.url, "benchmark.tgz", sbd.content)
    return prepare_voc(root, aug, quiet, *sources)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def prepared(tmp_path):
    with serve(sites()[0]) as voc, serve(sites()[1]) as sbd:
        yield run(tmp_path, voc, sbd), voc, sbd


def test_the_list_is_the_rule(prepared):
    """SBD train + val and VOC train, minus VOC val; ascending."""
    lines = (prepared[0] / "ImageSets/Segmentation/train_aug.txt").read_text().split()
    assert tuple(lines) == small.TRAIN_AUG


def test_vocs_map_wins_where_both_exist(prepared):
    maps = prepared[0] / "SegmentationClassAug"
    assert {p.stem for p in maps.iterdir()} == {*small.TRAIN_AUG, *small.VOC_VAL}
    for image_id in (*small.VOC_TRAIN, *small.VOC_VAL):
        assert np.array_equal(small.labels_of(maps / f"{image_id}.png"), small.own_map(image_id))
    for image_id in ("2008_000002", "2008_000008", "2010_000001"):
        assert np.array_equal(small.labels_of(maps / f"{image_id}.png"), small.sbd_map(image_id))


def test_what_is_left_out_and_what_is_left_over(prepared, tmp_path):
    folder = prepared[0]
    assert sorted(p.name for p in folder.iterdir()) == [
        "ImageSets",
        "JPEGImages",
        "SegmentationClass",
        "SegmentationClassAug",
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["VOC2012", "downloads"]
    assert sorted(p.name for p in (tmp_path / "downloads").iterdir()) == ["benchmark.tgz", "voc.tar"]


def test_it_opens_as_voc(prepared, tmp_path):
    dataset = open_dataset("voc", tmp_path)
    assert dataset.ids("train") == small.TRAIN_AUG
    assert dataset.ids("val") == tuple(sorted(small.VOC_VAL))
    image, label = dataset.load("2008_000008", "train")
    assert tuple(image.shape) == (3, *small.SIZE)
    assert np.array_equal(label.numpy(), small.sbd_map("2008_000008"))


def test_a_second_time_asks_for_nothing(prepared, tmp_path):
    folder, voc, sbd = prepared
    before, asked = everything(folder), (len(voc.asked), len(sbd.asked))
    run(tmp_path, voc, sbd)
    assert everything(folder) == before
    assert (len(voc.asked), len(sbd.asked)) == asked


def test_killed_between_the_folder_and_the_list(prepared, tmp_path):
    folder, voc, sbd = prepared
    before = everything(folder)
    (folder / "ImageSets/Segmentation/train_aug.txt").unlink()
    (folder / "SegmentationClassAug" / "2008_000008.png").unlink()
    run(tmp_path, voc, sbd)
    assert everything(folder) == before


def test_killed_while_unpacking(prepared, tmp_path):
    folder, voc, sbd = prepared
    before = everything(folder)
    folder.rename(tmp_path / ".VOC2012.unfinished")  # what a kill leaves behind
    (tmp_path / ".VOC2012.unfinished" / "half").write_text("a file")
    run(tmp_path, voc, sbd)
    assert everything(folder) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["VOC2012", "downloads"]


def test_a_broken_line_and_a_slow_server(tmp_path):
    voc, sbd = sites()
    voc.cut_after, sbd.drip = [20_000], (1000, 0.01)
    with serve(voc), serve(sbd):
        folder = run(tmp_path, voc, sbd)
    assert voc.asked == ["", "bytes=20000-"]
    assert len(list((folder / "SegmentationClassAug").iterdir())) == 7


@pytest.mark.parametrize("kind", ["zip", "tar", "top level"])
def test_a_ready_made_archive(tmp_path, kind):
    """Its maps in place of SBD's, with VOC's own where both exist; macOS's shadow files are no maps."""
    top = "" if kind == "top level" else "SegmentationClassAug/"
    theirs = {f"{top}{i}.png": small.png(small.sbd_map(i)) for i in (*small.TRAIN_AUG, *small.VOC_VAL)}
    theirs["__MACOSX/SegmentationClassAug/._2008_000008.png"] = b"shadow"
    archive = tmp_path / "aug.bin"
    archive.write_bytes(small.tar(theirs, "w:gz") if kind == "tar" else small.zipped(theirs))
    with serve(sites()[0]) as voc, serve(sites()[1]) as sbd:
        folder = run(tmp_path, voc, sbd, archive)
    assert sbd.asked == []
    assert (folder / "ImageSets/Segmentation/train_aug.txt").read_text().split() == list(small.TRAIN_AUG)
    maps = folder / "SegmentationClassAug"
    assert np.array_equal(small.labels_of(maps / "2007_000032.png"), small.own_map("2007_000032"))
    assert np.array_equal(small.labels_of(maps / "2010_000001.png"), small.sbd_map("2010_000001"))


def refused(root: Path, voc: Site, sbd: Site, *parts: str, aug: Path | None = None) -> None:
    with pytest.raises(UserError) as error:
        run(root, voc, sbd, aug)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)
    assert not (root / "VOC2012" / "SegmentationClassAug").exists()
    assert not [p.name for p in root.iterdir() if p.name.startswith(".")]


def test_a_ready_made_archive_that_does_not_do(tmp_path):
    coloured = small.zipped(
        {"SegmentationClassAug/2008_000008.png": small._bytes(small.Image.new("RGB", (8, 6)), "PNG")}
    )
    with serve(sites()[0]) as voc, serve(sites()[1]) as sbd:
        for name, content, parts in (
            ("rgb.zip", coloured, ("2008_000008.png", "RGB")),
            ("page.zip", b"<!DOCTYPE html><html>", ("web page",)),
            ("evil.zip", small.zipped({"../2008_000008.png": b""}), ("outside",)),
        ):
            (tmp_path / name).write_bytes(content)
            refused(tmp_path, voc, sbd, *parts, aug=tmp_path / name)
        refused(tmp_path, voc, sbd, "no archive", aug=tmp_path / "missing.zip")


def test_broken_and_wrong_archives(tmp_path):
    voc, sbd = sites()
    other = Site(small.tar({"something/else.txt": b"x"}))
    damaged = Site(sbd.content[:-200])
    with serve(voc), serve(sbd), serve(other), serve(damaged):
        refused(tmp_path, other, sbd, "does not hold JPEGImages", "voc.tar")
        (tmp_path / "downloads" / "voc.tar").unlink()
        refused(tmp_path, voc, damaged, "damaged", "benchmark.tgz")
        assert (tmp_path / "VOC2012" / "JPEGImages").is_dir()  # what was complete stays


def test_an_sbd_file_that_is_none(tmp_path):
    files = small.sbd_files()
    files["benchmark_RELEASE/dataset/cls/2008_000008.mat"] = b"no matlab file at all" * 20
    with serve(sites()[0]) as voc, serve(Site(small.tar(files, "w:gz"))) as sbd:
        refused(tmp_path, voc, sbd, "2008_000008.mat", "SBD")


def test_maps_that_are_missing(tmp_path):
    files = small.sbd_files()
    del files["benchmark_RELEASE/dataset/cls/2008_000008.mat"]
    with serve(sites()[0]) as voc, serve(Site(small.tar(files, "w:gz"))) as sbd:
        refused(tmp_path, voc, sbd, "1 of 7 ids", "2008_000008")


def test_ade(tmp_path):
    content = small.zipped(small.ade_files())
    with serve(Site(content)) as site:
        source = small.source(site.url, "ade.zip", content)
        folder = prepare_ade(tmp_path, quiet, source)
        prepare_ade(tmp_path, quiet, source)
    assert site.asked == [""]
    dataset = open_dataset("ade", tmp_path)
    assert dataset.ids("train") == tuple(f"ADE_train_{k:08d}" for k in (1, 2, 3))
    assert dataset.ids("val") == tuple(f"ADE_val_{k:08d}" for k in (1, 2))
    assert dataset.class_names == ("background", "wall", "sky", "tree")
    assert everything(folder) == {
        k.removeprefix("ADEChallengeData2016/"): v for k, v in sorted(small.ade_files().items())
    }


def test_command(tmp_path, monkeypatch, capsys):
    """Without a network: one line, exit code 2; with one: 0 and what to do next."""
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    content = small.zipped(small.ade_files())
    nowhere = small.source("http://127.0.0.1:9/ade.zip", "ade.zip", content)
    monkeypatch.setattr(prepare, "ade_source", lambda: nowhere)
    assert main(["data", "prepare", "ade", "--root", str(tmp_path)]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert f"download ade.zip by hand from http://the.official/page, put it into {tmp_path / 'downloads'}" in line
    with serve(Site(content)) as site:
        monkeypatch.setattr(prepare, "ade_source", lambda: small.source(site.url, "ade.zip", content))
        assert main(["data", "prepare", "ade", "--root", str(tmp_path)]) == 0
    assert f"data verify ade --root {tmp_path}" in capsys.readouterr().out
    assert main(["data", "prepare", "ade", "--root", str(tmp_path), "--aug", "x.zip"]) == 2


def test_the_sources_are_torchvisions():
    """A change of these values in torchvision should be noticed: they are what users download."""
    voc, sbd = prepare.voc_source(), prepare.sbd_source()
    assert voc.filename == "VOCtrainval_11-May-2012.tar"
    assert voc.checksum == "md5:6cd6e144f989b92b3379bac3b3de84fd"
    assert sbd.filename == "benchmark.tgz"
    assert sbd.checksum == "md5:82b4d87ceb2ed10f6038a1cba92111cb"
    for source in (voc, sbd, prepare.ade_source()):
        assert isinstance(source, Source)
        assert source.url.startswith("http")
        assert source.page.startswith("http")


def test_the_palette_is_vocs():
    """The first colours as the development kit prints them: background, aeroplane, ..., void."""
    colours = np.array(voc_palette()).reshape(256, 3).tolist()
    assert colours[:5] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert colours[15] == [192, 128, 128]
    assert colours[20] == [0, 64, 128]
    assert colours[255] == [224, 224, 192]
