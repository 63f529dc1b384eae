"""F-AWT: scores, mask and the rows that come of it."""

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from contseg.methods.awt import TransferAttributed, attribution, top_channels
from contseg.methods.base import SegOutput, StepContext
from contseg.tests.golden.harness import Fixture, make_step, operation


def rows(weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    conv = nn.Conv2d(weight.shape[1], len(weight), 1).to(weight.dtype)
    conv.load_state_dict({"weight": weight[..., None, None], "bias": weight[:, 0] if bias is None else bias})
    return conv


@operation("awt_init")
def awt_init(fixture: Fixture) -> None:
    weight, drawn = fixture.tensor("in_weight"), fixture.tensor("in_drawn_weight")
    bias, n_old = fixture.tensor("in_drawn_bias"), fixture["cfg_old_classes"]
    step, indices = make_step(n_old, len(drawn)), range(fixture["cfg_pictures"])
    labels = [fixture.tensor(f"in_labels_{i}") for i in indices]
    maps = [tuple(fixture.tensor(f"in_features_{k}{i}") for k in ("", "zero_")) for i in indices]
    share = fixture["cfg_top"] / weight.shape[1]

    parts = [attribution(f - zero, y, n_old, weight[0]) for (f, zero), y in zip(maps, labels, strict=True)]
    total, images = sum(p[0] for p in parts), sum(p[1] for p in parts)
    scale = (labels[0].shape[1] / maps[0][0].shape[2]) ** 2  # the release sums the logit at label size
    fixture.check("released_score", scale * (total / images).amax((1, 2)))
    fixture.check("released_mask", top_channels(total, images, share).long())

    class Classifier:
        def __init__(self) -> None:
            self.blocks = [rows(weight)]

        def grow(self, n: int) -> None:
            self.blocks.append(rows(drawn, bias))

    class Previous:
        """The features of the image that the loader gave last, or of zeros."""

        classifier = Classifier()
        at = 0

        def __call__(self, image: Tensor) -> SegOutput:
            features = maps[self.at][0 if image.any() else 1]
            return SegOutput(features, features, features)

    old = Previous()

    def loader():
        for old.at in indices:
            yield torch.ones(1, 3, *labels[old.at].shape[1:]), labels[old.at]

    for name in ("intended", "released"):
        model = SimpleNamespace(classifier=SimpleNamespace(blocks=[rows(weight), rows(drawn * 0)]))
        TransferAttributed(share, name)(StepContext(step, model, old, loader))
        new = model.classifier.blocks[-1]
        key = "paper_new_weight" if name == "intended" else "released_new_weight"
        fixture.check(key, new.weight[:, :, 0, 0])
        fixture.check("released_new_bias", new.bias)
