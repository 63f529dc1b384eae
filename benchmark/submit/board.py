"""A leaderboard that grows by pull requests: its folder ``submissions/``, its versions, and the check of a request.

Every accepted submission stays as it was sent; ``versions.json`` lists them in order. A record is never edited: a later
submission may replace runs of an earlier one, with a reason, and every earlier version can be built again. Code of a
request is run only if ``consent.txt`` of the leaderboard itself, not of the request, names its SHA-256.
"""

from __future__ import annotations

import filecmp
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from contseg.benchmark.score.networks import StoredNetworks
from contseg.benchmark.score.recompute import PixelCounter, Rescorer, keys
from contseg.benchmark.score.records import Record, Run
from contseg.benchmark.score.rows import Searches, Tuned
from contseg.benchmark.score.submissions import CONSISTENT, SCORED, Verdict, verify
from contseg.benchmark.site.catalogue import run_id
from contseg.benchmark.store.files import digest, write_sealed
from contseg.benchmark.submit.pack import MANIFEST, Submission, check_name, read_submission
from contseg.datasets.errors import UserError
from contseg.methods.registry import load_plugins

HOME = "submissions"  # in the repository of a leaderboard
VERSIONS = "versions.json"
CONSENT = "consent.txt"


class Version(msgspec.Struct, frozen=True):
    """A version of the leaderboard: the one before, with one more submission. ``seal``: that of its manifest.

    ``unscored``: the runs of the submission that were not scored again, as the site names them; ``None``: the version
    is older than this field, and its verdict holds for all of them.
    """

    version: int
    submission: str
    seal: str
    verdict: str
    time: str
    replaces: str = ""
    reason: str = ""
    unscored: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Judged:
    """What the check of a submission found.

    ``faults``: reasons to refuse it; ``waits``: what a maintainer has to do first; ``barred``: its code was not run.
    """

    submission: Submission | None
    faults: tuple[str, ...]
    verdicts: tuple[Verdict, ...] = ()
    waits: tuple[str, ...] = ()
    barred: bool = False

    @property
    def word(self) -> str:
        """``refused``, ``waits`` or ``accepted``."""
        return "refused" if self.faults else "waits" if self.waits else "accepted"


@dataclass(frozen=True)
class Board:
    """The accepted submissions below ``home``, by name, and the versions."""

    home: Path
    versions: tuple[Version, ...] = ()
    submissions: dict[str, Submission] = field(default_factory=dict)

    def runs(self, version: int | None = None) -> list[tuple[str, Run]]:
        """The runs of a version (default: the newest), each with the name of its submission."""
        shown: dict[str, list[Run]] = {}
        for entry in self.versions[:version]:
            mine = self.submissions[entry.submission].runs
            if entry.replaces:
                theirs = {cell(run) for run in mine}
                shown[entry.replaces] = [r for r in shown[entry.replaces] if cell(r) not in theirs]
            shown[entry.submission] = mine
        return [(name, run) for name, runs in shown.items() for run in runs]

    def records(self, version: int | None = None) -> list[Record]:
        """The records of a version's runs."""
        return [record for _, run in self.runs(version) for record in run.records]

    def searches(self, version: int | None = None) -> Searches:
        """The searches that chose a version's runs, each as its own submission says."""
        found: dict[str, Sequence[Tuned]] = {}
        for name, run in self.runs(version):
            said = self.submissions[name].searches.get(run.last["run"], ())
            found[run.last["run"]] = list(dict.fromkeys([*found.get(run.last["run"], ()), *said]))
        return found

    def unscored(self) -> set[str]:
        """The runs of the newest version that are consistent and were not scored again, as the site names them."""
        by_name = {entry.submission: entry for entry in self.versions}
        return {run_id(run) for name, run in self.runs() if _unscored(by_name[name], run)}


def _unscored(entry: Version, run: Run) -> bool:
    return entry.verdict == CONSISTENT if entry.unscored is None else run_id(run) in entry.unscored


def cell(run: Run) -> tuple[Any, ...]:
    """The place of a run in a table."""
    return run.dataset, run.task, run.setup, run.method, run.seed


