"""F-EWF: the fused state."""

from contseg.methods.ewf import fuse_, fusion_weight
from contseg.tests.golden.harness import Fixture, operation


@operation("ewf_fuse")
def ewf_fuse(fixture: Fixture) -> None:
    old, state = (
        {key.removeprefix(prefix): fixture.tensor(key) for key in fixture.arrays if key.startswith(prefix)}
        for prefix in ("in_old__", "in_new__")
    )
    alpha = fusion_weight(fixture["cfg_old_classes"], fixture["cfg_new_classes"])
    fixture.check("released_alpha", alpha)
    fuse_(state, old, alpha)
    for name, fused in state.items():
        fixture.check(f"released__{name}", fused)
        fixture.no_counterpart(f"released_thresholded__{name}", "an option of the release that is not in the paper")
