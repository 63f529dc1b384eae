"""Every default: the table of docs/methods.md, what the recipes make of it, and what each term is a mean over."""

import re
from dataclasses import MISSING, fields

import pytest
import torch
from torch import Tensor

from contseg.benchmark.contract.check import carried
from contseg.datasets.scenario import VOID
from contseg.methods import registry
from contseg.methods.adapter import UncertainRunnerUp
from contseg.methods.alife import ForegroundCrossEntropy
from contseg.methods.base import Batch, CrossEntropy, Method, SegOutput, Term, held
from contseg.methods.cil import LabelledCrossEntropy, UnlabelledDistillation
from contseg.methods.dft import ReservedCrossEntropy
from contseg.methods.dkd import Auxiliary, BinaryDistillation, EvidenceDistillation, MultiBCE
from contseg.methods.grammar import coerce
from contseg.methods.ilt import FeatureDistillation
from contseg.methods.lwf import Distillation
from contseg.methods.lwf_mc import BinaryCrossEntropy, ReplacedTargets, SigmoidDistillation
from contseg.methods.mib import UnbiasedCrossEntropy, UnbiasedDistillation
from contseg.methods.plop import PseudoLabelCrossEntropy
from contseg.methods.registry import Entry, build_method
from contseg.methods.sdr_variants import ReleasedCrossEntropy
from contseg.methods.ssul import UnknownBCE
from contseg.tests.material import ROOT
from contseg.tests.unit.networks import make_steps

DOCUMENT = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
BUILT_IN = {
    mark + name: entry
    for mark, table in (("", registry.methods()), ("+", registry.addons()))
    for name, entry in table.items()
    if entry.factory.__module__.startswith("contseg.methods.")
}
CARRIED = dict(zip([f"+{name}" for name in registry.addons()], carried(), strict=True))
NAMES = [CARRIED.get(name, name) for name in BUILT_IN]


def documented() -> dict[tuple[str, str], tuple[str, str]]:
    """(method, parameter) -> (default, source) of the table under "Parameters"."""
    section = DOCUMENT.split("\n## Parameters\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\S+) \| `(\w+)` \| `([^`]+)` \| (.+) \|$", section, re.M)
    assert len(rows) == sum(line.startswith("|") for line in section.splitlines()) - 2  # every row was read
    table = {(method, parameter): (default, source) for method, parameter, default, source in rows}
    assert len(table) == len(rows)
    return table


def test_the_table_holds_every_parameter_its_default_and_its_source() -> None:
    table = documented()
    declared = {(name, p.name): p for name, entry in BUILT_IN.items() for p in entry.parameters}
    assert list(table) == list(declared)
    for key, p in declared.items():
        default, source = table[key]
        assert coerce(default, p.annotation) == p.default, key
        assert source == p.source, key


@pytest.mark.parametrize("entry", BUILT_IN.values(), ids=list(BUILT_IN))
def test_a_default_said_in_words_is_the_default(entry: Entry) -> None:
    """A source that begins its second part with a number, "; 0.5 as released", means the default by it."""
    for p in entry.parameters:
        if isinstance(p.default, float) and (said := re.search(r"; ([\d.e-]+(?:/\d+)?)(?: |$)", p.source)):
            top, _, bottom = said[1].partition("/")
            ours = {"later_lr": 0.01 / 0.001, "encoder_lr": 0.1}.get(p.name, float(top) / float(bottom or 1))
            assert p.default == pytest.approx(ours, rel=1e-12), p.name


