"""A submission: the folder that a contributor adds to a leaderboard by a pull request.

``NAME/submission.json`` is sealed and has the checksum of every other file: ``records/``, ``code/*.py`` of methods that
contseg does not have, ``tuned/`` with the searches that chose its runs, and ``cache/`` with the networks of the
records, or without it where they are too large for a repository and travel as ``NAME-networks.tar``.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tarfile
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from contseg import __version__
from contseg.benchmark.score.networks import step_key
from contseg.benchmark.score.records import Record, Run, gather_runs, read_records, results_folders
from contseg.benchmark.score.rows import Searches, carry_rows, read_rows
from contseg.benchmark.score.submissions import Verdict, record_path
from contseg.benchmark.store.files import Store, digest, write_sealed
from contseg.datasets.atomic import replacing, writing
from contseg.datasets.errors import UserError

FORMAT = 1
MANIFEST = "submission.json"
NETWORKS_IN_GIT = 50 * 2**20  # bytes of networks that may lie in a pull request
NAME = r"[a-z0-9][a-z0-9-]{1,39}"
# the files of a submission besides the manifest
RECORD = re.compile(r"records/([^/]+/){3,}[^/]+\.json")
SEARCH = re.compile(r"tuned/[0-9a-f]{8}\.(toml|csv)")
CODE = re.compile(r"code/[A-Za-z_]\w*\.py")
NETWORK = re.compile(r"cache/[0-9a-f]{2}/[0-9a-f]{64}/(model|terms|observer-[0-9a-f]+)\.safetensors")


class Replaces(msgspec.Struct, frozen=True):
    """Which accepted submission this one stands in for, run by run, and why."""

    submission: str
    reason: str


class Manifest(msgspec.Struct, frozen=True):
    """``submission.json`` without its seal. ``files`` and ``networks``: path in the folder -> SHA-256."""

    format: int
    name: str
    contseg: str
    time: str
    files: dict[str, str]
    networks: dict[str, str]
    replaces: Replaces | None = None


@dataclass(frozen=True)
class Submission:
    """A submission as it was read. ``seal``: the checksum of its manifest, and so of all of it."""

    folder: Path
    manifest: Manifest
    seal: str
    records: tuple[Record, ...]

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def code(self) -> dict[str, str]:
        """The files of methods of its own: path in the folder -> SHA-256."""
        return {path: sha for path, sha in self.manifest.files.items() if CODE.fullmatch(path)}

    @property
    def runs(self) -> list[Run]:
        return gather_runs(self.records)

    @property
    def searches(self) -> Searches:
        """The searches that chose its runs, as it says."""
        own = {r["run"] for r in self.records}
        return {key: found for key, found in read_rows([self.folder])[0].items() if key in own}


@dataclass(frozen=True)
class Packed:
    """What was written. ``archive``: the networks, where they are not in ``folder``; ``size``: bytes of networks."""

    folder: Path
    archive: Path | None
    size: int


def check_name(name: str) -> str:
    """The name of a submission. Raises ``UserError``."""
    if not re.fullmatch(NAME, name):
        raise UserError(f"{name!r} is no name of a submission: 2 to 40 small letters, digits and hyphens")
    return name


def pack(
    records: Path, verdicts: Sequence[Verdict], out: Path, code: Iterable[Path] = (), replaces: Replaces | None = None
) -> Packed:
    """Write a submission of checked runs into a new folder, which is called like it: all of it, or nothing.

    ``records``: where they and their networks lie; ``code``: the files that define methods of their own.
    """
    name = check_name(out.name)
    if out.exists():
        raise UserError(f"{out} already exists: a submission is a new folder, choose another name")
    sources = {f"code/{path.name}": path for path in code}
    networks: dict[str, Path] = {}
    for record in (r for v in verdicts for r in v.run.records):
        networks |= _networks(record, results_folders(records))
    size = sum(path.stat().st_size for path in networks.values())
    archive = out.with_name(f"{name}-networks.tar") if size > NETWORKS_IN_GIT else None
    work = out.with_name(f".{name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with writing(out):
            for record in (r for v in verdicts for r in v.run.records):
                write_sealed(work / "records" / record_path(record), record)
            carry_rows(results_folders(records), {v.run.last["run"] for v in verdicts}, work)
            for place, source in {**sources, **({} if archive else networks)}.items():
                (work / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, work / place)
            files = {p: sha256(work / p) for p in _inside(work) if not NETWORK.fullmatch(p)}
            stamps = {p: sha256(source) for p, source in sorted(networks.items())}
            time = datetime.now(UTC).isoformat(timespec="seconds")
            manifest = Manifest(FORMAT, name, __version__, time, files, stamps, replaces)
            write_sealed(work / MANIFEST, msgspec.to_builtins(manifest))
            if archive:
                with replacing(archive) as temporary, tarfile.open(temporary, "w") as tar:
                    for place, source in sorted(networks.items()):
                        tar.add(source, place, filter=_nobodys)
            work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Packed(out, archive, size)


def _nobodys(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """A member of an archive without the name of whoever packed it."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _networks(record: Record, homes: Sequence[Path]) -> dict[str, Path]:
    """The stored files that give a record's predictions again, by their path in a submission; none if not stored."""
    key = step_key(record)
    for home in homes:
        store = Store(home)
        if store.model(key).is_file():
            found = [store.model(key), store.terms(key), *sorted(store.step(key).glob("observer-*.safetensors"))]
            return {f"cache/{p.relative_to(store.cache).as_posix()}": p for p in found if p.is_file()}
    return {}


