"""What a number means: the conventions in which published numbers silently differ, each a named field.

Its fields differ in what a change of them costs: ``void_in_training`` needs another training, ``eval_view`` the stored
weights and a new evaluation; the others are applied to a stored confusion matrix. The conventions of each
repository were read in its released code: MiB ``dataset/voc.py:142``, SDR ``dataset/voc.py:151``, PLOP
``dataset/voc.py:182``.
"""

from __future__ import annotations

import re
import typing
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal

from msgspec import Meta

from contseg.datasets.errors import UserError, unknown

# Data sets whose label 0 is not a background but "other", what the annotators left out.
NO_TRUE_BACKGROUND = frozenset({"ade"})


@dataclass(frozen=True)
class Protocol:
    """Every convention between a trained network and a printed mIoU.

    ``version`` rises when a field's meaning changes.
    """

    name: str
    void_in_training: Annotated[
        Literal["ignore", "background"],
        Meta(description="void borders: left out of the loss (PLOP, DKD, ALIFE), or trained as background (MiB, SDR)"),
    ]
    eval_view: Annotated[
        Literal["crop", "full"],
        Meta(
            description="shorter side to S and the centre crop SxS, labels too, S being the training crop; "
            "or full resolution"
        ),
    ]
    test_images: Annotated[
        Literal["any_seen", "all"],
        Meta(description="with at least one class seen so far (MiB, SDR, PLOP, DKD), or the whole val set (SSUL)"),
    ]
    future_at_test: Annotated[
        Literal["ignore", "background"],
        Meta(description="pixels of classes still to come: ignored (MiB, SDR, SSUL), or background (PLOP, ALIFE)"),
    ]
    background_in_mean: Annotated[
        Literal["yes", "no"],
        Meta(description="no in MiB's paper; yes elsewhere, and background then belongs to the old classes"),
    ]
    class0_at_test: Annotated[
        Literal["true_background", "count", "ignore"],
        Meta(
            description="pixels of label 0: counted where 0 is a true background, always counted, or ignored; on "
            'ADE20K 0 is "other", which MiB and SDR ignore (150 classes) and PLOP counts (151)'
        ),
    ]
    absent_classes: Annotated[
        Literal["drop", "zero"],
        Meta(
            description="classes without a labelled pixel: left out of the mean (MiB, SDR, PLOP), or 0 (SSUL, DKD); "
            "label 0 of data where it never occurs (CamVid) therefore leaves the mean under drop"
        ),
    ]
    version: int = 1

    def counts_class0(self, dataset: str) -> bool:
        """Whether pixels labelled 0 are scored on this data set."""
        if self.class0_at_test == "true_background":
            return dataset not in NO_TRUE_BACKGROUND
        return self.class0_at_test == "count"

    def as_dict(self) -> dict[str, Any]:
        """All fields, as a record stores them."""
        return asdict(self)

    def note(self) -> str:
        """One line for the foot of a table."""
        values = ", ".join(f"{f.name} {getattr(self, f.name)}" for f in fields(self) if f.name in VALUES)
        return f"protocol {self.name} (version {self.version}): {values}"


VALUES: dict[str, tuple[str, ...]] = {
    name: typing.get_args(hint) for name, hint in typing.get_type_hints(Protocol).items() if typing.get_args(hint)
}

PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        Protocol("sdr", "background", "crop", "any_seen", "ignore", "yes", "true_background", "drop"),
        Protocol("mib", "background", "crop", "any_seen", "ignore", "no", "true_background", "drop"),
        Protocol("plop", "ignore", "crop", "any_seen", "background", "yes", "count", "drop"),
        Protocol("strict", "ignore", "full", "all", "ignore", "yes", "true_background", "drop"),
    )
}


def parse_protocol(text: str) -> Protocol:
    """``"sdr"``, or a profile with fields of its own: ``"sdr[background_in_mean=no]"``.

    Raises ``UserError`` for an unknown profile, field or value.
    """
    match = re.fullmatch(r"\s*([^\[\]]*?)\s*(?:\[([^\[\]]*)\])?\s*", text)
    if match is None:
        raise UserError(f"protocol {text!r} is not a profile like 'sdr' or 'sdr[background_in_mean=no]'")
    name, inside = match.group(1), match.group(2) or ""
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    changes: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in inside.split(","))):
        key, equals, value = (s.strip() for s in part.partition("="))
        if key not in VALUES:
            raise unknown("protocol field", key, VALUES)
        if not equals or value not in VALUES[key]:
            raise unknown(f"value of {key}", value, VALUES[key])
        if value != getattr(PROTOCOLS[name], key):
            changes[key] = value
    if not changes:
        return PROTOCOLS[name]
    listed = ",".join(f"{k}={changes[k]}" for k in VALUES if k in changes)
    return replace(PROTOCOLS[name], name=f"{name}[{listed}]", **changes)  # type: ignore[arg-type]


def from_record(stored: dict[str, Any]) -> Protocol:
    """The protocol under which a record was trained and evaluated. Raises ``UserError`` where it is damaged."""
    for key, values in VALUES.items():
        if stored.get(key) not in values:
            raise UserError(f"the record's protocol has {key} = {stored.get(key)!r}: not one of {', '.join(values)}")
    name, version = stored.get("name", ""), stored.get("version", 0)
    if not isinstance(name, str) or not isinstance(version, int):
        raise UserError(f"the record's protocol has name = {name!r}, version = {version!r}: not a word and a number")
    return Protocol(name=name, version=version, **{k: stored[k] for k in VALUES})


def scored_as(trained: Protocol, asked: Protocol) -> str:
    """The protocol of a row whose network was trained under one protocol and is scored under another.

    The plain name if training and evaluation pass agree, else with the difference in words: such a row is ranked only
    among rows with the same difference.

    >>> scored_as(PROTOCOLS["sdr"], PROTOCOLS["plop"])
    'plop scoring, trained with void as background'
    """
    words = []
    if trained.void_in_training != asked.void_in_training:
        words.append(
            "trained with void " + {"ignore": "ignored", "background": "as background"}[trained.void_in_training]
        )
    if trained.eval_view != asked.eval_view:
        words.append("evaluated " + {"crop": "on the centre crop", "full": "at full resolution"}[trained.eval_view])
    return f"{asked.name} scoring, {', '.join(words)}" if words else asked.name