def read_board(home: Path) -> Board:
    """The leaderboard in a folder ``submissions``; empty if there is none yet.

    Raises ``UserError`` if the list of versions, or an accepted submission, is not as it was accepted.
    """
    path = home / VERSIONS
    if not path.exists():
        return Board(home)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value.pop("sha256", None) != digest(value):
            raise ValueError("it was altered since it was written")
        versions = msgspec.convert(value["versions"], tuple[Version, ...])
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error}; take it back from the history") from None
    found = {}
    for entry in versions:
        submission, faults = read_submission(home / entry.submission)
        if submission is None or faults or submission.seal != entry.seal:
            what = faults[0] if faults else f"{MANIFEST} is not the accepted one"
            raise UserError(
                f"{home / entry.submission} was changed after it was accepted ({what}): take it back from the history; "
                "a record is never edited, a new submission replaces it (`contseg submit --replaces`)"
            )
        found[entry.submission] = submission
    return Board(home, versions, found)


# --- a submission ---------------------------------------------------------------------------------------------------


def judge(folder: Path, board: Board, stored: StoredNetworks) -> Judged:
    """Check the submission in ``folder`` against a leaderboard, the data and its own networks.

    Its code is run only if the leaderboard's ``consent.txt`` names it, file by file.
    """
    submission, faults = read_submission(folder)
    if submission is None or faults:
        return Judged(submission, tuple(faults))
    faults = _clashes(submission, board)
    unread = {p: sha for p, sha in submission.code.items() if sha not in consented(board.home)}
    theirs = [r for r in submission.runs if r.last["config"].get("plugins") or r.last["provenance"].get("plugins")]
    if theirs and not submission.code:
        faults.append(f"{theirs[0]}: a method of its own, without its code: `contseg submit --plugin FILE.py` packs it")
    if faults:
        return Judged(submission, tuple(faults))
    if not unread:
        load_plugins(*(folder / place for place in submission.code))
    barred = {cell(run) for run in theirs} if unread else set()
    missing = {name: _not_here(stored, name) for name in sorted({r.dataset for r in submission.runs})}
    verdicts: list[Verdict] = []
    rescore = Rescorer(stored, (folder,), foreign=True)
    recompute, known, count = partial(keys, stored), board.records(), PixelCounter(stored)
    for run in submission.runs:
        checks: dict[str, Any] = {"pixels": count} if not missing[run.dataset] else {}
        if not missing[run.dataset] and cell(run) not in barred:
            checks |= {"recompute": recompute, "rescore": rescore}
        verdicts += verify(run.records, known, **checks)
    faults = [f"{v.run}: {fault}" for v in verdicts for fault in v.faults]
    waits = [
        f"its code has to be read: if {place} may be run, add the line `{sha} {submission.name}/{place}` to "
        f"{HOME}/{CONSENT} of the leaderboard, by a commit of its own"
        for place, sha in unread.items()
    ]
    waits += [
        f"keys, pixel counts and networks of its runs on {name} are not checked here, where {name} is not ({why}): "
        f"`contseg leaderboard check` with --data {name}=DIR where it is"
        for name, why in missing.items()
        if why
    ]
    checked = [v for v in verdicts if not missing[v.run.dataset] and cell(v.run) not in barred]
    waits += [str(v) for v in checked if v.unscored and not v.faults]
    return Judged(submission, tuple(faults), tuple(verdicts), tuple(waits), bool(barred))


def _not_here(stored: StoredNetworks, name: str) -> str:
    """Why a data set cannot be opened on this machine; "" if it can."""
    try:
        stored.dataset(name)
    except UserError as error:
        return str(error)
    return ""


def _clashes(submission: Submission, board: Board) -> list[str]:
    """What speaks against a submission on this leaderboard, before its numbers are looked at."""
    faults, replaces = [], submission.manifest.replaces
    if submission.name in board.submissions:
        faults.append(f"a submission {submission.name} is already accepted: choose another name")
    mine = {cell(run) for run in submission.runs}
    present = {(cell(run), run.last["run"]): name for name, run in board.runs()}
    if replaces:
        if not replaces.reason.strip():
            faults.append(f"it replaces {replaces.submission} without a reason")
        if replaces.submission not in board.submissions:
            faults.append(f"it replaces {replaces.submission}, which is not on the leaderboard")
        elif not mine & {place for (place, _), name in present.items() if name == replaces.submission}:
            faults.append(f"it replaces {replaces.submission}, but none of its runs")
    for run in submission.runs:
        owner = present.get((cell(run), run.last["run"]))
        if owner and not (replaces and replaces.submission == owner):
            faults.append(f"{run} is already on the leaderboard, from {owner}: --replaces {owner} --reason TEXT")
    return faults


