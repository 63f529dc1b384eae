"""Step and Scenario: which classes are learned when.

Labels are those of the data set (0 background, 1..n foreground, 255 void). Channels are those of the network:
channel 0 is background, then the foreground classes in the order in which they were learned.
"""

from __future__ import annotations

from dataclasses import dataclass

BACKGROUND = 0
VOID = 255


@dataclass(frozen=True)
class Step:
    """One increment, as a method sees it: it knows nothing of classes still to come.

    ``old_classes`` and ``new_classes`` hold foreground labels of the data set in the order of learning.
    """

    index: int
    setup: str
    old_classes: tuple[int, ...]
    new_classes: tuple[int, ...]

    @property
    def seen_classes(self) -> tuple[int, ...]:
        """Foreground labels learned up to and including this step; channel k bears ``seen_classes[k - 1]``."""
        return self.old_classes + self.new_classes

    @property
    def n_old(self) -> int:
        """O: logit channels of the previous model, background included; 0 at step 0."""
        return 1 + len(self.old_classes) if self.old_classes else 0

    @property
    def n_new(self) -> int:
        """N: logit channels added by this step (at step 0 background is one of them)."""
        return self.n_classes - self.n_old

    @property
    def n_classes(self) -> int:
        """C = O + N: all logit channels after this step, background included."""
        return 1 + len(self.seen_classes)


@dataclass(frozen=True)
class Scenario:
    """A data set's classes in the order in which they are learned, and the rule that chooses images and labels."""

    dataset: str
    task: str
    setup: str
    groups: tuple[tuple[int, ...], ...]
    order: str = ""
