"""A trained step leaves the suite: predictions of a user's images, and files that run without contseg."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from contseg import run_benchmark
from contseg.benchmark.models import export
from contseg.benchmark.models.load import load_step, skeleton
from contseg.benchmark.models.segmenter import sliding_mean
from contseg.benchmark.models.timm_encoder import TimmEncoder
from contseg.benchmark.plan.config import identity
from contseg.benchmark.plan.model_config import ModelConfig, check
from contseg.benchmark.report.own_images import overlay, predict_images
from contseg.benchmark.store.files import Store, cell_path, write_sealed, write_tensors
from contseg.datasets.errors import UserError
from contseg.datasets.images import decode_upright
from contseg.methods.registry import build_method
from contseg.tests.pages import code
from contseg.tests.records import make_run
from contseg.tests.unit.networks import images, make_steps

pytestmark = pytest.mark.numeric

KEY = {"tiny": "a" * 64, "resnet18": "b" * 64}
PAGE = "docs/trained_steps.md"
Predict = Callable[[Tensor], Tensor]


def keep(out: Path, config: ModelConfig, method: str, key: str) -> None:
    """A step 1 of classes 3, 1 | 2 as if trained, with its record."""
    steps = make_steps(2, 1)
    order = [(3, 1), (2,)]
    model = skeleton(config, steps, build_method(method), 0)
    g = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean += 0.3 * torch.randn(module.num_features, generator=g)
            module.running_var *= 0.5 + torch.rand(module.num_features, generator=g)
    with torch.no_grad():
        for block in model.classifier.blocks if hasattr(model.classifier, "blocks") else []:
            for p in block.parameters():
                p.copy_(torch.randn(p.shape, generator=g))
    old, said = [], []
    for step, new in zip(steps, order, strict=True):
        said.append({"index": step.index, "setup": step.setup, "old_classes": old[:], "new_classes": list(new)})
        old += new
    meta = {"method": method, "plugins": [], "model": identity(config), "steps": said, "title": "toy step 1"}
    write_tensors(Store(out).model(key), model.state_dict(), meta)
    record = make_run(method, groups=order)[1] | {"step_key": key}
    names = ["background", "car", "tree", "road"]
    cell = {k: record[k] for k in ("dataset", "task", "order", "setup", "method", "run", "seed", "step")}
    write_sealed(Store(out).records / cell_path(**cell), record | {"class_names": names})


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ports")
    keep(place, ModelConfig("tiny", 4, "none", "batch", 8), "FT", KEY["tiny"])
    keep(place, ModelConfig("resnet18", 16, "none", "batch", 32), "MiB", KEY["resnet18"])
    return place


def photo(path: Path, width: int = 70, height: int = 45) -> Path:
    """Coarse noise, without JPEG's loss where the ending says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(width).integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
    Image.fromarray(noise.repeat(8, 0).repeat(8, 1)[:height, :width]).save(path)
    return path


def read(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None]


def table(channels: Tensor) -> np.ndarray:
    """Labels of channels: the order of classes is 3, 1, 2."""
    return np.array([0, 3, 1, 2])[channels[0].numpy()]


# --- predict -------------------------------------------------------------------------------------------------------


