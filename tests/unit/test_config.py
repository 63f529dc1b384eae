"""What a configuration may hold, where that is said, and that it is the same identity however it is written."""

import dataclasses
import re
import typing
from pathlib import Path
from typing import Annotated, Any

import pytest
from msgspec import Meta

from contseg.benchmark.plan.config import SECTIONS, Config, TrainConfig, checked, identity, read_config
from contseg.benchmark.plan.config_reference import reference
from contseg.benchmark.plan.model_config import model_identity
from contseg.benchmark.plan.run_config import RunConfig
from contseg.benchmark.store.files import digest
from contseg.datasets.errors import UserError
from contseg.methods import registry
from contseg.methods.base import CrossEntropy, Method, describe
from contseg.methods.ranges import admit, meaning, type_name, words
from contseg.tests.material import ROOT

# as they were before configurations were declared with ranges: a step's key hashes the first two and the fourth
DIGESTS = {
    "": (
        "a3b6b7aa6f02918cfe0dfa781600c97fabe5d003ad1d77cb56cbc9ae95b27a1e",
        "c1a660b459c76990161852b009c4b86af1fa53a1dbdd8dde5fff3fd56067ef70",
        "29add6e3c9092f83d6b5bf15a5d685c27dbdaa2d663882e105250017b1b25063",
        "111dfffec04666cd6bff1eb9768a9285d7ceb27dd570216eb2f0c28c31570a5d",
        "d1b50fbde450552f799a7cf5a7d6fe8823d3102a0e5e31ba40dcccfceee836b8",
    ),
    "train.lr=0.05 train.batch=8,4 train.clip=1": (
        "abd09ef84381c6fd6589f456445797cd52857027ff18610814ca56d1222afe5e",
        "e660049588b34d4c76992ae1a0ee6f8e116b49f664ec274965e8964bab0e60d6",
        "f485a6e94406a5bb0b5e4001f712e0149952dbe05fa4e783016608ace76580ce",
        "111dfffec04666cd6bff1eb9768a9285d7ceb27dd570216eb2f0c28c31570a5d",
        "d1b50fbde450552f799a7cf5a7d6fe8823d3102a0e5e31ba40dcccfceee836b8",
    ),
    "train.updates=2 train.crop=48 train.scale= train.flip=hv train.momentum=0.8 train.precision=double "
    "model.backbone=tiny": (
        "858b69a8b81f19187bbd3f611e40899437819bca4fd900553fd26e0e59e05943",
        "ef08e4875320076d9ee1894da0c8073d4a9b86defa2f215f636cacf72a9c26a8",
        "78486880f3e25e925d6392596a0a0e97d4a4e3a16f1ef30b27c424a4923610c1",
        "c82ccd59c8812313bc9ef1af764883172db9687587b4a15c2b949573ef20c823",
        "0970d115497d7689cadb11aa7e69d16b9f26c6021acef222ea00fa6a37e76bd1",
    ),
    "train.epochs=12,4 model.backbone=resnet50 model.output_stride=8 model.norm=frozen model.pooling=0": (
        "1413a1fa1952a16f2cf33354d4ecb01a5b921414390e33d680ca4808c6ef69bd",
        "5083b3471a4341d504ee55713a8d2fd271a0321d115e03a6f841a2c26e0605ff",
        "bacf8d56cfe6440b4f8078b3850da2849cdacd45eef75eeb773fcc3950594cfe",
        "61bb709e3e90d555d6c1b482e50c79a2a0b746b9242052445747fcc17d8717d3",
        "51c82084efc7bc14c09d9dfe3407e21b6a982971fbf5e10d250521c54afc8732",
    ),
}


@pytest.mark.parametrize("sets", DIGESTS)
def test_the_digests_that_a_key_hashes_stay_what_they_were(sets: str) -> None:
    config = read_config(None, sets.split())
    assert DIGESTS[sets] == (
        digest(describe(config.train)),
        digest(describe(config.train.at(1))),
        digest(identity(config.train)),
        digest(model_identity(config.model)),
        digest(identity(config.model)),
    )


