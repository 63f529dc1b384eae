"""The network: what it computes, how it grows, where its initial weights come from."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, resnet

from contseg.benchmark.models.encoders import build_encoder, set_output_stride
from contseg.benchmark.models.load import skeleton
from contseg.benchmark.models.segmenter import ASPP, IncrementalClassifier, build_model, set_norm, sliding_mean
from contseg.benchmark.plan.config import Config, checked, identity, read_config
from contseg.benchmark.plan.model_config import BACKBONES, ModelConfig, check, model_identity
from contseg.datasets.errors import UserError
from contseg.methods.base import SegModel, SegOutput
from contseg.methods.registry import build_method
from contseg.tests.material import ROOT
from contseg.tests.unit.networks import images, make_steps, same

pytestmark = pytest.mark.numeric

TINY = ModelConfig("tiny", weights="none")
IMAGENET = [name for name, backbone in BACKBONES.items() if backbone.imagenet]
CASES = [(name, stride) for name, backbone in BACKBONES.items() for stride in backbone.rates]


# --- what it gives -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "stride"), CASES)
def test_shapes_at_an_odd_size(name: str, stride: int) -> None:
    model = build_model(ModelConfig(name, stride, "none"), [3, 2]).eval()
    assert isinstance(model, SegModel)
    with torch.no_grad():
        out = model(images(1, 3, 67, 51))
    assert isinstance(out, SegOutput)
    size = (-(-67 // stride), -(-51 // stride))
    width = BACKBONES[name].aspp[1]
    assert out.logits.shape == (1, 5, *size)
    assert out.features.shape == (1, BACKBONES[name].channels, *size)
    assert out.embedding.shape == (1, width, *size)
    assert len(out.stages) == 4
    assert out.stages[-1].shape[-2:] == size
    assert out.extra == {}
    # before the last activation: signed; the residual networks' features are the last stage after it
    assert all(stage.min() < 0 for stage in out.stages)
    assert torch.equal(out.features, F.relu(out.stages[-1]))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnet_is_torchvisions_bit_by_bit(name: str) -> None:
    theirs = get_model(name, weights=None).eval()
    ours = build_encoder(name, 32).eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    x = images(2, 3, 65, 47)
    after: list[Tensor] = []
    for layer in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
        layer.register_forward_hook(lambda _module, _inputs, y: after.append(y))
    with torch.no_grad():
        theirs(x)
        features, stages = ours(x)
    assert torch.equal(features, after[-1])
    assert all(torch.equal(F.relu(stage), y) for stage, y in zip(stages, after, strict=True))


@pytest.mark.parametrize("dilate", [[False, False, True], [False, True, True]])
def test_output_stride_is_torchvisions_where_it_allows_it(dilate: list[bool]) -> None:
    theirs = resnet.resnet50(weights=None, replace_stride_with_dilation=dilate)
    ours = build_encoder("resnet50", 8 if dilate[1] else 16)
    settings = [
        [(n, m.stride, m.dilation, m.padding) for n, m in net.named_modules() if n.endswith(("conv2", "downsample.0"))]
        for net in (theirs, ours)
    ]
    assert len(settings[0]) == 16 + 4
    assert settings[0] == settings[1]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("stride", [8, 16])
def test_a_denser_network_has_the_values_of_the_strided_one(name: str, stride: int) -> None:
    # à trous: every 32 // stride-th cell of the dense map is a cell of the map at stride 32
    coarse, dense = (build_encoder(name, s).double().eval() for s in (32, stride))
    dense.load_state_dict(coarse.state_dict())
    x = images(1, 3, 96, 64).double()
    step = 32 // stride
    with torch.no_grad():
        torch.testing.assert_close(dense(x)[0][..., ::step, ::step], coarse(x)[0], rtol=1e-9, atol=1e-9)


def test_output_stride_keeps_what_lies_below_it() -> None:
    convs = nn.Sequential(nn.Conv2d(1, 1, 3, stride=2, padding=1), nn.Conv2d(1, 1, 5, stride=2, padding=2))
    set_output_stride(convs, 4)
    assert [(c.stride, c.dilation, c.padding) for c in convs] == [((2, 2), (1, 1), (1, 1)), ((2, 2), (1, 1), (2, 2))]


def test_gradients_reach_every_parameter() -> None:
    model = build_model(TINY, [3, 2])
    out = model(images(2, 3, 24, 32))
    out.logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_heads_fill_extra() -> None:
    model = build_model(TINY, [3]).eval()
    model.heads["unknown"] = nn.Conv2d(48, 1, 1)
    out = model(images(1, 3, 24, 32))
    assert torch.equal(out.extra["unknown"], model.heads["unknown"](out.embedding))


# --- growth and initialisation -------------------------------------------------------------------------------------


def test_growth_keeps_old_logits_bitwise() -> None:
    model = build_model(TINY, [3]).eval()
    x = images(2, 3, 24, 32)
    with torch.no_grad():
        before = model(x).logits
        model.classifier.grow(2)
        model.classifier.grow(1)
        after = model(x).logits
    assert after.shape[1] == 6
    assert torch.equal(after[:, :3], before)


def test_growing_is_building() -> None:
    grown = build_model(TINY, [3], seed=5)
    grown.classifier.grow(2)
    assert same(grown, build_model(TINY, [3, 2], seed=5))


def test_a_block_grows_beside_its_neighbours() -> None:
    classifier = IncrementalClassifier(4, [2]).double()
    classifier.grow(3)
    assert classifier(torch.zeros(1, 4, 2, 2, dtype=torch.float64)).dtype == torch.float64


def test_initialisation_is_a_function_of_the_seed_alone() -> None:
    first = build_model(TINY, [3, 2], seed=1)
    state = torch.random.get_rng_state()
    torch.rand(7)
    moved = torch.random.get_rng_state()
    assert same(first, build_model(TINY, [3, 2], seed=1))
    assert torch.equal(torch.random.get_rng_state(), moved)
    assert not torch.equal(state, moved)
    other = build_model(TINY, [3, 2], seed=2)
    for a, b in zip(first.parameters(), other.parameters(), strict=True):
        assert a.dim() == 1 or not torch.equal(a, b)
    # the rows of step 0 do not depend on what comes later
    assert same(first.classifier.blocks[0], build_model(TINY, [3, 1, 1], seed=1).classifier.blocks[0])


# --- the ASPP's image pooling --------------------------------------------------------------------------------------


def windows(x: Tensor, side: int) -> Tensor:
    """The mean over the side x side window that begins (side - 1) // 2 before a cell, moved inside the map."""
    out = torch.empty_like(x)
    rows, columns = (min(side, n) for n in x.shape[-2:])
    for i in range(x.shape[-2]):
        for j in range(x.shape[-1]):
            top = min(max(i - (rows - 1) // 2, 0), x.shape[-2] - rows)
            left = min(max(j - (columns - 1) // 2, 0), x.shape[-1] - columns)
            out[..., i, j] = x[..., top : top + rows, left : left + columns].mean((-2, -1))
    return out


@pytest.mark.parametrize("side", [1, 2, 3, 4, 7, 32])
def test_sliding_mean_is_the_window_by_window_one(side: int) -> None:
    x = images(2, 3, 9, 6).double()
    torch.testing.assert_close(sliding_mean(x, side), windows(x, side), rtol=1e-12, atol=1e-12)


def test_pooling_at_test_is_global_on_maps_no_larger_than_the_window() -> None:
    torch.manual_seed(0)  # other weights may leave nothing after the last activation
    local, whole = (ASPP(8, 4, 6, (2,), pooling).double().eval() for pooling in (5, 0))
    whole.load_state_dict(local.state_dict())
    small, large = images(1, 8, 5, 4).double(), images(1, 8, 6, 5).double()
    torch.testing.assert_close(local(small), whole(small), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(local(large), whole(large))


def test_pooling_is_global_in_training() -> None:
    local, whole = (ASPP(8, 4, 6, (2,), pooling).double() for pooling in (2, 0))
    whole.load_state_dict(local.state_dict())
    x = images(2, 8, 6, 5).double()
    assert torch.equal(local(x), whole(x))


# --- normalisation -------------------------------------------------------------------------------------------------


def test_frozen_norm_is_batch_norm_in_evaluation_for_good() -> None:
    batch = build_model(replace(TINY, norm="batch"), [3])
    batch(images(4, 3, 24, 32))  # moves the running statistics
    frozen = build_model(replace(TINY, norm="frozen"), [3])
    frozen.load_state_dict({k: v for k, v in batch.state_dict().items() if not k.endswith("num_batches_tracked")})
    x = images(2, 3, 32, 32, seed=1)
    before = {k: v.clone() for k, v in frozen.state_dict().items()}
    torch.testing.assert_close(frozen.train()(x).logits, batch.eval()(x).logits, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(v, before[k]) for k, v in frozen.state_dict().items())
    assert all(p.dim() == 4 for n, p in frozen.named_parameters() if not n.startswith("classifier"))  # convolutions


@pytest.mark.parametrize("name", ["tiny", "timm:tf_efficientnet_lite0"])
def test_frozen_norms_keep_the_type_of_their_input(name: str) -> None:
    """torchvision's and timm's give float32 in mixed precision, and all maps behind them were twice as large."""
    model = build_model(ModelConfig(name, weights="none", norm="frozen"), [3])
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images(2, 3, 32, 32))
    assert {t.dtype for t in (*out.stages, out.features, out.embedding, out.logits)} == {torch.bfloat16}
    for norm in (m for m in model.modules() if hasattr(m, "running_mean")):
        x = images(2, len(norm.running_mean), 3, 3)
        assert torch.equal(norm(x), type(norm).forward(norm, x))  # in float32 nothing changes


@pytest.mark.parametrize("name", ["tiny", "timm:tf_efficientnet_lite0"])
def test_group_norm_has_no_statistics(name: str) -> None:
    model = build_model(ModelConfig(name, weights="none", norm="group"), [3])
    assert not list(model.buffers())
    assert model(images(1, 3, 32, 32)).logits.shape[1] == 3  # a batch of one is no trouble


def test_sync_is_batch_norm_in_one_process() -> None:
    assert same(build_model(replace(TINY, norm="sync"), [3]), build_model(replace(TINY, norm="batch"), [3]))


def test_sync_needs_gpus_in_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="set frozen, group or batch"):
        set_norm(nn.Sequential(nn.BatchNorm2d(2)), "sync")


# --- the configuration ---------------------------------------------------------------------------------------------


def test_check_spells_out_what_was_left_open() -> None:
    assert check(ModelConfig()) == ModelConfig("resnet101", 16, "imagenet", "sync", 32)
    assert check(ModelConfig("tiny")) == ModelConfig("tiny", 4, "none", "sync", 32)
    assert check(ModelConfig("resnet18", 8, norm="group")).weights == "none"


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (ModelConfig("resnet100"), "unknown backbone 'resnet100': did you mean 'resnet10?1'"),
        (ModelConfig(norm="bach"), "did you mean 'batch'"),
        (ModelConfig("resnet18", 4), "resnet18 has 8 or 16"),
        (ModelConfig("tiny", 16), "tiny has 4"),
        (ModelConfig("tiny", weights="imagenet"), "none for tiny; set model.weights=none"),
        (ModelConfig(weights="imagenet", norm="group"), "trained with BatchNorm"),
        (ModelConfig(pooling=-1), "model.pooling must be >= 0, not -1"),
    ],
)
def test_a_network_that_cannot_be_had(config: ModelConfig, line: str) -> None:
    with pytest.raises(UserError, match=line):
        check(checked(Config(model=config)).model)


def test_the_table_of_weights_is_torchvisions() -> None:
    urls = {name: get_model_weights(name)["IMAGENET1K_V1"].url for name in IMAGENET}
    assert {name: BACKBONES[name].imagenet for name in IMAGENET} == {n: Path(u).name for n, u in urls.items()}


def test_identity_knows_weights_by_content(tmp_path: Path) -> None:
    a, b, c = tmp_path / "a.pth", tmp_path / "b.pth", tmp_path / "c.pth"
    a.write_bytes(b"one")
    b.write_bytes(b"one")
    c.write_bytes(b"two")
    ids = [model_identity(ModelConfig("resnet18", weights=str(f))) for f in (a, b, c)]
    assert ids[0] == ids[1] != ids[2]
    assert ids[0]["weights"] == f"sha256/{hashlib.sha256(b'one').hexdigest()}"
    a.write_bytes(b"three")
    assert model_identity(ModelConfig("resnet18", weights=str(a))) != ids[1]


def test_identity_of_imagenet_weights_is_that_of_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official = model_identity(ModelConfig("resnet18"))
    assert official == model_identity(ModelConfig("resnet18", 16, "imagenet"))
    assert official["weights"] == "imagenet/resnet18-f37072fd.pth"
    copy = tmp_path / "my_copy.pth"
    copy.write_bytes(b"x")
    monkeypatch.setattr("contseg.benchmark.plan.model_config._sha256", lambda *_: "f37072fd" + "0" * 56)
    assert model_identity(ModelConfig("resnet18", weights=str(copy))) == official
    assert model_identity(ModelConfig("resnet34", weights=str(copy)))["weights"].startswith("sha256/")


# --- the networks of SDR and MiB -----------------------------------------------------------------------------------

SDR = replace(read_config(ROOT / "benchmark/configs/sdr_paper.toml").model, weights="none")


def activations(model: nn.Module) -> list[str]:
    return [type(m).__name__ for m in model.modules() if isinstance(m, (nn.ReLU, nn.LeakyReLU, nn.Identity))]


def test_sdrs_network_is_that_of_its_release() -> None:
    model = build_model(SDR, [3])
    norms = [m.momentum for m in model.encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms == [3e-4] * 104  # 1 + 3 * 33 in the blocks + 4 shortcuts
    assert [m.momentum for m in model.aspp.modules() if isinstance(m, nn.BatchNorm2d)] == [0.1] * 6
    assert activations(model.aspp) == ["Identity", "Identity"]
    dilations = [[b.conv2.dilation[0] for b in layer] for layer in (model.encoder.layer3, model.encoder.layer4)]
    assert dilations == [[1] * 23, [2, 2, 2]]
    usual = build_model(replace(SDR, norm_momentum=0, head_activation="relu", dilation="rest"), [3])
    assert [b.conv2.dilation[0] for b in usual.encoder.layer4] == [1, 2, 2]
    assert {m.momentum for m in usual.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}
    assert activations(usual.aspp) == ["ReLU", "ReLU"]


def test_mibs_network_is_leaky_and_dense_from_the_first_block() -> None:
    model = build_model(ModelConfig("resnet18", 8, "none", head_activation="leaky", dilation="all"), [3])
    assert [m.negative_slope for m in model.aspp.modules() if isinstance(m, nn.LeakyReLU)] == [0.01, 0.01]
    for layer, rate in ((model.encoder.layer3, 2), (model.encoder.layer4, 4)):
        convs = [c for c in layer.modules() if isinstance(c, nn.Conv2d) and c.kernel_size == (3, 3)]
        assert [(c.dilation, c.padding, c.stride) for c in convs] == [((rate, rate), (rate, rate), (1, 1))] * 4


def test_an_affine_head_is_affine() -> None:
    aspp = build_model(replace(TINY, head_activation="none"), [3]).aspp.double().eval()
    x, y = images(1, 64, 5, 4).double(), images(1, 64, 5, 4, seed=1).double()
    torch.testing.assert_close(aspp(x) + aspp(y), aspp(x + y) + aspp(torch.zeros_like(x)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("change", [{"norm_momentum": 3e-4}, {"head_activation": "leaky"}, {"dilation": "all"}])
def test_a_field_is_in_the_key_unless_it_is_at_its_default(change: dict[str, Any]) -> None:
    plain, changed = ModelConfig("resnet18"), ModelConfig("resnet18", **change)
    for named in (model_identity, identity):
        assert named(changed) == named(plain) | change
        assert not change.keys() & named(plain).keys()


def test_dilation_of_all_blocks_is_for_torchvisions_resnets() -> None:
    with pytest.raises(UserError, match=r"model\.dilation=all: only torchvision's ResNets have it, not tiny"):
        check(ModelConfig("tiny", dilation="all"))


# --- what is promised of the maps ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [*BACKBONES, "timm:resnet18", "timm:tf_efficientnet_lite0", "timm:vit_tiny_patch16_224"]
)
@pytest.mark.parametrize("activation", ["relu", "leaky", "none"])
def test_maps_are_what_the_network_promises(name: str, activation: Any) -> None:
    model = build_model(ModelConfig(name, weights="none", head_activation=activation), [3])
    with torch.no_grad():
        out = model(images(2, 3, 64, 64))
    assert (out.features.min() >= 0) or not model.encoder.nonnegative
    assert bool(out.embedding.min() >= 0) == model.aspp.nonnegative
    before = torch.equal(F.relu(out.stages[-1]), out.features) and bool(out.stages[-1].min() < 0)
    assert before == (not model.encoder.activated)


def test_a_method_that_needs_more_says_so() -> None:
    first = make_steps(2)[0]
    with pytest.raises(
        UserError, match=r"DKD needs an embedding that is never negative: set model\.head_activation=relu"
    ):
        skeleton(replace(TINY, head_activation="none"), [first], build_method("DKD"), 0)
    for backbone in ("timm:tf_efficientnet_lite0", "timm:vit_tiny_patch16_224"):
        with pytest.raises(UserError, match=r"RCIL folds a BatchNorm.* timm:resnet50"):
            skeleton(ModelConfig(backbone), [first], build_method("RCIL"), 0)
    skeleton(ModelConfig("timm:resnet18"), [first], build_method("RCIL"), 0)