def read_submission(folder: Path) -> tuple[Submission | None, list[str]]:
    """A submission and what is wrong with it; ``None`` if its manifest cannot be read. Nothing of it is run or moved.

    Every file is compared with the manifest; networks may be missing. Records are read as ``read_records`` does.
    """
    path = folder / MANIFEST
    try:
        if path.is_symlink() or not path.is_file():
            raise ValueError("there is none")
        value = json.loads(path.read_text(encoding="utf-8"))
        seal = value.pop("sha256", None)
        if seal != digest(value):
            raise ValueError("it was altered since it was written")
        manifest = msgspec.convert(value, Manifest)
        if manifest.format != FORMAT:
            raise ValueError(f"it has format {manifest.format}, this version reads {FORMAT}")
    except (OSError, ValueError, AttributeError, TypeError) as error:  # msgspec's errors are ValueErrors
        return None, [f"{MANIFEST}: {error}; `contseg submit` writes it"]
    faults = [] if manifest.name == folder.name else [f"it is called {manifest.name}, its folder {folder.name}"]
    faults += _file_faults(folder, manifest)
    records, problems = read_records(folder / "records") if (folder / "records").is_dir() else ([], [])
    tuned, wrong = read_rows([folder])
    faults += [line.removeprefix("left out ").replace(f"{folder}/", "") for line in (*problems, *wrong)]
    if others := sorted(tuned.keys() - {r["run"] for r in records}):
        faults.append(f"tuned/: names the run {others[0][:8]}, which is not in it")
    places = {f"records/{record_path(r)}" for r in records}
    if strange := sorted(p for p in manifest.files if p.startswith("records/") and p not in places):
        faults += [] if problems else [f"{strange[0]} is not where a record of its content belongs"]
    if not records and not problems:
        faults.append("it has no records")
    return Submission(folder, manifest, str(seal), tuple(records)), faults


def _file_faults(folder: Path, manifest: Manifest) -> list[str]:
    stated, faults = {**manifest.files, **manifest.networks}, []
    there = [p for p in _inside(folder) if p != MANIFEST]
    for place in there:
        path = folder / place
        if path.is_symlink() or not path.is_file():
            faults.append(f"{place} is no regular file")
        elif not any(form.fullmatch(place) for form in (RECORD, SEARCH, CODE, NETWORK)):
            faults.append(f"{place} is no file of a submission")
        elif place not in stated:
            faults.append(f"{place} is not in {MANIFEST}")
        elif sha256(path) != stated[place]:
            faults.append(f"{place} was altered since it was packed")
    return faults + [f"{place} is missing" for place in sorted(set(manifest.files) - set(there))]


def _inside(folder: Path) -> list[str]:
    """The paths of all that is no folder below a folder; links are not followed."""
    found = (p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())
    return sorted(p.relative_to(folder).as_posix() for p in found)


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