@pytest.mark.parametrize(
    ("text", "sets"),
    [
        ("[train]\nlr = 1\nbatch = 8", ["train.lr=1.0", "train.batch=8"]),
        ("[train]\nlr = [1, 0.5]\nscale = []", ["train.lr=1,0.5", "train.scale="]),
        ("[train]\nnesterov = false\nclip = 1\nflip = 'hv'", ["train.nesterov=False", "train.clip=1", "train.flip=HV"]),
        ("[eval]\ncrop = [96, 128]\n[model]\nnorm = 'group'", ["eval.crop=(96, 128)", "model.norm=group"]),
        ("[launch]\noptions = 'a=1,2'", ["launch.options=a=1,2"]),
    ],
)
def test_a_file_and_the_command_line_say_the_same(text: str, sets: list[str], tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(text)
    assert read_config(tmp_path / "grid.toml") == read_config(None, sets)


def test_a_configuration_made_in_python_is_typed_and_checked_too() -> None:
    assert describe(checked(Config(train=TrainConfig(clip=1))).train) == describe(TrainConfig(clip=1.0))
    with pytest.raises(UserError, match=r"^run.eval_batch must be >= 1, not 0$"):
        checked(Config(run=RunConfig(eval_batch=0)))


def declared() -> list[tuple[str, Any, Any]]:
    """Every field of every section: name, declaration, default."""
    found = []
    for section, kind in {"": Config, **SECTIONS}.items():
        hints = typing.get_type_hints(kind, include_extras=True)
        for f in dataclasses.fields(kind):
            if f.name not in SECTIONS:
                found.append((f"{section}.{f.name}".lstrip("."), hints[f.name], getattr(kind(), f.name)))
    return found


def test_every_default_lies_in_its_range_and_every_field_has_a_meaning() -> None:
    assert len(declared()) == 63
    for name, annotation, default in declared():
        assert admit(name, default, annotation) == default
        assert meaning(annotation), name


def test_the_reference_is_written_from_the_declarations() -> None:
    """After a change: ``python -m contseg.benchmark.plan.config_reference > docs/configuration.md``."""
    assert (ROOT / "docs/configuration.md").read_text(encoding="utf-8") == reference()


def test_the_reference_holds_every_key_with_its_default_and_no_other() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .+ \| `.*` \| .+ \|$", reference(), re.M)
    assert rows == [name.rpartition(".")[2] for name, _, _ in declared()]
    assert (
        "| `momentum` | number >= 0 and < 1 | `0.9` | of SGD; AdamW's first beta, the second is 0.999 |" in reference()
    )


@pytest.mark.parametrize(
    ("annotation", "in_words", "short"),
    [
        (float, "number", "float"),
        (Annotated[float, Meta(gt=0)], "number > 0", "float > 0"),
        (Annotated[int, Meta(ge=1, le=9)], "whole number >= 1 and <= 9", "int >= 1 and <= 9"),
        (Annotated[float, Meta(ge=0)] | None, "number >= 0 or none", "float >= 0 | None"),
        (
            Annotated[tuple[Annotated[int, Meta(ge=1)], ...], Meta(min_length=1, max_length=2)],
            "1 to 2 whole numbers >= 1",
            "tuple[int, ...] >= 1",
        ),
        (typing.Literal["a", "b", "c"], '"a", "b" or "c"', "a | b | c"),
        (Annotated[bool, Meta(description="on")], "true or false", "bool"),
    ],
)
def test_a_declaration_in_words(annotation: Any, in_words: str, short: str) -> None:
    assert words(annotation) == in_words
    assert type_name(annotation) == short


def test_every_parameter_of_every_method_has_a_range_and_a_default_in_it() -> None:
    entries = [*registry.methods().values(), *registry.addons().values()]
    numbers = 0
    for entry in entries:
        for p in entry.parameters:
            assert admit(p.name, p.default, p.annotation) == p.default
            if re.search(r"\b(int|float)\b", p.type_name):
                numbers += 1
                assert ">" in p.type_name, f"{entry.name}: {p.name} has no range"
    assert numbers > 30


def test_a_plugins_own_range_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry.methods()))

    @registry.register_method("Ranged")
    def ranged(scale: Annotated[float, Meta(gt=0, le=2), "a search space of a later part"] = 1.0) -> Method:
        """One term."""
        return Method("Ranged", {"ce": CrossEntropy(weight=scale)})

    assert registry.build_method("Ranged[scale=2]").terms["ce"].weight == 2.0
    with pytest.raises(UserError, match=r"^scale of Ranged must be > 0 and <= 2, not 2.5$"):
        registry.build_method("Ranged[scale=2.5]")


def test_the_trackers_are_those_of_accelerate() -> None:
    from accelerate.utils import LoggerType

    hint = typing.get_type_hints(RunConfig)["tracker"]
    assert {*typing.get_args(hint)} - {"none"} <= {*LoggerType.list()}
