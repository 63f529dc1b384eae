"""Optimiser, groups, schedule: literal tables, AdamW by hand, and the same bits after an interruption."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from contseg.benchmark.models.encoders import build_encoder
from contseg.benchmark.models.segmenter import Segmenter, build_model, set_norm
from contseg.benchmark.models.timm_encoder import TimmEncoder
from contseg.benchmark.plan import model_config
from contseg.benchmark.plan.config import TrainConfig, read_config
from contseg.benchmark.plan.model_config import ModelConfig
from contseg.benchmark.store.files import write_tensors
from contseg.benchmark.train import checkpoint
from contseg.benchmark.train.distributed import InterruptedStepError
from contseg.benchmark.train.optimiser import (
    layer_factors,
    layer_numbers,
    make_optimiser,
    parameter_groups,
    rate_factor,
    undecayed,
)
from contseg.datasets.errors import UserError
from contseg.methods.base import CrossEntropy, train_all
from contseg.methods.dkd import SlowEncoder
from contseg.tests.unit.networks import make_steps
from contseg.tests.unit.steps import Grid

pytestmark = pytest.mark.numeric

ADAMW = ("train.optimizer=adamw", "train.lr=0.01,0.002", "train.weight_decay=0.1")


def network() -> Segmenter:
    return build_model(ModelConfig("tiny", weights="none", norm="batch"), [3])


def encoder(backbone: str) -> nn.Module:
    """Without memory."""
    with torch.device("meta"):
        return TimmEncoder(backbone, 16) if backbone.startswith("timm:") else build_encoder(backbone, 16)


# --- schedule ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "warmup", "factors"),
    [
        ({"power": 1.0}, 0, [1, 0.75, 0.5, 0.25]),
        ({"power": 2.0}, 0, [1, 0.5625, 0.25, 0.0625]),
        ({"power": 0.9}, 0, [1, 0.771890, 0.535887, 0.287175]),
        ({"power": 0.0}, 0, [1, 1, 1, 1]),
        ({"schedule": "cosine"}, 0, [1, 0.853553, 0.5, 0.146447]),
        ({"schedule": "cosine", "power": 3.0}, 0, [1, 0.853553, 0.5, 0.146447]),  # the power is poly's
        ({"power": 0.0}, 1, [0.5, 1, 1, 1]),
        ({"power": 0.0}, 3, [0.25, 0.5, 0.75, 1]),
        ({"power": 1.0}, 3, [0.25, 0.375, 0.375, 0.25]),
        ({"schedule": "cosine"}, 1, [0.5, 0.853553, 0.5, 0.146447]),
    ],
)
def test_the_rate_of_each_of_four_updates(changes: dict[str, Any], warmup: int, factors: list[float]) -> None:
    train = replace(TrainConfig(), **changes)
    assert [rate_factor(train, u, 4, warmup) for u in range(4)] == pytest.approx(factors, abs=1e-6)


@pytest.mark.parametrize(
    ("words", "images", "updates"),
    [
        ("train.warmup=1", 96, 4),
        ("train.warmup=0.5", 96, 2),
        ("train.warmup=0.1", 96, 0),
        ("train.warmup=2", 5, 2),  # fewer images than a batch: an update is an epoch
        ("train.warmup=1 train.updates=5", 96, 4),
    ],
)
def test_a_warm_up_counts_epochs(words: str, images: int, updates: int) -> None:
    assert read_config(None, words.split()).train.at(0).warmup_updates(images) == updates


def test_a_warm_up_of_later_steps_alone(tmp_path: Path) -> None:
    grid = Grid(tmp_path, ("FT",), ("train.updates=4", "train.warmup=0,1", "train.power=0"))  # two updates an epoch
    rates = []
    for index in (0, 1):
        step = grid.trainer(index)
        for update in range(4):
            step._set_rate(update)
            rates.append(step.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.05, 0.05, 0.05, 0.05, 0.01, 0.02, 0.03, 0.03])


# --- layers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "layers"),
    [
        ("tiny", {"stem.0.weight": 0, "layer1.conv1.weight": 1, "layer3.bn2.bias": 3}),
        (
            "resnet18",
            {"conv1.weight": 0, "bn1.bias": 0, "layer1.0.conv1.weight": 1, "layer1.1.bn1.weight": 2}
            | {"layer2.0.downsample.0.weight": 3, "layer4.1.bn2.bias": 8},
        ),
        ("timm:resnet18", {"net.conv1.weight": 0, "net.layer1.0.conv1.weight": 1, "net.layer4.1.bn2.bias": 8}),
        (
            "timm:swin_tiny_patch4_window7_224",  # 2, 2, 6, 2 blocks
            {"net.patch_embed.proj.weight": 0, "net.layers_0.blocks.1.norm1.weight": 2}
            | {"net.layers_1.downsample.norm.weight": 3, "net.layers_1.blocks.0.norm1.weight": 3}
            | {"net.layers_3.blocks.1.mlp.fc2.bias": 12},
        ),
        (
            "timm:vit_tiny_patch16_224",
            {"net.model.pos_embed": 0, "net.model.cls_token": 0, "net.model.patch_embed.proj.weight": 0}
            | {"net.model.blocks.0.norm1.weight": 1, "net.model.blocks.11.mlp.fc2.bias": 12},
        ),
        (
            "timm:tf_efficientnet_lite0",  # 1, 2, 2, 3, 3, 4, 1 blocks
            {"net.conv_stem.weight": 0, "net.blocks.0.0.conv_dw.weight": 1, "net.blocks.6.0.conv_pw.weight": 16},
        ),
        ("timm:densenet121", {"net.features_conv0.weight": 0, "net.features_denseblock1.denselayer1.norm1.weight": 1}),
    ],
)
def test_the_layer_of_a_parameter(backbone: str, layers: dict[str, int]) -> None:
    of = encoder(backbone)
    found = layer_numbers(of)
    assert {name: found[name] for name in layers} == layers
    assert found.keys() == {name for name, _ in of.named_parameters()}
    assert {*found.values()} == {*range(max(found.values()) + 1)}


def test_layers_keep_their_numbers_under_another_norm() -> None:
    changed = encoder("timm:tf_efficientnet_lite0")
    plain = layer_numbers(changed)
    set_norm(changed, "group")
    found = layer_numbers(changed)
    assert all(layer == plain.get(name, layer) for name, layer in found.items())
    assert found["net.blocks.6.0.bn1.0.weight"] == max(found.values()) == 16


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto"])
def test_factors_and_decay_are_timms(backbone: str) -> None:
    """Its own classifier in the place of ours."""
    ours = encoder(f"timm:{backbone}")
    factors, free = layer_factors(ours, 0.8), undecayed(SimpleNamespace(encoder=ours, parameters=ours.parameters))
    with torch.device("meta"):
        theirs = timm.create_model(backbone)
    groups = param_groups_layer_decay(theirs, 0.05, theirs.no_weight_decay() if "convnext" not in backbone else (),
                                      layer_decay=0.8)  # fmt: skip
    wanted = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    named = {name.replace(".", "_"): wanted[id(p)] for name, p in theirs.named_parameters()}
    found = 0
    for name, p in ours.named_parameters():
        own = name.removeprefix("net.").removeprefix("model.").replace(".", "_")
        if own in named:  # not the norms that timm adds to its stages
            assert (factors[id(p)], 0.0 if id(p) in free else 0.05) == pytest.approx(named[own]), name
            found += 1
    assert found > 0.95 * len([*ours.parameters()])


def test_what_lies_behind_the_encoder_has_the_full_rate() -> None:
    model = network()
    train = replace(TrainConfig(), lr=(0.1,), layer_decay=0.5)
    rates = {id(p): g["lr"] for g in parameter_groups(model, train_all(model, make_steps(2)[0]), train)
             for p in g["params"]}  # fmt: skip
    assert rates[id(model.encoder.stem[0].weight)] == 0.1 * 0.5**4
    assert rates[id(model.encoder.layer3.conv2.weight)] == 0.1 * 0.5
    assert {rates[id(p)] for p in (*model.aspp.parameters(), *model.classifier.parameters())} == {0.1}


# --- groups --------------------------------------------------------------------------------------------------------


def test_sgd_keeps_a_methods_groups_as_they_are() -> None:
    model = network()
    groups = SlowEncoder(0.1)(model, make_steps(2)[0])
    made = make_optimiser(model, groups, TrainConfig().at(0), torch.device("cpu"))
    assert isinstance(made, torch.optim.SGD)
    assert [g["lr"] for g in made.param_groups] == [0.01 * 0.1, 0.01]
    assert [g["weight_decay"] for g in made.param_groups] == [1e-4, 1e-4]
    for group, own in zip(made.param_groups, groups, strict=True):
        assert [id(p) for p in group["params"]] == [id(p) for p in own["params"]]


def test_a_methods_factors_and_decays_are_kept_with_adamw_and_layers() -> None:
    """DKD's later steps: a slow encoder, weight decay on new rows alone, frozen norms."""
    model = network()
    model.classifier.grow(2)
    step = make_steps(2, 2)[1]
    train = replace(TrainConfig(), optimizer="adamw", lr=(0.1,), weight_decay=0.05, layer_decay=0.5)
    made = make_optimiser(model, SlowEncoder(0.1)(model, step), train, torch.device("cpu"))
    assert isinstance(made, torch.optim.AdamW)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in made.param_groups for p in g["params"]}
    assert found[id(model.encoder.layer3.conv1.weight)] == pytest.approx((0.1 * 0.1 * 0.5, 0))
    assert found[id(model.encoder.stem[0].weight)] == pytest.approx((0.1 * 0.1 * 0.0625, 0))
    assert found[id(model.aspp.project.weight)] == (0.1, 0)
    assert found[id(model.classifier.blocks[1].weight)] == (0.1, 0.05)
    assert found[id(model.classifier.blocks[1].bias)] == (0.1, 0)
    assert id(model.encoder.layer1.bn1.weight) not in found
    assert sum(len(g["params"]) for g in made.param_groups) == len(found)


