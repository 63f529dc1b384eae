"""Which faults would no test notice? ``python -m contseg.tests.mutation [--only TEXT]``; not a part of ``make test``.

Plants the faults of ``tests.faults`` one at a time into a copy of the checkout, runs the tests of that file and then
the golden ones with ``-x``, and prints the score. A fault is literal text that must stand exactly once in the file of
that name, wherever the file lies. Half an hour on two cores; exit code 1 below 95 %, 2 where a fault is out of date.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from contseg.tests.faults import FAULTS, TESTS, Fault
from contseg.tests.material import ROOT, SHARED, search_path

WANTED = 0.95
LIMIT = 300  # seconds for one fault: what hangs is noticed
HANGS = "hangs"


def tracked() -> list[Path]:
    """The files of the checkout that git knows, those not yet committed among them."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [Path(line) for line in listed.splitlines() if (ROOT / line).is_file()]


def place(fault: Fault, files: list[Path]) -> Path:
    """The one file of the fault's name that holds its text exactly once; ``ValueError`` where there is none."""
    named = [f for f in files if f.name == fault.file and f.parts[0] != "tests"]
    counts = {f: (ROOT / f).read_text(encoding="utf-8").count(fault.old) for f in named}
    if sum(counts.values()) != 1:
        raise ValueError(f"{fault.file}: {fault.old!r} stands {sum(counts.values())} times, not once")
    return next(f for f, n in counts.items() if n)


def tests_of(fault: Fault, files: list[Path]) -> list[str]:
    """The test files of the faulty one, then the golden tests."""
    wanted = {f"test_{name}.py" for name in TESTS[fault.file].split()}
    found = sorted(
        (str(f) for f in files if f.name in wanted), key=lambda f: ("unit" not in f, f)
    )  # the fast ones first
    if len(found) != len(wanted):
        raise ValueError(f"{fault.file}: of its tests there are only {found}")
    return [*found, "tests/golden"]


def run(tests: list[str], tree: Path, limit: float | None = LIMIT) -> tuple[int, str]:
    """Exit code of pytest in a tree, and its last lines."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    env = {**os.environ, "CONTSEG_SHARED": str(SHARED), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    env |= {"PYTHONPATH": search_path(tree.parent), "PYTHONSAFEPATH": "1"}
    try:
        done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return 1, HANGS
    return done.returncode, "\n".join((done.stdout + done.stderr).splitlines()[-15:])


def noticed(fault: Fault, files: list[Path], tree: Path) -> str:
    """Plant a fault in a tree, run its tests, and put the tree right again; "noticed", "hangs" or "MISSED"."""
    path = place(fault, files)
    right = (tree / path).read_text(encoding="utf-8")
    (tree / path).write_text(right.replace(fault.old, fault.new), encoding="utf-8")
    try:
        code, words = run(tests_of(fault, files), tree)
    finally:
        (tree / path).write_text(right, encoding="utf-8")
    if code in (3, 4, 5):  # pytest's own trouble: no test has judged
        raise RuntimeError(words)
    return HANGS if words == HANGS else "noticed" if code else "MISSED"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m contseg.tests.mutation", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="faults whose file, old or new text holds this")
    parser.add_argument("--workers", type=int, default=2, help="tests side by side")
    args = parser.parse_args(arguments)
    faults = [f for f in FAULTS if args.only in f"{f.file} {f.old} {f.new}"]
    files, began = tracked(), time.monotonic()
    wanted, stale = set(), []
    for fault in faults:
        try:
            place(fault, files)
            wanted.update(tests_of(fault, files))
        except ValueError as error:
            stale.append(str(error))
    if stale or not faults:
        print("\n".join(["tests/faults.py is out of date:", *stale]) if stale else f"no fault holds {args.only!r}")
        return 2
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.workers) as pool:
        trees: SimpleQueue[Path] = SimpleQueue()
        for number in range(args.workers):
            tree = Path(folder) / str(number) / "contseg"
            for path in files:
                (tree / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / path, tree / path)
            trees.put(tree)
        code, words = run(sorted(wanted), tree, limit=None)
        if code:
            print(f"without any fault the tests fail already:\n{words}")
            return 2

        def judge(fault: Fault) -> str:
            mine = trees.get()
            try:
                return noticed(fault, files, mine)
            finally:
                trees.put(mine)

        missed = []
        for fault, found in zip(faults, pool.map(judge, faults), strict=True):
            print(f"{found:<7}  {fault.file}: {fault.old!r} -> {fault.new!r}", flush=True)
            missed += [fault] if found == "MISSED" else []
    score = 1 - len(missed) / len(faults)
    minutes = (time.monotonic() - began) / 60
    print(f"{len(faults) - len(missed)} of {len(faults)} faults noticed ({score:.0%}) in {minutes:.0f} minutes")
    return int(score < WANTED)


if __name__ == "__main__":
    sys.exit(main())
