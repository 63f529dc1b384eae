"""External data: codes of weights, of methods and of records; rows of different codes are not ranked together."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from contseg.benchmark.plan.external import codes, network_codes, recorded, weights_name
from contseg.benchmark.plan.model_config import ModelConfig
from contseg.benchmark.plan.protocol import PROTOCOLS
from contseg.benchmark.report.reporter import leaderboard, render
from contseg.benchmark.score.leaderboard import paired_differences
from contseg.benchmark.score.published import alike, load_published
from contseg.benchmark.score.records import fault
from contseg.datasets.errors import UserError
from contseg.methods.base import CrossEntropy, Method, Term
from contseg.methods.external import external_of, ordered
from contseg.methods.registry import build_method
from contseg.tests.records import Record, make_run

SDR = PROTOCOLS["sdr"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", ()),
        ("resnet101-63fe2227.pth", ("in1k",)),
        ("efficientnet-lite0-57934424.pth", ("in1k",)),
        ("convnext_tiny.in12k_ft_in1k", ("in21k",)),
        ("swin_large_patch4_window12_384.ms_in22k_ft_in1k", ("in21k",)),
        ("swin_base_patch4_window12_384_22k.pth", ("in21k",)),
        ("vit_base_patch16_clip_224.openai", ("fm",)),
        ("vit_small_patch14_dinov2.lvd142m", ("fm",)),
        ("deeplabv3_resnet101_coco-586e9e4e.pth", ("coco",)),
        ("resnet50.fb_ssl_yfcc100m_ft_in1k", ("in1k", "web")),
        ("resnet101_iabn_sync.pth.tar", ("in1k",)),
        ("15-1-voc_MiB_0.pth", ("unknown",)),
    ],
)
def test_the_name_of_weights_says_what_they_saw(name: str, expected: tuple[str, ...]) -> None:
    assert network_codes(name) == expected


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (ModelConfig(), "resnet101-63fe2227.pth"),
        (ModelConfig(weights="none"), ""),
        (ModelConfig(backbone="tiny"), ""),
        (ModelConfig(norm="group"), ""),  # "auto": none were trained with GroupNorm
        (ModelConfig(weights="/no/where/mine_in21k.pth"), "mine_in21k.pth"),
    ],
)
def test_auto_is_spelled_out(model: ModelConfig, name: str) -> None:
    assert weights_name(model) == name


def test_a_file_is_what_its_name_says_also_if_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "net_22k.pth").write_bytes(b"other weights")
    assert weights_name(ModelConfig(weights=str(tmp_path / "net_22k.pth"))) == "net_22k.pth"


@dataclass(eq=False)
class Saliency(Term):
    external: ClassVar[tuple[str, ...]] = ("sal",)


@dataclass(eq=False)
class Wrong(Term):
    external: ClassVar[tuple[str, ...]] = ("saliency",)


def test_terms_and_hooks_declare_what_they_bring() -> None:
    assert external_of(build_method("DFTStar[reserve=5]")) == ("n_classes",)
    assert external_of(build_method("DFTStar")) == external_of(build_method("MiB+SDR")) == ()
    method = Method("M", {"ce": CrossEntropy()}).plus(Method("A", {"sal": Saliency()}, first={}))
    assert external_of(method) == ("sal",)
    assert codes(ModelConfig(), "DFTStar[reserve=5]") == ("in1k", "n_classes")
    with pytest.raises(UserError, match="unknown code of external data 'saliency'"):
        external_of(Method("M", {"ce": Wrong()}))


@pytest.mark.parametrize("code", ["mem", "mem=x", "sal=3", "in2k"])
def test_a_code_that_is_none_is_one_line(code: str) -> None:
    with pytest.raises(UserError):
        ordered([code])
    record = make_run(external=[code])[0]
    assert code.partition("=")[0] in str(fault(record))


def test_codes_stand_in_one_order() -> None:
    assert ordered(["mem=100", "sal", "in1k", "sal"]) == ("in1k", "sal", "mem=100")


def test_a_record_says_it_and_an_older_one_is_read_from_its_configuration() -> None:
    old = make_run("DFTStar[reserve=5]", config={"model": {"backbone": "resnet101", "weights": "auto"}})[0]
    assert recorded(old) == ("in1k", "n_classes")
    assert recorded({**old, "external": ["in21k"]}) == ("in21k",)
    assert recorded({**old, "external": []}) == ()
    assert recorded({**old, "method": "ThirdParty"}) == ("in1k", "unknown")
    assert recorded({**old, "config": {"model": {"backbone": "theirs"}}}) == ("n_classes", "unknown")


def run(method: str, level: float, *codes: str) -> list[Record]:
    found = [make_run(method, s, hit=lambda t, k, s=s: level + 0.01 * s, external=[*codes]) for s in range(3)]
    return [record for one in found for record in one]


def test_only_equal_codes_are_ranked_together_and_stand_beside_the_name() -> None:
    records = run("FT", 0.3, "in1k") + run("MiB", 0.5, "in1k") + run("SSUL", 0.9, "in1k", "sal")
    records += (
        run("DKD", 0.8, "in1k", "mem=50") + run("PLOP", 0.7, "in1k", "mem=50") + run("EWC", 0.6, "in1k", "mem=20")
    )
    board = leaderboard(records, SDR)
    assert {board.frame["method"][i] for i, c in board.leaders if c == "all"} == {"MiB", "DKD"}
    assert len(paired_differences(board)) == 2
    text = render(board, "markdown")
    for name in ("FT", "MiB", "SSUL, sal", "DKD, mem=50", "EWC, mem=20"):
        assert f"\n| {name} " in text
    assert "SSUL, sal is" not in text  # the foot explains parameters that were left out, and here are none
    assert "external data: in1k: weights trained on ImageNet-1k; sal: saliency maps of another network; mem" in text


def test_in1k_is_printed_where_rows_from_scratch_stand_beside() -> None:
    text = render(leaderboard(run("FT", 0.3) + run("MiB", 0.5, "in1k"), SDR), "markdown")
    assert "\n| MiB, in1k " in text and "\n| FT  " in text


# --- published rows ------------------------------------------------------------------------------------------------


def test_every_published_row_has_codes() -> None:
    table = load_published()
    assert len(table) == 723
    said = table["external"].str.split().map(frozenset)
    assert said.map(bool).all()
    assert said.map(lambda c: bool(c & {"in1k", "coco", "unknown"})).all()
    assert (said.map(lambda c: "coco" in c)).sum() == 17
    assert (said.map(lambda c: "web" in c)).sum() == 7
    memory = said.map(lambda c: any(code.startswith("mem=") for code in c))
    assert set(table["method"][memory]) == {
        *("AMSS (exemplar memory)", "DKD-M", "ILT-M", "MiB-M", "PLOP-M", "SATS-M", "SSUL-M", "STAR-M")
    }
    assert table["method"].str.endswith("-M")[~memory].sum() == 0
    here = table["method"].isin(["SSUL", "SSUL-M"]) & (table["dataset"] == "voc")
    assert said[here].map(lambda c: "sal" in c).all() and not said[~here].map(lambda c: "sal" in c).any()


@pytest.mark.parametrize(
    ("here", "there", "same"),
    [
        (["in1k"], ["in1k"], True),
        (["in1k"], ["unknown"], True),
        ([], ["unknown"], True),
        ([], ["in1k"], False),
        (["in1k"], ["in1k", "sal"], False),
        (["in1k"], ["unknown", "sal"], False),
        (["in1k", "mem=100"], ["unknown", "mem=100"], True),
        (["in1k", "mem=100"], ["in1k", "mem=?"], False),
        (["in1k"], [], True),  # a table of the user's own that does not say it
    ],
)
def test_what_may_be_compared(here: list[str], there: list[str], same: bool) -> None:
    assert alike(here, there) is same


def test_a_published_code_that_is_none_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(
        "method,dataset,task,setup,old,new,all,includes_background,source,provenance,external\n"
        "MiB,voc,15-1,overlapped,1,2,3,yes,me,own,in1k sall\n"
    )
    with pytest.raises(UserError, match="line 2: unknown code of external data 'sall': did you mean 'sal'"):
        load_published([path])