# What the sheets of the papers and releases say, method by method: weights and fields of all terms.
LATENT = "0.01 matching + 0.001 attraction + 0.001 repulsion + 0.001 sparsity"
PSEUDO = "pseudo: PseudoLabelCrossEntropy(formulation=intended)"
POD = "pod: LocalPod(maps=0.01, logits=0.0005, scales=(1, 2, 4))"
PENALTY = "penalty: QuadraticPenalty(normalise=True)"
SIGMOIDS = "bce: UnknownBCE(threshold=0.7)"
CE = "ce: CrossEntropy"
RECIPES = {
    "ALIFE": (CE, "ce: ForegroundCrossEntropy + 3 ali: LogitRegulariser + kd: ForegroundDistillation"),
    "CFSSeg": ("bce: BinaryCrossEntropy", "no loss"),
    "CIL": (CE, "ce: LabelledCrossEntropy + kd: UnlabelledDistillation(gradient_scaling=1.0, formulation=intended)"),
    "DKD": (
        "mbce: MultiBCE(positive_weight=2.0) + ac: Auxiliary",
        "mbce: MultiBCE(positive_weight=1.0) + 5 kd: BinaryDistillation + 5 dkd+: EvidenceDistillation(part=for)"
        " + 5 dkd-: EvidenceDistillation(part=against) + ac: Auxiliary",
    ),
    "DKD-M": (
        "mbce: MultiBCE(positive_weight=2.0) + ac: Auxiliary",
        "mbce: MultiBCE(positive_weight=1.0) + 5 kd: BinaryDistillation + 5 dkd+: EvidenceDistillation(part=for)"
        " + 5 dkd-: EvidenceDistillation(part=against) + ac: Auxiliary",
    ),
    "DFTStar": (CE, CE),
    "EWC": (CE, f"{CE} + 500 {PENALTY}"),
    "FT": (CE, CE),
    "FrozenBackbone": (CE, CE),
    "ILT": (CE, f"{CE} + 100 kd: Distillation + 100 features: FeatureDistillation"),
    "Joint": (CE, CE),
    "LinearProbe": (CE, CE),
    "LwF": (CE, f"{CE} + 100 kd: Distillation"),
    "LwF-MC": ("bce: BinaryCrossEntropy", "bce: BinaryCrossEntropy + 10 kd: SigmoidDistillation"),
    "MiB": (CE, "unce: UnbiasedCrossEntropy + 10 unkd: UnbiasedDistillation"),
    "MiB-AugM": (
        CE,
        "0.5 unce: UnbiasedCrossEntropy + 0.5 augm: AugmentedCrossEntropy + 10 unkd: UnbiasedDistillation",
    ),
    "NearestPrototype": (CE, "no loss"),
    "PI": (CE, f"{CE} + 500 {PENALTY}"),
    "PLOP": (CE, f"{PSEUDO} + {POD}"),
    "RCIL": (
        f"draws: BranchDraws + {CE}",
        "draws: BranchDraws + unce: UnbiasedCrossEntropy + 100 unkd: UnbiasedDistillation"
        " + pckd: PooledCube(factor=0.01, last=0.0005)",
    ),
    "REMINDER": (CE, f"{PSEUDO} + {POD} + 0.5 csw: SimilarityDistillation(delta=0.0, temperature=3.0)"),
    "RW": (CE, f"{CE} + 100 {PENALTY}"),
    "SDR": (CE, f"unce: UnbiasedCrossEntropy + 100 unkd: UnbiasedDistillation + {LATENT}"),
    "SSUL": (SIGMOIDS, SIGMOIDS),
    "SSUL-M": (SIGMOIDS, SIGMOIDS),
    "Adapter": (
        "mbce: MultiBCE(positive_weight=4.0)",
        "mbce: ReplayedBCE(positive_weight=4.0) + 5 pkd: RegionDistillation"
        " + 0.05 contrast: PrototypeContrast + 0.1 uac: UncertainRunnerUp(sure=0.7)",
    ),
    "STAR": (
        "mbce: MultiBCE(positive_weight=4.0)",
        "mbce: ReplayedBCE(positive_weight=4.0) + 5 pkd: RegionDistillation + 0.05 contrast: PrototypeContrast",
    ),
    "STAR-M": (
        "mbce: MultiBCE(positive_weight=4.0)",
        "mbce: ReplayedBCE(positive_weight=4.0) + 5 pkd: RegionDistillation + 0.05 contrast: PrototypeContrast",
    ),
    "FT+AWT": (CE, CE),
    "FT+Memory": (CE, CE),
    "FT+NeST": (CE, CE),
    "FT+EWF": (CE, CE),
    "FT+SDR": (CE, f"{CE} + {LATENT}"),
    "PLOP+UCB": (CE, f"{PSEUDO} + {POD} + ucb: UncertaintyBalance(threshold=0.8, stretch=True)"),
    "FT+UAC": (CE, f"{CE} + 0.1 uac: UncertainRunnerUp(sure=0.7)"),
    "FT+UCD": (CE, f"{CE} + 0.01 ucd: UncertaintyContrast(temperature=0.07)"),
}
OBSERVED = {
    "CFSSeg": "classifier: AnalyticClassifier(width=2048, gamma=10.0, threshold=0.7)",
    "EWC": "importance: Fisher(alpha=0.9)",
    "PI": "importance: PathIntegral(formulation=intended)",
    "RW": "importance: RiemannianWalk(formulation=intended, alpha=0.9, every=10)",
    "NearestPrototype": "means: ClassMeans",
    "REMINDER": "means: BatchPrototypes",
    "SDR": "prototypes: Prototypes",
    "Adapter": "statistics: ClassStatistics",
    "STAR": "statistics: ClassStatistics",
    "STAR-M": "statistics: ClassStatistics",
    "FT+SDR": "prototypes: Prototypes",
}


