"""``docs/configuration.md`` from the declarations::

python -m contseg.benchmark.plan.config_reference > docs/configuration.md
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterable
from dataclasses import MISSING, fields
from typing import Any

from contseg.benchmark.plan.config import PER_STEP, SECTIONS, Config
from contseg.benchmark.plan.protocol import PROTOCOLS, VALUES, Protocol
from contseg.benchmark.plan.toml import toml_value
from contseg.methods.ranges import meaning, words

HEAD = """\
# Configuration

<!-- written by `python -m contseg.benchmark.plan.config_reference`: change the declarations, not this page -->

Every key with its type, range, default and meaning. In a TOML file the keys are in the table of their section. On the
command line they are `--set SECTION.KEY=VALUE`, and a list is written with commas: `--set train.lr=0.01,0.001`. Nothing
after the `=` is the empty list (`train.scale=`). A single value may be given where a list is expected.

```toml
scenarios = ["voc/15-1/overlapped"]
methods = ["FT", "MiB[kd=10|100]", "MiB+SDR"]
seeds = [0, 1, 2]
data = { voc = "/data/VOCdevkit/VOC2012" }

[train]
lr = [0.01, 0.001]
batch = 24
```

A method may have its own recipe, in its brackets or in a table, and a key of `[train]` may be swept for all methods.
The name of a row says what differs from the grid's `[train]`. Step 0 stays shared if its values are equal.

```toml
methods = ["FT", "MiB[train.lr=(0.01,0.001)|(0.01,0.0001)]", { method = "DKD", train.lr = [0.01, 0.001] }]

[train]
epochs = "30|60"
```

On the command line: `--methods "DKD[train.lr=0.001,train.epochs=60]"` and `--set "train.lr=0.01|0.001"`.
`train.precision` is the same for the whole grid, and every row is scored on the grid's crop.

An unknown key, a value of another type or a value out of range gives one line and exit code 2 before any training.
"""


def reference() -> str:
    """The page as Markdown."""
    parts = [HEAD]
    top = {f.name: f for f in fields(Config) if f.name not in SECTIONS}
    parts.append(
        "## The grid\n\nTop-level keys; on the command line they are options of their own (`--scenarios`, ...).\n"
    )
    parts.append(_table(Config, top))
    for name, kind in SECTIONS.items():
        parts.append(f"## [{name}]\n\n{' '.join((inspect.getdoc(kind) or '').split())}\n")
        if name == "train":
            listed = ", ".join(f"`{key}`" for key in PER_STEP)
            parts.append(f"{listed} hold one value a step; the last one serves all later steps.\n")
        parts.append(_table(kind, [f.name for f in fields(kind)]))
    parts.append(
        "## Protocols\n\n`protocol` is the name of a profile, or one with fields of its own: "
        "`sdr[background_in_mean=no]`.\nWhat the fields do to a number: [metrics.md](metrics.md).\n"
    )
    heads = ["field", "values", *(f"`{name}`" for name in PROTOCOLS), "meaning"]
    hints = typing.get_type_hints(Protocol, include_extras=True)
    rows = [
        [f"`{key}`", ", ".join(values), *(str(getattr(p, key)) for p in PROTOCOLS.values()), meaning(hints[key])]
        for key, values in VALUES.items()
    ]
    return "\n".join([*parts, _markdown(heads, rows)])


def _table(kind: type[Any], names: Iterable[str]) -> str:
    hints = typing.get_type_hints(kind, include_extras=True)
    rows = [[f"`{n}`", words(hints[n]), f"`{toml_value(_default(kind, n))}`", meaning(hints[n])] for n in names]
    return _markdown(["key", "value", "default", "meaning"], rows)


def _default(kind: type[Any], name: str) -> Any:
    (found,) = (f for f in fields(kind) if f.name == name)
    return found.default_factory() if found.default_factory is not MISSING else found.default


def _markdown(heads: list[str], rows: Iterable[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
