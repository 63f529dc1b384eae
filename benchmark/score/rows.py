"""Which rows of a table a search chose, and which runs it only tried: ``DIR/tuned/*.toml`` beside the records.

``tuned_on`` belongs to a row, not to a run: the first trial of a search is the method's default, and has its key. A
file here maps rows to the keys of their runs, and names the record of the search (``trials.csv`` of ``contseg tune``).
Its name is the hash of its content, so folders of several machines are merged by copying. The trials of a search on the
test images are named there too: each has a score in the tables' terms, and is no row unless the search chose it.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import msgspec
from msgspec.structs import replace

from contseg.benchmark.plan.recipe import own_recipe
from contseg.benchmark.plan.toml import toml_value
from contseg.datasets.atomic import replacing
from contseg.methods.registry import build_method

if TYPE_CHECKING:
    from contseg.benchmark.plan.build import Run
    from contseg.benchmark.plan.config import Config
    from contseg.benchmark.plan.search import Tuning

FOLDER = "tuned"
NO_SEARCH = "no search"
TRIED = "# Runs that a search tried on the test images, no rows unless it chose them. Written by `contseg tune`."
HEAD = "# Rows that a search chose, by the keys of their runs. Written by `contseg run` from a grid of `contseg tune`."


class Search(msgspec.Struct, frozen=True):
    """A search of ``contseg tune``.

    ``on``: the selection; ``scenario``: where trials were compared; ``trials``: of each method; ``draw``: the seed of
    the drawn values; ``record``: the file beside the rows that holds every trial, empty if it was lost.
    """

    on: str
    scenario: str
    trials: Annotated[int, msgspec.Meta(ge=1)]
    draw: int = 0
    record: Annotated[str, msgspec.Meta(pattern=r"^([\w-]+\.csv)?$")] = ""

    def __str__(self) -> str:
        where = "" if self.on.partition(":")[2] == self.scenario else f" ({self.scenario})"
        return f"{self.on}{where}, {_count(self.trials)}"

    @property
    def short(self) -> str:
        """The same without the scenario."""
        return f"{self.on}, {_count(self.trials)}"


class Row(msgspec.Struct, frozen=True):
    """A row of a table: its method, the trial that it was (0: the method's default), and the keys of its runs."""

    method: str
    trial: int
    runs: tuple[str, ...]


class _File(msgspec.Struct, frozen=True):
    search: Search
    row: tuple[Row, ...] = ()
    trial: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Tuned:
    """What a search says of one run. ``default``: whether the run is the method's default too, a row of its own.

    ``chosen``: whether the search chose it, or only tried it.
    """

    search: Search
    default: bool
    chosen: bool = True


Searches: TypeAlias = Mapping[str, Sequence[Tuned]]  # by the key of a run


def _count(trials: int) -> str:
    return f"{trials} trial" + "s" * (trials != 1)


def write_rows(out: Path, config: Config, runs: Iterable[Run], grid: Path | None) -> Path | None:
    """Note beside the records which of these runs are rows of a search; the file, or ``None`` for a grid without one.

    ``grid``: the file of the grid. The trials beside it (``trials.csv``) are copied, if they are those of the search.
    """
    tuned = config.tuned
    names = {own_recipe(config, build_method(m).name)[0]: n for m, n in zip(tuned.methods, tuned.numbers, strict=True)}
    keys: dict[str, list[str]] = {}
    for run in runs:
        if run.method in names:
            keys.setdefault(run.method, []).append(run.key)
    if not keys:
        return None
    record = _copy_trials(out / FOLDER, tuned.record, grid)
    search = Search(tuned.on, tuned.scenario, tuned.trials, tuned.draw, record)
    return _write_file(
        out, _File(search, tuple(Row(m, names[m], tuple(dict.fromkeys(its))) for m, its in keys.items()))
    )


def write_trials(out: Path, tuning: Tuning, runs: Iterable[Run]) -> Path | None:
    """Note beside the records which of these runs are drawn trials scored on the test images; ``None`` if none is."""
    if tuning.config.eval.split != "val":
        return None
    keys, numbers = dict[str, list[str]](), tuning.numbers
    for run in runs:
        if numbers.get(run.method):
            keys.setdefault(run.method, []).append(run.key)
    if not keys:
        return None
    of = tuning.search
    tried = tuple(Row(m, numbers[m], tuple(dict.fromkeys(its))) for m, its in keys.items())
    return _write_file(out, _File(Search(of.on, of.scenario, of.trials, of.draw), trial=tried))


def carry_rows(folders: Iterable[Path], runs: Collection[str], out: Path) -> None:
    """Note in the results folder ``out`` what those of ``folders`` say of these runs, by key, and of no others.

    The trials that a search names are copied where they are what their name says.
    """
    for path, file, _ in _files(folders):
        kept, tried = (_of(rows, runs) for rows in ((file.row, file.trial) if file else ((), ())))
        if file and (kept or tried):
            trials, record = path.parent / file.search.record, ""
            if file.search.record and trials.is_file() and _hash(content := trials.read_bytes()) == trials.stem:
                record = trials.name
                _write(out / FOLDER / record, content)
            _write_file(out, _File(replace(file.search, record=record), kept, tried))


def _of(rows: Sequence[Row], runs: Collection[str]) -> tuple[Row, ...]:
    """The rows that have some of these runs, with no others."""
    cut = (replace(row, runs=tuple(k for k in row.runs if k in runs)) for row in rows)
    return tuple(row for row in cut if row.runs)


def _write_file(out: Path, file: _File) -> Path:
    lines = [HEAD if file.row else TRIED, "", "[search]", *_values(file.search)]
    for kind, rows in (("row", file.row), ("trial", file.trial)):
        for row in rows:
            lines += ["", f"[[{kind}]]", *_values(row)]
    text = "\n".join(lines) + "\n"
    path = out / FOLDER / f"{_hash(text.encode())}.toml"
    _write(path, text.encode())
    return path


def _values(part: Search | Row) -> list[str]:
    return [f"{name} = {toml_value(getattr(part, name))}" for name in part.__struct_fields__]


def _copy_trials(folder: Path, record: str, grid: Path | None) -> str:
    """Copy the record of a search; its name there, or "" if it is not beside the grid. A copy of earlier serves too."""
    if not record:
        return ""
    target = folder / f"{record[:8]}.csv"
    for source in (target, *([grid.with_name("trials.csv")] if grid else [])):
        if source.is_file() and hashlib.sha256(content := source.read_bytes()).hexdigest() == record:
            _write(target, content)
            return target.name
    return ""


def _write(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        with replacing(path) as temporary:
            temporary.write_bytes(content)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


def read_rows(folders: Iterable[Path]) -> tuple[dict[str, list[Tuned]], list[str]]:
    """The key of a run -> the searches that chose or tried it, and one line for each file that was left out.

    ``folders``: results folders, those that hold ``records``.
    """
    found: dict[str, list[Tuned]] = {}
    problems = []
    for path, file, why in _files(folders):
        if file is None:
            problems.append(why)
            continue
        search = file.search
        if search.record and not (path.parent / search.record).is_file():
            problems.append(f"{path} names the trials {search.record}, which are not beside it")
        for row in (*file.row, *file.trial):
            for key in row.runs:
                one = Tuned(search, row.trial == 0, row in file.row)
                if one not in found.setdefault(key, []):
                    found[key].append(one)
    return found, problems


def _files(folders: Iterable[Path]) -> Iterator[tuple[Path, _File | None, str]]:
    """Every file below ``tuned``; ``None`` and a line for one that cannot be read."""
    for path in (p for folder in folders for p in sorted((folder / FOLDER).glob("*.toml"))):
        try:
            file = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _File)
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
            yield path, None, f"left out {path}: not a table of tuned rows ({' '.join(str(error).split())})"
        else:
            yield path, file, ""


def note(search: Search) -> str:
    """A line below a table: what a row tuned by this search was chosen by."""
    record = f"all trials: {FOLDER}/{search.record}" if search.record else "the record of its trials is not here"
    return f"tuned on {search}, Sobol seed {search.draw}, best 'all' mIoU; {record}"
