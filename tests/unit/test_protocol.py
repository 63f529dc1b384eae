"""The table of protocol fields, and what a row is called when training and scoring disagree."""

import re
from pathlib import Path

import pytest

from contseg.benchmark.plan.protocol import PROTOCOLS, VALUES, from_record, parse_protocol, scored_as
from contseg.datasets.errors import UserError

TABLE = """
sdr    | background | crop | any_seen | ignore     | yes | count / ignore | drop
mib    | background | crop | any_seen | ignore     | no  | count / ignore | drop
plop   | ignore     | crop | any_seen | background | yes | count / count  | drop
strict | ignore     | full | all      | ignore     | yes | count / ignore | drop
"""


def test_profiles_are_the_literatures_table() -> None:
    rows = []
    for name, p in PROTOCOLS.items():
        class0 = " / ".join("count" if p.counts_class0(d) else "ignore" for d in ("voc", "ade"))
        mean = p.background_in_mean
        rows.append(
            (name, p.void_in_training, p.eval_view, p.test_images, p.future_at_test, mean, class0, p.absent_classes)
        )
    wanted = [tuple(c.strip() for c in line.split("|")) for line in TABLE.strip().splitlines()]
    assert rows == wanted


def test_every_value_of_every_profile_is_a_known_one() -> None:
    assert all(getattr(p, key) in values for p in PROTOCOLS.values() for key, values in VALUES.items())


def test_single_fields_can_be_changed_and_are_named() -> None:
    p = parse_protocol(" sdr[ absent_classes=zero , background_in_mean=no ] ")
    assert (p.background_in_mean, p.absent_classes, p.eval_view) == ("no", "zero", "crop")
    assert p.name == "sdr[background_in_mean=no,absent_classes=zero]"
    assert parse_protocol(p.name) == p


def test_a_field_set_to_the_profiles_own_value_changes_nothing() -> None:
    assert parse_protocol("sdr[background_in_mean=yes]") is PROTOCOLS["sdr"]
    assert parse_protocol("plop[]") is PROTOCOLS["plop"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sdrr", "unknown protocol 'sdrr': did you mean 'sdr'? Known: mib, plop, sdr, strict"),
        ("sdr[backgroud_in_mean=no]", "unknown protocol field 'backgroud_in_mean': did you mean 'background_in_mean'?"),
        ("sdr[background_in_mean=maybe]", "unknown value of background_in_mean 'maybe'"),
        ("sdr[background_in_mean]", "unknown value of background_in_mean ''"),
        ("sdr[", "protocol 'sdr[' is not a profile like 'sdr' or 'sdr[background_in_mean=no]'"),
    ],
)
def test_a_wrong_protocol_is_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match="^" + re.escape(message)) as error:
        parse_protocol(text)
    assert "\n" not in str(error.value)


def test_a_record_gives_its_protocol_back() -> None:
    for p in PROTOCOLS.values():
        assert from_record(p.as_dict()) == p
    with pytest.raises(UserError, match="eval_view = None"):
        from_record({"name": "sdr", "void_in_training": "ignore"})


@pytest.mark.parametrize(
    ("trained", "asked", "words"),
    [
        ("sdr", "sdr", "sdr"),
        ("sdr", "mib", "mib"),
        ("sdr", "plop", "plop scoring, trained with void as background"),
        ("plop", "sdr", "sdr scoring, trained with void ignored"),
        ("plop", "strict", "strict scoring, evaluated on the centre crop"),
        ("sdr", "strict", "strict scoring, trained with void as background, evaluated on the centre crop"),
        ("strict", "plop", "plop scoring, evaluated at full resolution"),
    ],
)
def test_what_a_row_is_called(trained: str, asked: str, words: str) -> None:
    assert scored_as(PROTOCOLS[trained], PROTOCOLS[asked]) == words


def test_the_document_holds_the_table() -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = [[c.strip(" `") for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")]
    written = [[row[0].removesuffix("` (default)"), *row[1:]] for row in rows if len(row) == 8]
    assert written == [[c.strip() for c in line.split("|")] for line in TABLE.strip().splitlines()]