def consented(home: Path) -> set[str]:
    """The SHA-256 of all code that the maintainers have read: the first word of each line of ``consent.txt``."""
    path = home / CONSENT
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    words = {line.split()[0] for line in lines if line.strip() and not line.startswith("#")}
    return {word for word in words if re.fullmatch("[0-9a-f]{64}", word)}


def append(board: Board, judged: Judged) -> Board:
    """The leaderboard's next version: with one more submission. ``versions.json`` is written."""
    assert not judged.faults and not judged.barred
    after = following(board, judged)
    write_sealed(board.home / VERSIONS, {"versions": [msgspec.to_builtins(v) for v in after.versions]})
    return after


def following(board: Board, judged: Judged) -> Board:
    """The leaderboard as it would be with one more submission; nothing is written."""
    submission = judged.submission
    assert submission is not None and not judged.faults
    replaces = submission.manifest.replaces
    scored = all(v.accepted for v in judged.verdicts) and not judged.waits
    entry = Version(
        len(board.versions) + 1,
        submission.name,
        submission.seal,
        SCORED if scored else CONSISTENT,
        datetime.now(UTC).isoformat(timespec="seconds"),
        replaces.submission if replaces else "",
        replaces.reason if replaces else "",
        tuple(sorted(run_id(v.run) for v in judged.verdicts if not v.accepted)),
    )
    return Board(board.home, (*board.versions, entry), {**board.submissions, submission.name: submission})


# --- a pull request -------------------------------------------------------------------------------------------------


def new_submission(base: Path, head: Path) -> tuple[Path | None, list[str]]:
    """The folder that a pull request adds, and what else it does that it may not; ``None`` if it adds none.

    ``base``: a checkout of the leaderboard's branch; ``head``: one of that branch with the request merged.
    """
    changed = changed_paths(base, head)
    accepted = {p.name for p in (base / HOME).glob("*") if p.is_dir()}
    owners = {p: p.split("/")[1] if p.startswith(f"{HOME}/") and p.count("/") > 1 else "" for p in changed}
    faults = [
        f"{p} is changed: an accepted record is never edited or removed; a new submission replaces it "
        "(`contseg submit --replaces NAME --reason TEXT`)"
        for p in changed
        if owners[p] in accepted
    ]
    faults += [
        f"{p} is changed: only `contseg leaderboard accept` writes it" for p in changed if p == f"{HOME}/{VERSIONS}"
    ]
    added = sorted(set(owners.values()) - accepted - {""})
    if not added:
        return None, faults
    if len(added) > 1:
        faults.append(f"it adds {len(added)} submissions ({', '.join(added)}): one in a pull request")
    if others := [p for p in changed if not owners[p] and p != f"{HOME}/{VERSIONS}"]:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        faults.append(f"it changes {others[0]}{more}: a submission changes nothing else")
    try:
        check_name(added[0])
    except UserError as error:
        faults.append(str(error))
    return head / HOME / added[0], faults


def changed_paths(base: Path, head: Path) -> list[str]:
    """The files that differ between two checkouts, by content; links are compared, not followed."""
    here, there = (dict(_files(folder)) for folder in (base, head))
    return sorted(p for p in here.keys() | there.keys() if not _same(here.get(p), there.get(p)))


def _files(folder: Path) -> Iterable[tuple[str, Path]]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != ".git"]
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        for name in [n for n in names if n != ".git"] + links:
            path = Path(place) / name
            yield path.relative_to(folder).as_posix(), path


def _same(one: Path | None, other: Path | None) -> bool:
    if one is None or other is None or one.is_symlink() != other.is_symlink():
        return False
    return os.readlink(one) == os.readlink(other) if one.is_symlink() else filecmp.cmp(one, other, shallow=False)


def waiting(board: Board) -> list[Path]:
    """The merged submissions that are in no version yet, the oldest manifest first."""
    there = [p for p in sorted(board.home.glob("*")) if p.is_dir() and p.name not in board.submissions]
    stamped = [(s.manifest.time if s else "", p) for p in there for s in [read_submission(p)[0]]]
    return [p for _, p in sorted(stamped)]
