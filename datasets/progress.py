"""How far long work is: a bar on a terminal; elsewhere, as in a file, a plain line now and then."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

SECONDS = 30.0  # before the first line and between two; later a twentieth of the time so far


def progress(items: Iterable[Any] | None = None, title: str = "", **options: Any) -> Any:
    """``tqdm(items, title, **options)`` if stderr is a terminal, else ``Lines`` of the same."""
    return (tqdm if sys.stderr.isatty() else Lines)(items, title, **options)


class Lines(tqdm):
    """tqdm's counts as whole lines that stay. Work shorter than ``SECONDS`` writes nothing, and the end is not told."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._began = self._told = time.monotonic()
        super().__init__(*args, **options, ncols=1000)
        if self.disable:  # it has no count then
            return
        count = "{n_fmt}{unit} of {total_fmt}{unit}" if self.unit_scale else "{unit} {n_fmt} of {total_fmt}"
        self.bar_format = f"{{desc}}: {count}, {{elapsed}} so far, about {{remaining}} left{{postfix}}"
        if self.total is None:
            self.bar_format = "{desc}: {n_fmt} {unit}, {elapsed} so far{postfix}"

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Write a line if the last one is long enough ago; whether it was written."""
        now = time.monotonic()
        if now - self._told < max(SECONDS, (now - self._began) / 20):
            return False
        self._told = now
        self.fp.write(f"{self if msg is None else msg}\n")
        self.fp.flush()
        return True

    def clear(self, nolock: bool = False) -> None:
        """Nothing: what is written stays."""

    def close(self) -> None:
        """Write nothing more: tqdm takes it that nothing was shown before a delay."""
        self.delay = math.inf
        super().close()
