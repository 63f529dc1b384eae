"""What does not compose is refused where it is composed; what does is not."""

import pytest

from contseg.datasets.errors import UserError
from contseg.methods.base import Method, StepContext
from contseg.methods.external import external_of
from contseg.methods.registry import addons, build_method
from contseg.tests.unit.probe import grid

LATER = ("SDR", "UCD", "EWF", "AWT", "NeST", "UAC")
FIXED = "and {0} trains nothing after step 0"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *((f"Joint+{name}", f"{name} acts on later steps, and Joint trains once") for name in LATER),
        ("CFSSeg+UCD", "UCD acts on later steps, " + FIXED.format("CFSSeg")),
        ("CFSSeg+UAC", "UAC acts on later steps, " + FIXED.format("CFSSeg")),
        ("NearestPrototype+SDR", "SDR acts on later steps, " + FIXED.format("NearestPrototype")),
        ("NearestPrototype+NeST", "NeST acts on later steps, " + FIXED.format("NearestPrototype")),
        ("FrozenBackbone+SDR", "SDR acts through the encoder, and FrozenBackbone trains none of it after step 0"),
        ("SSUL+SDR[formulation=printed]", "SDR acts through the encoder, and SSUL"),
        ("DFTStar+UCD", "UCD acts through the embedding, and DFTStar"),
        ("LinearProbe+UCD", "UCD acts through the embedding, and LinearProbe"),
        ("SSUL-M+UCD", "UCD acts through the embedding, and SSUL-M"),
        ("SSUL+Memory[loss=bce]", "Memory acts through the old rows, and SSUL"),
        ("DFTStar[reserve=2]+Memory[loss=bce]", "Memory acts through the old rows, and DFTStar"),
        ("MiB+AWT+NeST", "NeST writes the new rows, and MiB+AWT has written them already"),
        ("STAR+AWT", "AWT makes new rows of background's, and STAR never trains that one"),
        ("Adapter+NeST", "NeST makes new rows of background's, and Adapter never trains that one"),
        *((f"{m}+EWF", f"EWF moves weights after the last update, and {m} reads") for m in ("PI", "RW", "PI+SDR")),
        ("PI[formulation=released]+EWF", "EWF moves weights after the last update, and PI"),
        *(
            (f"{m}+Memory[loss=augm]", f"hides stored images as void, which counts in {m.partition('[')[0]}")
            for m in ("PLOP", "REMINDER", "ALIFE", "LwF-MC[targets=replaced]")
        ),
        ("PLOP+Memory[loss=bce]", "which counts in PLOP's mean: write loss=shared"),
        ("SSUL+AWT", "AWT writes rows of a 1x1 classifier, and SSUL predicts by other heads"),
    ],
)
def test_an_addon_that_would_change_nothing_is_one_line(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        build_method(text)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *(f"FT+{name}" for name in addons() if name != "UCB"),
        "FT+Memory[loss=bce]",
        *(f"{m}+Memory" for m in ("PLOP", "REMINDER", "ALIFE", "LwF-MC[targets=replaced]")),
        "LwF-MC+Memory[loss=bce]",
        "EWC+EWF",
        "RW[formulation=released]+EWF",
        "FrozenBackbone+UCD",
        "LinearProbe+Memory[loss=bce]",
        "DFTStar+UAC",
        "DFTStar+NeST",
        "DFTStar+Memory[loss=augm]",
        "STAR+Memory[loss=bce]",
        "SSUL+Memory",
        "REMINDER+SDR",
        "STAR+UCD",
        "STAR-M+UCD",
        "Adapter+UCD",
    ],
)
def test_an_addon_that_acts_is_taken(text: str) -> None:
    assert build_method(text).name == text


def test_reserved_rows_are_no_joint_training() -> None:
    """DFT* looks at the scenario to count its rows, and trains every step of it."""
    method = build_method("DFTStar[reserve=3]+Memory[size=2]")
    assert method.memory is not None and external_of(method) == ("n_classes", "mem=2")
    plan = grid(method=method.name, scenario="mini/1-1/overlapped")
    assert [len(cell.node.view.stored) for cell in plan.runs[0].cells] == [0, 2, 2, 2]
    joint = build_method("Joint[like=DFTStar[reserve=3]]")
    assert external_of(joint) == () and joint.build is not type(joint).build


def test_a_hook_that_only_reads_the_trained_network_goes_with_pi() -> None:
    def norm(ctx: StepContext) -> None:
        """Log a norm, say."""

    method = build_method("PI").plus(Method("Mine", terms={}, first={}, end_step=(norm,)))
    assert method.end_step == (norm,)
