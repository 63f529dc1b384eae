"""What a tuning found: its trials, their values and scores, and the best of each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from contseg.benchmark.plan.search import Trial
from contseg.benchmark.score.leaderboard import Leaderboard

SCORES = ["all", "old", "new", "avg"]
COLUMNS = ["method", "trial", "name", "seeds", *SCORES, "best_so_far", "chosen", "runs"]


def trial_frame(trials: Mapping[str, Sequence[Trial]], board: Leaderboard) -> pd.DataFrame:
    """One row a trial: mean scores over seeds, the 'all' mIoU of the trial that those up to it would have chosen, and
    whether it is chosen.

    Of each method the trial with the highest 'all' mIoU is chosen, of equal ones the first. A trial that diverged is
    kept without numbers; one that diverged with some seeds is not chosen. ``runs``: the first digits of the keys of its
    runs. The last columns are the drawn values, one that is called like another column with the method before it.
    """
    keys: dict[str, list[str]] = {}
    for one in board.scored:
        keys.setdefault(one.cell[4], []).append(one.run.last["run"][:12])
    scores = board.frame.drop_duplicates("method").set_index("method")
    rows = []
    for method, drawn in trials.items():
        for number, trial in enumerate(drawn):
            known = trial.name in scores.index
            found = {c: scores.loc[trial.name, c] if known else float("nan") for c in SCORES}
            seeds = int(scores.loc[trial.name, "seeds"]) if known else 0
            rows.append(
                {
                    **{"method": method, "trial": number, "name": trial.name, "seeds": seeds, **found},
                    "runs": " ".join(keys.get(trial.name, [])),
                    **{f"{method}.{key}" if key in COLUMNS else key: v for key, v in trial.values.items()},
                }
            )
    frame = pd.DataFrame(rows)
    whole = frame[(frame["seeds"] > 0) & (frame["seeds"] == frame["seeds"].max())]
    reached = whole.groupby("method", sort=False)["all"].cummax().reindex(frame.index)
    frame["best_so_far"] = reached.groupby(frame["method"], sort=False).ffill()
    best = whole.groupby("method", sort=False)["all"].idxmax()
    frame["chosen"] = frame.index.isin(best)
    return frame[[*COLUMNS, *(c for c in frame if c not in COLUMNS)]]