def test_predictions_of_own_images(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    for name, size in (("a.png", (70, 45)), ("b.png", (3, 5)), ("c.bmp", (300, 20))):
        photo(folder / name, *size)
    (folder / "notes.txt").write_text("no image")
    (record,) = (out / "records").rglob("FT/**/*.json")
    extra = photo(tmp_path / "d.png", 9, 31)
    assert run_benchmark.main(["predict", str(record), str(folder), str(extra), "--out", str(tmp_path / "seen")]) == 0
    said = capsys.readouterr().out
    assert "%  road\n" in said and said.endswith(f"4 images: {tmp_path}/seen/labels, {tmp_path}/seen/overlays\n")
    _, predict = load_step(out, KEY["tiny"])
    for name in ("photos/a.png", "photos/b.png", "photos/c.bmp", "d.png"):
        label = Image.open(tmp_path / "seen/labels" / f"{Path(name).stem}.png")
        assert label.mode == "P"
        assert np.array_equal(np.array(label), table(predict(read(tmp_path / name))))
    assert sorted(p.name for p in (tmp_path / "seen/overlays").iterdir()) == ["a.png", "b.png", "c.png", "d.png"]


def test_an_overlay_of_a_narrow_image_is_not_enlarged_without_bound() -> None:
    """4 x 4000 pixels became 480 x 480 000; its legend is as wide as that of any other."""
    colours = np.zeros((256, 3), np.uint8)
    for (width, height), (wide, high) in (((4, 4000), (480, 4000)), ((20, 200), (480, 3800)), ((60, 50), (480, 400))):
        pixels, labels = np.zeros((height, width, 3), np.uint8), np.ones((height, width), np.uint8)
        drawn = overlay(pixels, labels, colours, [(colours[1], "road")])
        assert drawn.width == wide and 0 < drawn.height - high < 100


def test_an_overlay_has_the_colours_of_its_legend(out: Path, tmp_path: Path) -> None:
    photo(tmp_path / "a.png", 480, 60)
    words = [
        "predict",
        KEY["tiny"][:8],
        str(tmp_path / "a.png"),
        "--results",
        str(out),
        "--out",
        str(tmp_path / "seen"),
    ]
    assert run_benchmark.main(words) == 0
    label = Image.open(tmp_path / "seen/labels/a.png")
    labels, palette = np.array(label), np.array(label.getpalette()).reshape(-1, 3)
    drawn = np.array(Image.open(tmp_path / "seen/overlays/a.png"))
    given = np.array(Image.open(tmp_path / "a.png"))
    expected = (0.4 * given + 0.6 * palette[labels]).round()
    assert np.array_equal(drawn[:60][labels == 0], given[labels == 0])
    assert np.abs(drawn[:60][labels > 0] - expected[labels > 0]).max() <= 1
    legend = {tuple(c) for c in drawn[60:].reshape(-1, 3).tolist()}
    assert all(tuple(palette[k].tolist()) in legend for k in np.unique(labels) if k)


def test_large_images_are_reduced_and_their_labels_enlarged(out: Path, tmp_path: Path) -> None:
    photo(tmp_path / "a.png", 120, 61)
    words = ["predict", KEY["tiny"], str(tmp_path / "a.png"), "--results", str(out), "--out", str(tmp_path), "--longest", "60"]  # fmt: skip  # noqa: E501
    assert run_benchmark.main(words) == 0
    labels = np.array(Image.open(tmp_path / "labels/a.png"))
    assert labels.shape == (61, 120)
    assert np.array_equal(labels[:, ::2], labels[:, 1::2])


def test_a_photograph_is_turned_as_the_camera_noted(out: Path, tmp_path: Path) -> None:
    upright = Image.open(photo(tmp_path / "up.png", 40, 24))
    exif = upright.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    upright.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    words = ["predict", KEY["tiny"], str(tmp_path / "up.png"), str(tmp_path / "turned.png"), "--results", str(out)]
    assert run_benchmark.main([*words, "--out", str(tmp_path)]) == 0
    a, b = (np.array(Image.open(tmp_path / "labels" / name)) for name in ("up.png", "turned.png"))
    assert np.array_equal(a, b)


# of EXIF: an orientation, and a resolution of -1/2, which Pillow reads and cannot write again
TURNED = "4949 2a00 08000000 0200 1201 0300 01000000 06000000 1a01 0a00 01000000 26000000 00000000 ffffffff 02000000"


@pytest.mark.parametrize(
    ("kind", "exif", "size"), [("png", b"no TIFF at all", (10, 20)), ("jpeg", bytes.fromhex(TURNED), (20, 10))]
)
def test_of_exif_only_the_orientation_is_read(kind: str, exif: bytes, size: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    Image.new("RGB", (20, 10)).save(path, exif=b"Exif\0\0" + exif)
    assert decode_upright(path.read_bytes(), path).shape == (*size, 3)


def test_a_photograph_that_the_memory_cannot_hold_is_named(tmp_path: Path) -> None:
    def full(images: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 14.06 GiB.\nMore of it")

    path = photo(tmp_path / "a.png", 40, 24)
    with pytest.raises(UserError, match=r"a\.png, 40 x 24 pixels, needs more memory .* --longest 20 "):
        predict_images(full, [path], tmp_path, channels=(0, 1))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["predict", "aa", "none.jpg", "--out", "seen"], "there is no image none.jpg"),
        (["predict", "aa", "empty", "--out", "seen"], "empty holds no image: files that end in .jpg"),
        (["predict", "aa", "a.png", "broken.jpg", "--out", "seen"], "image broken.jpg: it is of no format that Pillow"),
        (["predict", "aa", "huge.png", "--out", "seen"], "image huge.png: more than 179 million pixels: reduce it"),
        (["predict", "aa", "/dev/null", "--out", "seen"], "cannot read /dev/null: it is not a regular file"),
        (["predict", "RECORD", "a.png", "--method", "PLOP", "--out", "s"], "unknown method of this step 'PLOP': "),
        (["predict", "aa", "a.png", "other/a.png", "--out", "seen"], "would both be a.png"),
        (["predict", "aa", "a.png", "--out", "a.png"], "--out: cannot write into a.png, a file"),
        (["predict", "aa", "a.png", "--out", "s", "--longest", "x"], "--longest must be a whole number >= 0, not x"),
        (["predict", "cc", "a.png", "--out", "seen"], "no trained step under runs/cache with a key that begins with"),
        (["predict", "MiB", "a.png", "--out", "seen"], "no step 'MiB': give a record's file, or the first digits"),
        (["predict", "step.json", "a.png", "--out", "seen"], "step.json is not below a folder `records`"),
        (["predict", "records/x.json", "a.png", "--out", "seen"], "there is no record records/x.json"),
        (["predict", "aa", "a.png", "--method", "Mib", "--out", "s"], "unknown method of this step 'Mib': Known: FT"),
        (["export", "aa", "--out", "x.onnx"], "--out x.onnx: name a file that ends in .pt2"),
        (["export", "aa", "--out", "x.safetensors"], "cannot hold this step: neither library has the network `tiny`"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    words: list[str],
    line: str,
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").symlink_to(out)
    Path("empty").mkdir()
    photo(Path("a.png"))
    photo(Path("other/a.png"))
    Path("broken.jpg").write_bytes(b"no image")
    if "huge.png" in words:
        Image.new("1", (20000, 10000)).save("huge.png")
    words = [str(next(out.glob("records/**/*.json"))) if word == "RECORD" else word for word in words]
    before = sorted(tmp_path.rglob("*"))
    assert run_benchmark.main(words) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ") and line in said
    assert sorted(tmp_path.rglob("*")) == before


# --- export --------------------------------------------------------------------------------------------------------


def run_page(holding: str, folder: Path) -> np.ndarray:
    """The labels that a block of the page computes, where contseg cannot be imported."""
    script = "import sys\nsys.modules['contseg'] = None\n" + code(PAGE, holding)
    script += "\nnp.save('labels.npy', labels.numpy())\n"
    done = subprocess.run([sys.executable, "-I", "-c", script], cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return np.load(folder / "labels.npy")


def test_the_printed_lines_run_a_program_without_contseg(out: Path, tmp_path: Path) -> None:
    words = ["export", KEY["tiny"], "--results", str(out), "--out", str(tmp_path / "step5.pt2")]
    assert run_benchmark.main(words) == 0
    photo(tmp_path / "street.jpg", 130, 90)
    _, predict = load_step(out, KEY["tiny"])
    assert np.array_equal(run_page("step5.pt2", tmp_path), table(predict(read(tmp_path / "street.jpg"))))
    assert len(code(PAGE, "step5.pt2").strip().splitlines()) <= 11


def test_the_printed_lines_load_plain_weights_without_contseg(out: Path, tmp_path: Path) -> None:
    words = ["export", KEY["resnet18"], "--results", str(out), "--out", str(tmp_path / "step5.safetensors")]
    assert run_benchmark.main(words) == 0
    photo(tmp_path / "street.jpg", 130, 90)
    _, predict = load_step(out, KEY["resnet18"])
    ours, theirs = table(predict(read(tmp_path / "street.jpg"))), run_page("safe_open", tmp_path)
    assert (ours != theirs).mean() < 1e-3  # sums in another order
    assert len(np.unique(ours)) > 1


@pytest.mark.parametrize("size", [(20, 40), (32, 32), (33, 50), (70, 31), (1, 1)])
def test_windows_of_a_size_that_is_not_known(size: tuple[int, int]) -> None:
    x = images(2, 3, *size).double()
    torch.testing.assert_close(export.window_mean(x, 32), sliding_mean(x, 32), rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", [(32, 48), (33, 47)])
def test_images_are_enlarged_alike(size: tuple[int, int]) -> None:
    encoder = TimmEncoder.__new__(TimmEncoder)
    nn.Module.__init__(encoder)
    encoder.multiple = 16
    x = images(1, 3, *size)
    assert torch.equal(export.enlarged(x, 16), encoder.fit(x))


def test_a_program_has_what_a_methods_hooks_made(tmp_path: Path) -> None:
    keep(tmp_path, ModelConfig("tiny", 4, "none", "batch", 8), "RCIL", "d" * 64)
    words = ["export", "dd", "--results", str(tmp_path), "--out"]
    assert run_benchmark.main([*words, str(tmp_path / "x.pt2")]) == 0
    about = {export.ABOUT: ""}
    program = torch.export.load(tmp_path / "x.pt2", extra_files=about).module()
    assert json.loads(about[export.ABOUT])["class_names"] == ["background", "car", "tree", "road"]
    _, predict = load_step(tmp_path, "dd")
    x = torch.randint(256, (3, 3, 77, 53), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    ours = torch.tensor([0, 3, 1, 2])[predict(x)]
    assert (program(x) != ours).float().mean() < 1e-3
    shutil.rmtree(tmp_path / "cache")
    assert run_benchmark.main([*words, str(tmp_path / "y.pt2")]) == 2
    assert not (tmp_path / "y.pt2").exists()


@pytest.mark.parametrize("name", ["test_vit", "test_mambaout"])  # plain, pyramid: images are enlarged
def test_a_program_of_a_network_of_timm(name: str, tmp_path: Path) -> None:
    keep(tmp_path, check(ModelConfig(f"timm:{name}", weights="none", norm="batch")), "MiB", "e" * 64)
    assert run_benchmark.main(["export", "ee", "--results", str(tmp_path), "--out", str(tmp_path / "x.pt2")]) == 0
    program = torch.export.load(tmp_path / "x.pt2").module()
    _, predict = load_step(tmp_path, "ee")
    for size in ((77, 53), (64, 96)):
        x = torch.randint(256, (3, 3, *size), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
        assert (program(x) != torch.tensor([0, 3, 1, 2])[predict(x)]).float().mean() < 1e-3


def test_a_step_that_cannot_be_followed_is_refused(out: Path) -> None:
    model, _ = load_step(out, KEY["tiny"])

    def counting(result: object, size: tuple[int, int]) -> Tensor:
        raise ValueError("a rule\nof two lines")

    with pytest.raises(UserError, match=r"^torch\.export cannot follow this step: a rule$"):
        export.export(model, counting, [0, 3, 1, 2])


# --- plan ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "setting", "line"),
    [
        ("DKD", "model.head_activation=none", "error: DKD: DKD needs an embedding that is never negative"),
        ("RCIL", "model.norm=group", "error: RCIL: RCIL folds norms into convolutions, GroupNorm cannot be folded"),
    ],
)
def test_a_network_that_a_method_refuses_is_told_by_plan(
    method: str, setting: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "--scenarios", "shapes/3-3/overlapped", "--methods", "FT", method, "--out", str(tmp_path), "--set"]
    assert run_benchmark.main([*words, "model.backbone=tiny", setting]) == 2
    said = capsys.readouterr().err
    assert said.startswith(line) and said.count("\n") == 1
