"""F-RC, F-RC-MERGE and F-PCKD."""

import torch
from torch import nn

from contseg.methods.base import SegOutput
from contseg.methods.rcil import Branches, PooledCube, mix, pooled_cube
from contseg.tests.golden.harness import Fixture, make_batch, make_step, operation


def branch(fixture: Fixture, number: int, released: bool) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    weight, gamma, beta, mean, var = (
        fixture.tensor(f"in_branch{number}_{k}") for k in ("weight", "gamma", "beta", "mean", "var")
    )
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, bias=False).to(fixture.dtype)
    norm = nn.BatchNorm2d(len(gamma), eps=fixture["cfg_eps"]).to(fixture.dtype)
    with torch.no_grad():
        conv.weight.copy_(weight)
        # the in-place activated norm of the release has |gamma| + eps for gamma
        norm.weight.copy_(gamma.abs() + norm.eps if released else gamma)
        norm.bias.copy_(beta)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
    return conv, norm


@operation("rcil_merge")
def rcil_merge(fixture: Fixture) -> None:
    x, draw = fixture.tensor("in_x"), fixture.tensor("in_r").flatten()
    for kind in ("paper", "released"):
        branches = Branches(*branch(fixture, 1, kind == "released")).eval()
        branches.second = nn.Sequential(*branch(fixture, 2, kind == "released")).eval()
        fixture.check(f"{kind}_train", mix(branches.first(x), branches.second(x), draw))
        fixture.check(f"{kind}_eval", branches(x))
        branches.merge("kept")
        fixture.check(f"{kind}_merged_weight", branches.first.weight)
        fixture.check(f"{kind}_merged_bias", branches.first.bias)
        if kind == "released":
            fixture.check("released_eval_after_merge", branches(x))


@operation("rcil_pckd")
def rcil_pckd(fixture: Fixture) -> None:
    n = range(fixture["cfg_n_layers"])
    old, new = [fixture.tensor(f"in_old_{i}") for i in n], [fixture.leaf(f"in_new_{i}") for i in n]
    classes = fixture["cfg_old_classes"], fixture["cfg_new_classes"]
    factors = fixture["cfg_factor"], fixture["cfg_factor_last"]
    # the stages' ReLU passes a map's sizes, and only squares are compared
    outs = [SegOutput(x[-1], x[-2], x[-2], tuple(a.abs() for a in x[:-2])) for x in (old, new)]
    batch = make_batch(fixture, make_step(*classes), torch.zeros(len(new[0]), 8, 8, dtype=torch.int64))
    batch.out, batch._old = outs[1], outs[0]
    loss = PooledCube(*factors)(batch)
    channel = pooled_cube(old, new, *classes, factor=factors[0], last=factors[1])[1].mean()
    for kind in ("paper", "released"):
        fixture.check(f"{kind}_spatial", loss - channel)
        fixture.check(f"{kind}_channel", channel)
    for i in n:
        fixture.check_gradient(f"released_grad_new_{i}", loss, new[i])
