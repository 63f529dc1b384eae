"""What the numbers of a table are made with: network, weights, size, schedule, protocol, n, search, external data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from contseg.benchmark.plan.external import recorded_model, weights_name
from contseg.benchmark.score.leaderboard import Contest, Leaderboard
from contseg.benchmark.score.records import Record, Run, crop_of, recipe_of
from contseg.benchmark.score.scores import Scored


def caption(board: Leaderboard, key: Contest) -> str:
    """The facts of a table in a line; what is "auto" in a configuration is spelled out.

    Network, image size and schedule are those of the first configuration; its rows with a recipe of their own say so in
    their names, rows marked ``(2)`` are explained in the foot.
    """
    rows = [s for s in board.scored if s.cell[:4] == key]
    first = min(rows, key=lambda s: (s.configuration, s.run.is_joint, bool(recipe_of(s.run.method))))
    run = first.run
    facts = [_network(run.last), _size(run.last), _schedule(run), f"protocol {key[3]}", _seeds(rows)]
    facts += [_listed("tuned on ", (str(s.search) if s.search else "" for s in rows), "no search")]
    facts += [_listed("external data: ", (" ".join(s.external) for s in rows), "external data: none")]
    facts += ["rows marked (2) and on: below"] if any(s.configuration > 1 for s in rows) else []
    return "; ".join(filter(None, facts))


def _network(record: Record) -> str:
    """``resnet101 from resnet101-63fe2227.pth``, ``tiny from scratch``."""
    given = record["config"].get("model", {})
    model = recorded_model(given)
    if model is None:
        return f"{given.get('backbone', 'a network that the records do not name')}, weights not known here"
    return f"{model.backbone} from {weights_name(model) or 'scratch'}"


def _size(record: Record) -> str:
    train = record["config"].get("train", {}).get("crop")
    sides = [(c[0], c[-1]) for c in (train, crop_of(record)) if c]
    texts = list(dict.fromkeys(f"{height} x {width} px" for height, width in sides))
    return " (tested on ".join(texts) + ")" * (len(texts) - 1)


def _schedule(run: Run) -> str:
    """Epochs or updates, batch and learning rate by step: ``30 epochs, batch 24, rate 0.01 then 0.001``."""
    steps = [r["config"].get("train", {}) for r in run.records]
    parts = []
    length = "updates" if any(train.get("updates") for train in steps) else "epochs"
    for key, title in ((length, f"{{}} {length}"), ("batch", "batch {}"), ("lr", "rate {}")):
        values = [train[key][-1] for train in steps if train.get(key)]
        if values:
            parts.append(title.format(_by_step(values)))
    parts += [str(steps[0][key]) for key in ("optimizer", "schedule") if steps[0].get(key)]  # recorded if unusual
    return ", ".join(parts)


def _by_step(values: Sequence[float]) -> str:
    """The values of the steps, without repetitions in a row: ``0.01 then 0.001``."""
    kept = [v for i, v in enumerate(values) if i == 0 or v != values[i - 1]]
    return " then ".join(f"{v:g}" for v in kept)


def _seeds(rows: Iterable[Scored]) -> str:
    seeds: dict[str, set[int]] = {}
    for s in rows:
        seeds.setdefault(s.cell[4], set()).add(s.run.seed)
    low, high = min(map(len, seeds.values())), max(map(len, seeds.values()))
    return f"n = {high}" if low == high else f"n = {low} to {high}"


def _listed(title: str, values: Iterable[str], without: str) -> str:
    """Every value that occurs; rows without one are mentioned if others have one."""
    found = dict.fromkeys(values)
    named = [value for value in found if value]
    if not named:
        return without
    return title + " or ".join(named) + (", or none" if "" in found else "")