# --- AdamW ---------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Noted(CrossEntropy):
    """Notes the gradients of every update."""

    gradients: list[dict[str, Tensor]] = field(default_factory=list, init=False)

    def after_backward(self, model: Any) -> None:
        self.gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("index", [0, 1])
def test_adamw_by_hand(index: int, tmp_path: Path) -> None:
    """Kingma and Ba's moments, Loshchilov and Hutter's decay (arXiv 1711.05101, algorithm 2)."""
    sets = ("train.precision=double", "train.updates=7", "train.schedule=cosine", "train.warmup=1")
    grid = Grid(tmp_path, ("FT",), (*ADAMW, *sets, "train.layer_decay=0.5", "train.momentum=0.8"))
    step = grid.trainer(index)
    step.terms["ce"] = term = Noted()
    want = {n: p.detach().clone() for n, p in step.model.named_parameters()}
    step.run()
    layers, rate = layer_numbers(step.model.encoder), (0.01, 0.002)[index]
    first, second = ({n: torch.zeros_like(p) for n, p in want.items()} for _ in range(2))
    assert len(term.gradients) == 7
    for t, gradients in enumerate(term.gradients, 1):
        factor = (1 + math.cos(math.pi * (t - 1) / 7)) / 2 * min(1, t / 3)  # two updates of warm-up
        for name, g in gradients.items():
            lr = rate * factor * 0.5 ** (4 - layers.get(name.removeprefix("encoder."), 4))
            decay = 0.1 if want[name].ndim > 1 else 0.0
            first[name] = 0.8 * first[name] + 0.2 * g
            second[name] = 0.999 * second[name] + 0.001 * g**2
            step_size = first[name] / (1 - 0.8**t) / ((second[name] / (1 - 0.999**t)).sqrt() + 1e-8)
            want[name] = want[name] - lr * decay * want[name] - lr * step_size
    for name, p in step.model.named_parameters():
        torch.testing.assert_close(p.detach(), want[name], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("method", ["DKD", "MiB+SDR"])
def test_an_interrupted_step_ends_with_the_same_bits(method: str, tmp_path: Path) -> None:
    sets = (*ADAMW, "train.updates=20", "train.warmup=2", "train.layer_decay=0.8", "train.jitter=0.5,0.5,0.5,0.1")
    whole, cut = Grid(tmp_path / "whole", (method,), sets), Grid(tmp_path / "cut", (method,), sets)
    whole.run()
    for index in (0, 1):
        step = cut.trainer(index)
        step.stop = lambda: True
        with pytest.raises(InterruptedStepError):
            step.run()
        again = cut.trainer(index)
        again.load_checkpoint()
        assert again.progress.update == 10
        theirs = dict(again.model.named_parameters())
        moments = [(step.optimizer.state[p], again.optimizer.state[theirs[n]]) for n, p in step.model.named_parameters()
                   if p in step.optimizer.state]  # fmt: skip
        assert len(moments) > 10
        for one, other in moments:
            assert one.keys() == other.keys() == {"step", "exp_avg", "exp_avg_sq"}
            assert all(torch.equal(one[k], other[k]) for k in one) and one["step"] == 10
        assert cut.run(cut.node(index).key).interrupted == 0
        key = whole.node(index).key
        assert cut.store.meta(key)["sha256"] == whole.store.meta(key)["sha256"]


def test_a_recipe_of_one_method_leaves_the_others_alone(tmp_path: Path) -> None:
    grid = Grid(tmp_path, ("FT", "MiB[train.optimizer=adamw,train.lr=0.001]"))
    kinds = {n.method: type(grid.trainer(0, n.method).optimizer) for n in grid.plan.nodes.values() if n.index == 0}
    assert kinds == {"FT": torch.optim.SGD, "MiB[train.lr=0.001,train.optimizer=adamw]": torch.optim.AdamW}


# --- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train.optimizer=adam", "unknown train.optimizer 'adam': did you mean 'adamw'? Known: adamw, sgd"),
        ("train.schedule=cos", "unknown train.schedule 'cos': did you mean 'cosine'? Known: cosine, poly"),
        ("train.warmup=-1", "train.warmup must be >= 0, not -1"),
        ("train.layer_decay=0", "train.layer_decay must be > 0 and <= 1, not 0"),
        ("train.layer_decay=1.1", "train.layer_decay must be > 0 and <= 1, not 1.1"),
        (
            "train.jitter=0.5",
            "train.jitter must be empty or four numbers, brightness, contrast, saturation, hue, such as "
            "0.5,0.5,0.5,0, not 0.5",
        ),
        (
            "train.jitter=0.5,0.5,0.5,0.6",
            "train.jitter=0.5,0.5,0.5,0.6: the last number, of the hue, must be <= 0.5 (half the circle of hues)",
        ),
        ("train.jitter=1,1,1,1,1", "train.jitter must be 0 to 4 numbers >= 0, not 1,1,1,1,1"),
        ("train.layer_decay=0.9 model.backbone=resnet19", "unknown backbone 'resnet19'"),
    ],
)
def test_a_mistake_is_one_line(words: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        read_config(None, words.split())
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_a_warm_up_longer_than_a_step_is_refused_by_the_plan(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        _ = Grid(tmp_path, ("FT[train.warmup=1.5]",)).plan
    assert str(caught.value) == (
        "train.warmup=1.5: that is 3 updates, and a step of 8 images has 3: lower it (it counts epochs)"
    )


def test_a_network_whose_layers_are_unknown_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_config, "whole_network", lambda name: object())
    with pytest.raises(UserError, match=r"timm does not say which layers timm:resnet18 has; set train\.layer_decay=1"):
        read_config(None, ["model.backbone=timm:resnet18", "train.layer_decay=0.9"])


def test_processes_that_read_different_checkpoints_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a kill, a shared file system may show one process what another does not see yet."""
    path = tmp_path / "checkpoint.safetensors"
    write_tensors(path, {}, {"layout": checkpoint.LAYOUT, "observers": [], "progress": {"update": 7}})
    assert checkpoint.read(path, ()) is not None and checkpoint.read(tmp_path / "none", ()) is None
    for other in ("none", "update 4"):
        monkeypatch.setattr(checkpoint, "gather", lambda own, other=other: [own, other])
        with pytest.raises(UserError, match=rf"different checkpoints \(update 7, {other}\): a shared file system"):
            checkpoint.read(path, ())