def memory(changed: str) -> str:
    """The line of a memory: its defaults, and what a row changes of them."""
    of = dict(pair.split("=") for pair in changed.split(", ") if pair)
    shown = {"size": "100", "policy": "round", "labels": "own", "mix": "half", "apart": "False"} | of
    return f"memory: Memory({', '.join(f'{k}={v}' for k, v in shown.items())})"


HOOKS = {
    "ALIFE": ["init: background_shares", "trainable: without_normalisation"],
    "CFSSeg": ["build: deeper_head", "trainable: FirstStepOnly(encoder_lr=0.1)", "predict: LargestSigmoid"],
    "DFTStar": ["trainable: train_rows_to_come"],
    "DKD": ["build: add_decomposition", "init: start_from_auxiliary", "trainable: SlowEncoder(lr_scale=0.1)",
            "predict: above_half"],
    "DKD-M": ["build: add_decomposition", "init: start_from_auxiliary", "trainable: SlowEncoder(lr_scale=0.1)",
              "predict: above_half", memory("labels=current, mix=append")],
    "FrozenBackbone": ["trainable: train_head"],
    "Joint": ["scenario: all_at_once"],
    "LinearProbe": ["trainable: train_classifier"],
    "MiB": ["init: background_shares"],
    "MiB-AugM": ["init: background_shares", memory("policy=greedy, apart=True")],
    "NearestPrototype": ["trainable: train_nothing", "predict: NearestMean"],
    "PLOP": ["init: background_shares"],
    "RCIL": ["build: ParallelBranches(start=kept)", "init: background_shares", "trainable: freeze_merged"],
    "REMINDER": ["init: background_shares"],
    "SSUL": ["build: head_per_group", "init: start_from_unknown",
             "trainable: NewUnknownBackground(encoder_lr=0.1, later_lr=10.0, background_lr=0.0001)",
             "predict: unknown_is_background"],
    "SSUL-M": ["build: head_per_group", "init: start_from_unknown",
               "trainable: NewUnknownBackground(encoder_lr=0.1, later_lr=10.0, background_lr=0.0001)",
               "predict: unknown_is_background", memory("labels=all")],
    "Adapter": ["build: kaiming_rows", "trainable: ThreeRates(encoder_lr=0.1, new_lr=10.0)", "predict: above_half"],
    "STAR": ["build: kaiming_rows", "trainable: ThreeRates(encoder_lr=0.1, new_lr=10.0)", "predict: above_half"],
    "STAR-M": ["build: kaiming_rows", "trainable: ThreeRates(encoder_lr=0.1, new_lr=10.0)", "predict: above_half",
               memory("size=50, labels=current, mix=append")],
    "FT+Memory": [memory("")],
    "PLOP+UCB": ["init: background_shares"],
    "FT+AWT": ["warm-up: TransferAttributed(share=0.25, formulation=intended)"],
    "FT+NeST": ["warm-up: PreTuning(epochs=5, lr_scale=1.0, formulation=intended)"],
    "FT+EWF": ["trainable: freeze_old_rows", "end of step: fuse_with_previous"],
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_what_a_name_stands_for(name: str) -> None:
    first, later = RECIPES[name]
    watched = [f"    observes {OBSERVED[name]}"] if name in OBSERVED else []
    lines = [f"  step 0: {first}", *watched, f"  later steps: {later}", *watched]
    assert str(build_method(name)).splitlines()[1:] == [*lines, *(f"  {hook}" for hook in HOOKS.get(name, []))]


@pytest.mark.parametrize("name", NAMES)
def test_a_term_alone_has_the_defaults_of_its_method(name: str) -> None:
    method: Method = build_method(name)
    for term in method.terms.values():
        for part in (term, *held(term)):
            for f in fields(part):
                if f.init and f.name != "weight" and f.default is not MISSING:
                    assert getattr(part, f.name) == f.default, (type(part).__name__, f.name)


# --- what a term is a mean over ------------------------------------------------------------------------------------

_, STEP = make_steps(2, 2)
SHEET = {
    "F-CE": [CrossEntropy()],
    "F-CE-FG": [ForegroundCrossEntropy()],
    "F-DFT": [ReservedCrossEntropy()],
    "F-UNCE": [UnbiasedCrossEntropy(), ReleasedCrossEntropy()],
    "F-KD": [Distillation()],
    "F-UNKD": [UnbiasedDistillation()],
    "F-ILT": [FeatureDistillation()],
    "F-CIL": [UnlabelledDistillation()],
    "F-BCE": [BinaryCrossEntropy()],
    "F-LWFMC": [SigmoidDistillation(), ReplacedTargets(), ReplacedTargets(keep_background=True)],
    "F-PL": [PseudoLabelCrossEntropy()],
    "F-MBCE": [MultiBCE(35.0)],
    "F-BKD": [BinaryDistillation()],
    "F-DKD±": [EvidenceDistillation("for"), EvidenceDistillation("against")],
    "F-AC": [Auxiliary()],
    "F-SSUL": [UnknownBCE()],
    "F-ADAPTER-UAC": [UncertainRunnerUp()],
}


def images(n: int, void_from: int) -> Batch:
    """So many images; those from ``void_from`` on are all void."""
    g = torch.Generator().manual_seed(5)

    def draw(classes: int, size: int = 8) -> Tensor:
        return torch.randn(4, classes, size, size, generator=g, dtype=torch.float64)[:n]

    def output(classes: int) -> SegOutput:
        extra = {
            "for": draw(classes - 1, 4),
            "against": draw(classes - 1, 4),
            "auxiliary": draw(1, 4),
            "unknown": draw(1),
            "reserve": torch.zeros(n, 2, 8, 8, dtype=torch.float64),
        }
        return SegOutput(draw(classes), draw(6, 4), draw(6, 4), (), extra)

    labels = torch.tensor([0, 3, 4, VOID])[torch.randint(4, (4, 8, 8), generator=g)][:n]
    labels[void_from:] = VOID
    return Batch(torch.zeros(n, 3, 8, 8), labels, output(STEP.n_classes), output(STEP.n_old), STEP)


def value(term: Term, batch: Batch) -> Tensor:
    if isinstance(term, PseudoLabelCrossEntropy):
        term.thresholds = torch.full((STEP.n_old,), 0.8, dtype=torch.float64)
    found = term(batch)
    assert found is not None
    return found


@pytest.mark.parametrize("name", SHEET)
def test_the_mean_is_over_the_pixels_that_the_sheet_says(name: str) -> None:
    """An image of void: it does not change a mean over valid pixels, and has its share in one over all of them."""
    (over,) = re.findall(rf"^\| {name} \| .* \| ([^|]+) \| [^|]*\|$", DOCUMENT, re.M)
    for term in SHEET[name]:
        three, four, void = (value(term, images(*x)) for x in ((3, 3), (4, 3), (4, 0)))
        alone = four * 4 - three * 3  # what the last image adds to a mean over all pixels
        assert three.isfinite() and three > 0
        if over.startswith("valid pixels"):
            torch.testing.assert_close(four, three, rtol=1e-12, atol=0)
            assert void == 0
        elif over.startswith(("all pixels", "all positions")):
            assert not torch.isclose(four, three, rtol=1e-3)
            if name in ("F-PL", "F-CE-FG"):  # void costs nothing, and counts
                assert abs(float(alone)) < 1e-12
            else:
                assert alone > 0
        else:
            assert over == "the pixels of M"  # of F-CIL: background and void
            of_m = [int(((b.labels == 0) | (b.labels == VOID)).sum()) for b in (images(3, 3), images(4, 3))]
            last = (four * of_m[1] - three * of_m[0]) / 64
            assert last > 0 and void > 0


def test_labelled_cross_entropy_is_a_mean_over_labelled_pixels() -> None:
    term, batch = LabelledCrossEntropy(), images(3, 2)
    log_p = batch.logits.log_softmax(1).movedim(1, -1)
    labelled = (batch.labels != 0) & (batch.labels != VOID)
    own = log_p[labelled].gather(1, batch.labels[labelled][:, None])
    torch.testing.assert_close(term(batch), -own.mean(), rtol=1e-12, atol=0)
