"""Files of MiB's, PLOP's and SDR's names start step 0: the network predicts what a network of their names does."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from contseg import run_benchmark
from contseg.benchmark.models.released import parts_of
from contseg.benchmark.models.segmenter import build_model
from contseg.benchmark.plan.model_config import ModelConfig, check, model_identity
from contseg.datasets.errors import UserError
from contseg.tests.unit.networks import images

pytestmark = pytest.mark.numeric

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}
MIB = ModelConfig(
    "resnet18", 16, "none", "batch", 0, head_activation="leaky", dilation="all", encoder_activation="leaky"
)
State = dict[str, Tensor]


def drawn(shapes: dict[str, tuple[int, ...]]) -> State:
    """Weights by name; the gammas have both signs, as in-place ABN leaves them."""
    g = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=g)
        if len(shape) == 4:
            values *= (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
        state[name] = values.abs() + 0.5 if name.endswith("running_var") else values
    return state


def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{what}": (channels,) for what in ("weight", "bias", "running_mean", "running_var")}


def mib_shapes(backbone: str, groups: tuple[int, ...], hidden: int = 256) -> dict[str, tuple[int, ...]]:
    """Names and shapes of MiB's network."""
    deep = backbone == "resnet50"
    shapes: dict[str, tuple[int, ...]] = {"body.mod1.conv1.weight": (64, 3, 7, 7), **norm("body.mod1.bn1", 64)}
    inputs = 64
    for stage, n in enumerate(BLOCKS[backbone]):
        width = 64 * 2**stage
        outputs = 4 * width if deep else width
        for block in range(n):
            at = f"body.mod{stage + 2}.block{block + 1}"
            convs = [(width, inputs, 1), (width, width, 3), (outputs, width, 1)]
            for i, (o, c, k) in enumerate(convs if deep else [(width, inputs, 3), (width, width, 3)], 1):
                shapes |= {f"{at}.convs.conv{i}.weight": (o, c, k, k), **norm(f"{at}.convs.bn{i}", o)}
            if block == 0 and (stage > 0 or deep):
                shapes |= {f"{at}.proj_conv.weight": (outputs, inputs, 1, 1), **norm(f"{at}.proj_bn", outputs)}
            inputs = outputs
    for i in range(4):
        shapes[f"head.map_convs.{i}.weight"] = (hidden, inputs, *((3, 3) if i else (1, 1)))
    shapes |= norm("head.map_bn", 4 * hidden) | norm("head.global_pooling_bn", hidden) | norm("head.red_bn", hidden)
    shapes["head.global_pooling_conv.weight"] = (hidden, inputs, 1, 1)
    shapes["head.red_conv.weight"] = (hidden, 4 * hidden, 1, 1)
    shapes["head.pool_red_conv.weight"] = (hidden, hidden, 1, 1)
    for i, n in enumerate(groups):
        shapes |= {f"cls.{i}.weight": (n, hidden, 1, 1), f"cls.{i}.bias": (n,)}
    return shapes


def mib_logits(state: State, x: Tensor, backbone: str) -> Tensor:
    """MiB's network at stride 16 in evaluation, written from its names: in-place ABN, leaky ReLU, global pooling."""
    w = {k: v.double() for k, v in state.items()}

    def abn(x: Tensor, at: str, slope: float = 0.01) -> Tensor:
        scale = (w[f"{at}.weight"].abs() + 1e-5) / (w[f"{at}.running_var"] + 1e-5).sqrt()
        shift = w[f"{at}.bias"] - w[f"{at}.running_mean"] * scale
        return F.leaky_relu(x * scale[:, None, None] + shift[:, None, None], slope)

    def conv(x: Tensor, at: str, stride: int = 1, dilation: int = 1) -> Tensor:
        kernel = w[f"{at}.weight"]
        return F.conv2d(x, kernel, None, stride, dilation * (kernel.shape[-1] // 2), dilation)

    x = F.max_pool2d(abn(conv(x, "body.mod1.conv1", 2), "body.mod1.bn1"), 3, 2, 1)
    for stage, n in enumerate(BLOCKS[backbone]):
        for block in range(n):
            at, dilation = f"body.mod{stage + 2}.block{block + 1}", 2 if stage == 3 else 1
            stride = 2 if block == 0 and stage in (1, 2) else 1
            by = stride if f"{at}.convs.conv3.weight" not in w else 1  # a bottleneck strides in its second convolution
            y = abn(conv(x, f"{at}.convs.conv1", by, dilation), f"{at}.convs.bn1")
            if by == stride and f"{at}.convs.conv3.weight" not in w:
                y = abn(conv(y, f"{at}.convs.conv2", 1, dilation), f"{at}.convs.bn2", 1)
            else:
                y = abn(conv(y, f"{at}.convs.conv2", stride, dilation), f"{at}.convs.bn2")
                y = abn(conv(y, f"{at}.convs.conv3"), f"{at}.convs.bn3", 1)
            if f"{at}.proj_conv.weight" in w:
                x = abn(conv(x, f"{at}.proj_conv", stride), f"{at}.proj_bn", 1)
            x = F.leaky_relu(x + y, 0.01)
    maps = [conv(x, f"head.map_convs.{i}", 1, rate) for i, rate in enumerate((1, 6, 12, 18))]
    out = conv(abn(torch.cat(maps, 1), "head.map_bn"), "head.red_conv")
    pool = abn(conv(x.mean((2, 3), keepdim=True), "head.global_pooling_conv"), "head.global_pooling_bn")
    out = abn(out + conv(pool, "head.pool_red_conv"), "head.red_bn")
    rows = [k.removesuffix(".weight") for k in w if k.startswith("cls.") and k.endswith(".weight")]
    return torch.cat([F.conv2d(out, w[f"{row}.weight"], w[f"{row}.bias"]) for row in rows], 1)


def checkpoint(state: State, file: Path) -> None:
    """As MiB's run.py saves it: the names of a parallel module, and a score that is a number of numpy."""
    kept = {f"module.{k}": v for k, v in state.items()}
    torch.save({"epoch": 30, "model_state": kept, "optimizer_state": {}, "best_score": np.float64(0.7)}, file)


@pytest.mark.parametrize(("backbone", "groups"), [("resnet18", (5,)), ("resnet18", (3, 2)), ("resnet50", (5,))])
def test_a_checkpoint_of_mib_predicts_as_mibs_network(backbone: str, groups: tuple[int, ...], tmp_path: Path) -> None:
    state = drawn(mib_shapes(backbone, groups))
    checkpoint(state, tmp_path / "15-1-voc_MiB_0.pth")
    model = build_model(replace(MIB, backbone=backbone, weights=str(tmp_path / "15-1-voc_MiB_0.pth")), [5])
    x = images(1, 3, 75, 91).double()
    with torch.no_grad():
        ours, theirs = model.double().eval()(x).logits, mib_logits(state, x, backbone)
    assert (ours.argmax(1) == theirs.argmax(1)).all()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6 * theirs.abs().max().item())
    assert theirs.std() > 0.1  # not all the same


def test_an_imagenet_file_of_inplace_abn_is_an_encoder(tmp_path: Path) -> None:
    state = {k.removeprefix("body."): v for k, v in drawn(mib_shapes("resnet18", ())).items() if k.startswith("body.")}
    head = {"classifier.fc.weight": torch.zeros(1000, 512), "classifier.fc.bias": torch.zeros(1000)}
    kept = {f"module.{k}": v for k, v in (state | head).items()}
    torch.save({"epoch": 1, "arch": "resnet", "state_dict": kept}, tmp_path / "resnet18_iabn_sync.pth.tar")
    model = build_model(replace(MIB, weights=str(tmp_path / "resnet18_iabn_sync.pth.tar")), [3])
    fresh = build_model(MIB, [3])
    assert torch.equal(model.encoder.layer3[1].conv2.weight, state["mod4.block2.convs.conv2.weight"])
    assert torch.equal(model.encoder.bn1.weight, state["mod1.bn1.weight"].abs() + 1e-5)
    assert torch.equal(model.aspp.project.weight, fresh.aspp.project.weight)
    assert torch.equal(model.classifier.blocks[0].weight, fresh.classifier.blocks[0].weight)


def test_a_checkpoint_of_sdrs_default_network_has_plain_norms(tmp_path: Path) -> None:
    """SDR: the body is torchvision's, the head MiB's."""
    body = build_model(replace(MIB, encoder_activation="relu"), [4], seed=7).encoder.state_dict()
    shapes = {k: v for k, v in mib_shapes("resnet18", (4,)).items() if k.startswith(("head.", "cls."))}
    state = {f"body.{k}": v for k, v in body.items()} | drawn(shapes)
    checkpoint(state, tmp_path / "sdr.pth")
    model = build_model(replace(MIB, encoder_activation="relu", weights=str(tmp_path / "sdr.pth")), [4])
    assert all(torch.equal(v, body[k]) for k, v in model.encoder.state_dict().items())
    assert torch.equal(model.aspp.norm.weight, state["head.red_bn.weight"])
    assert model.aspp.norm.weight.min() < 0
    assert torch.equal(model.aspp.maps[2][1].running_mean, state["head.map_bn.running_mean"][512:768])
    assert torch.equal(model.classifier.blocks[0].bias, state["cls.0.bias"])


def test_a_classifier_of_other_classes_is_left_out(tmp_path: Path) -> None:
    state = drawn(mib_shapes("resnet18", (5,)))
    checkpoint(state, tmp_path / "w.pth")
    config = replace(MIB, weights=str(tmp_path / "w.pth"))
    other, fresh = build_model(config, [4]), build_model(MIB, [4])
    assert torch.equal(other.classifier.blocks[0].weight, fresh.classifier.blocks[0].weight)
    assert torch.equal(other.aspp.project.weight, state["head.red_conv.weight"])


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda s: {k: v for k, v in s.items() if "mod3.block2" not in k}, r"lacks 'layer2\.1\.conv1\.weight'"),
        (lambda s: {**s, "scalar": torch.zeros(1)}, r"has a foreign 'scalar'$"),
        (lambda s: {k: v for k, v in s.items() if "red_bn" not in k}, r"lacks 'head\.norm\.weight'"),
        (lambda s: {k: v for k, v in s.items() if k != "cls.0.bias"}, r"lacks 'cls\.bias'$"),
    ],
)
def test_a_file_that_is_not_whole(change: Callable[[State], State], line: str, tmp_path: Path) -> None:
    checkpoint(change(drawn(mib_shapes("resnet18", (5,)))), tmp_path / "w.pth")
    with pytest.raises(UserError, match=line) as error:
        build_model(replace(MIB, weights=str(tmp_path / "w.pth")), [5])
    assert "\n" not in str(error.value)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "executed",)

    torch.save({"model_state": {"body.mod1.conv1.weight": torch.zeros(1)}, "trainer_state": Evil()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="it holds Python objects"):
        build_model(replace(MIB, weights=str(tmp_path / "w.pth")), [5])
    assert not (tmp_path / "executed").exists()


def test_gammas_are_recognised_by_their_statistics() -> None:
    parts = parts_of({"mod1.conv1.weight": -torch.ones(1), "mod1.bn1.weight": -torch.ones(1),
                      "mod1.bn1.running_mean": -torch.ones(1)})  # fmt: skip
    assert parts.leaky and parts.encoder["conv1.weight"] == -1 and parts.encoder["bn1.weight"] == 1 + 1e-5
    assert parts.encoder["bn1.running_mean"] == -1


# --- the network and its words -------------------------------------------------------------------------------------


def test_leaky_relu_in_the_encoder() -> None:
    model = build_model(MIB, [3])
    with torch.no_grad():
        features, stages = model.eval().encoder(images(1, 3, 64, 64))
    torch.testing.assert_close(features, torch.where(stages[-1] > 0, stages[-1], 0.01 * stages[-1]))
    assert features.min() < 0 and not model.encoder.nonnegative
    assert "encoder_activation" not in model_identity(replace(MIB, encoder_activation="relu"))
    with pytest.raises(
        UserError, match=r"model\.encoder_activation=leaky: only torchvision's ResNets have it, not tiny"
    ):
        check(ModelConfig("tiny", encoder_activation="leaky"))


def test_a_plan_says_what_step_0_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(drawn(mib_shapes("resnet18", (4,))), tmp_path / "w.pth")
    words = ["plan", "--scenarios", "shapes/3-3/overlapped", "--methods", "FT", "--out", str(tmp_path / "out"), "--set"]
    words += ["model.backbone=resnet18", f"model.weights={tmp_path / 'w.pth'}", "model.encoder_activation=leaky"]
    assert run_benchmark.main(words) == 0
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "has released names: step 0 begins with the encoder, the ASPP, the 4 rows of the classifier; " in said
    assert said.endswith("it was trained with model.head_activation=leaky model.dilation=all\n")
    assert run_benchmark.main([*words, "model.head_activation=leaky", "model.dilation=all"]) == 0
    assert capsys.readouterr().err.endswith("the 4 rows of the classifier\n")
    words[2] = "shapes/4-2/overlapped"
    assert run_benchmark.main(words) == 0
    assert "the ASPP, no classifier (it has 4 rows)" in capsys.readouterr().err
