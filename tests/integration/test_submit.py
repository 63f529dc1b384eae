"""Submissions to a leaderboard, rehearsed on a local git repository with the very commands of the workflow files."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml  # type: ignore[import-untyped]

from contseg.benchmark.store.files import digest, write_sealed
from contseg.benchmark.submit import pack
from contseg.benchmark.submit.board import read_board
from contseg.benchmark.submit.pack import MANIFEST, sha256
from contseg.datasets.formats import shapes
from contseg.methods import code, registry
from contseg.run_benchmark import main
from contseg.tests.integration.grid import records, small
from contseg.tests.integration.test_report import PLUGIN, forge
from contseg.tests.material import ROOT

WORKFLOWS = ROOT / ".github/workflows"
COUNTS = {"train": 40, "val": 12}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two groups' results: ``ours`` with two methods of contseg, ``theirs`` with a method of their own."""
    folder = tmp_path_factory.mktemp("groups")
    plugin = folder / "their_method.py"
    plugin.write_text(PLUGIN)
    registry.methods()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "COUNTS", COUNTS)
        patch.setattr(registry, "_METHODS", dict(registry._METHODS))
        assert main(["run", *map(str, small(folder / "ours", "FT", "MiB"))]) == 0
        assert main(["run", *map(str, small(folder / "theirs", "Theirs")), "--plugin", str(plugin)]) == 0
        packed = ["--out", str(folder / "packed/their-method"), "--plugin", str(plugin)]
        assert main(["submit", "--records", str(folder / "ours"), "--out", str(folder / "packed/our-lab")]) == 0
        assert main(["submit", "--records", str(folder / "theirs"), *packed]) == 0
    forget()
    yield folder


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Few images; a plugin that is loaded is forgotten afterwards."""
    monkeypatch.setattr(shapes, "COUNTS", COUNTS)
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    yield
    forget()


def forget() -> None:
    sys.modules.pop("their_method", None)
    code.forget()


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", "-C", str(folder), *who, *words], capture_output=True, text=True, check=True)
    return done.stdout


class Repository:
    """A leaderboard's repository; requests are branches, merged in a checkout of their own as GitHub does it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.main = folder, folder / "main"
        (self.main / "submissions").mkdir(parents=True)
        git(self.main, "init")
        shutil.copy(ROOT / "submissions/consent.txt", self.main / "submissions")
        (self.main / "README.md").write_text("A leaderboard.\n")
        self.commit("begin")

    def commit(self, message: str) -> None:
        git(self.main, "add", "-A")
        git(self.main, "commit", "-m", message)

    def request(self, name: str, source: Path | None, also: str = "") -> Path:
        """A branch that adds a submission; the folder that the workflow works in, with the request checked out."""
        work = self.folder / f"work-{name}"
        git(self.main, "worktree", "add", "-b", name, str(work / "branch"), "main")
        if source:
            shutil.copytree(source, work / "branch/submissions" / name, symlinks=True)
        if also:
            (work / "branch" / also).write_text("changed\n")
        git(work / "branch", "add", "-A")
        git(work / "branch", "commit", "-m", name)
        git(self.main, "worktree", "add", "--detach", str(work / "request"), "main")
        git(work / "request", "merge", "--no-ff", "-m", "merged", name)
        return work

    def merge(self, name: str) -> None:
        git(self.main, "merge", "--no-ff", "-m", "merged", name)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


def steps(workflow: str, job: str) -> list[str]:
    """The lines that a job runs."""
    found = yaml.safe_load((WORKFLOWS / workflow).read_text())["jobs"][job]["steps"]
    return [step["run"].strip() for step in found if "run" in step]


def check(work: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """What submission.yml does, in its folder: the branch without the request, then the check; and its comment."""
    lines = steps("submission.yml", "check")
    (apart,) = (line for line in lines if line.startswith("git "))
    (line,) = (line for line in lines if line.startswith("contseg "))
    subprocess.run(shlex.split(apart), cwd=work, check=True, capture_output=True)
    monkeypatch.chdir(work)
    result = main(shlex.split(line)[1:])
    return result, (work / "verdict/comment.md").read_text()


def publish(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What leaderboard.yml does after a merge; its exit codes."""
    monkeypatch.chdir(folder)
    return [main(shlex.split(line)[1:]) for line in steps("leaderboard.yml", "accept") if line.startswith("contseg ")]


def reseal(folder: Path) -> None:
    """As a forger would: a manifest that fits the changed files."""
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["sha256"]
    manifest["name"] = folder.name
    manifest["files"] = {name: sha256(folder / name) for name in manifest["files"]}
    write_sealed(folder / MANIFEST, manifest)


def renamed(source: Path, target: Path, **changes: Any) -> Path:
    shutil.copytree(source, target)
    manifest = json.loads((target / MANIFEST).read_text())
    del manifest["sha256"]
    write_sealed(target / MANIFEST, {**manifest, "name": target.name, **changes})
    return target


def test_a_good_submission_becomes_a_version(
    place: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = repository.request("our-lab", place / "packed/our-lab")
    result, said = check(work, monkeypatch)
    assert result == 0, said
    assert "**Accepted**: every run was scored again" in said
    assert said.count("| new | `shapes/3-3/overlapped` |") == 2 and "`MiB`" in said
    repository.merge("our-lab")
    assert publish(repository.main, monkeypatch) == [0, 0]
    assert "version 1: our-lab, scored again by its networks" in capsys.readouterr().out
    board = read_board(repository.main / "submissions")
    assert [v.submission for v in board.versions] == ["our-lab"]
    sent = {k: r["matrix"] for k, r in records(place / "ours").items()}
    assert {k: r["matrix"] for k, r in records(repository.main / "submissions/our-lab").items()} == sent
    pages = repository.main / "pages"
    assert {p.name for p in pages.iterdir()} == {"index.html", "leaderboard", "versions"}
    assert "not scored again" not in (pages / "leaderboard/index.html").read_text()
    table = (pages / "versions/1/leaderboard.csv").read_text()
    assert table == (place / "ours/leaderboard.csv").read_text()
    shutil.rmtree(pages)
    repository.commit("version 1")

    # the same runs again are refused; with a reason they replace the first ones, which stay as they were
    again = renamed(place / "packed/our-lab", repository.folder / "again")
    result, said = check(repository.request("again", again), monkeypatch)
    assert result == 2 and "is already on the leaderboard, from our-lab: --replaces our-lab" in said
    reason = {"submission": "our-lab", "reason": "a bug in @our loader"}
    better = renamed(place / "packed/our-lab", repository.folder / "better", replaces=reason)
    result, said = check(repository.request("better", better), monkeypatch)
    assert result == 0 and "It replaces runs of `our-lab`, because: `a bug in @our loader`" in said
    assert "No row of the table changes." in said
    repository.merge("better")
    assert publish(repository.main, monkeypatch) == [0, 0]
    board = read_board(repository.main / "submissions")
    assert {name for name, _ in board.runs()} == {"better"}
    assert {name for name, _ in board.runs(1)} == {"our-lab"}
    assert re.search("<td>our-lab *</td><td>a bug in @our loader *</td>", (pages / "index.html").read_text())
    assert (pages / "versions/1/leaderboard.csv").read_text() == table
    shutil.rmtree(pages)
    repository.commit("version 2")

    # nobody edits what was accepted: neither by a request, nor in the branch
    (path,) = (repository.main / "submissions/our-lab").rglob("FT/**/step1.json")
    work = repository.request("edit", None, str(path.relative_to(repository.main)))
    result, said = check(work, monkeypatch)
    assert result == 2 and "an accepted record is never edited or removed" in said
    path.write_text("{}")
    assert main(["leaderboard", "build", str(repository.main), "--out", str(pages)]) == 2
    assert "was changed after it was accepted (records/" in capsys.readouterr().err
    assert not pages.exists()


def test_a_damaged_submission_is_refused(place: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = renamed(place / "packed/our-lab", repository.folder / "damaged")
    (path,) = (damaged / "records").rglob("FT/**/step1.json")
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    result, said = check(repository.request("damaged", damaged), monkeypatch)
    assert result == 2 and "**Refused.**" in said
    assert f"- `{path.relative_to(damaged)} was altered since it was packed`" in said
    assert "altered since it was written" in said  # the record's own seal
    repository.merge("damaged")  # against the advice
    assert publish(repository.main, monkeypatch)[0] == 2
    assert read_board(repository.main / "submissions").versions == ()


def test_a_forged_submission_is_refused_by_its_networks(
    place: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    forged = renamed(place / "packed/our-lab", repository.folder / "forged")
    forge(forged, "FT")
    reseal(forged)
    result, said = check(repository.request("forged", forged), monkeypatch)
    assert result == 2
    assert "FT seed 0: step 1: its network does not give these counts (" in said
    assert "Difference to the table" not in said


def test_code_is_run_only_after_a_maintainer_consents(
    place: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = place / "packed/their-method"
    stamp = sha256(theirs / "code/their_method.py")
    result, said = check(repository.request("their-method", theirs), monkeypatch)
    assert result == 1 and "a maintainer has to look" in said
    assert f"add the line '{stamp} their-method/code/their_method.py'" in said
    assert "their_method" not in sys.modules

    # consent in the request itself is none
    own = repository.folder / "own"
    shutil.copytree(repository.main, own)
    renamed(theirs, own / "submissions/own-consent")
    (own / "submissions/consent.txt").write_text(stamp)
    assert main(["leaderboard", "check", str(repository.main), "--request", str(own)]) == 2
    assert "it changes submissions/consent.txt: a submission changes nothing else" in capsys.readouterr().out
    shutil.rmtree(own / "submissions/own-consent")
    assert main(["leaderboard", "check", str(repository.main), "--request", str(own)]) == 1
    assert f"if a maintainer has read it: {stamp}" in capsys.readouterr().out
    assert "their_method" not in sys.modules

    repository.merge("their-method")
    assert publish(repository.main, monkeypatch)[0] == 2  # merged, but no version before its code is read
    assert read_board(repository.main / "submissions").versions == () and "their_method" not in sys.modules
    with open(repository.main / "submissions/consent.txt", "a") as file:
        file.write(f"{stamp}  their-method/code/their_method.py\n")
    assert publish(repository.main, monkeypatch) == [0, 0]
    assert "version 1: their-method, scored again by its networks" in capsys.readouterr().out
    assert "their_method" in sys.modules


def test_a_run_without_networks_waits_and_its_version_and_pages_say_so(
    place: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = renamed(place / "packed/our-lab", repository.folder / "bare")
    (key,) = (r["step_key"] for r in records(bare).values() if (r["method"], r["step"]) == ("MiB", 1))
    shutil.rmtree(bare / "cache" / key[:2] / key)
    result, said = check(repository.request("bare", bare), monkeypatch)
    assert result == 1 and "consistent, not re-scored: shapes/3-3/overlapped MiB seed 0" in said
    assert "2 runs, 1 of them scored again" in said
    repository.merge("bare")
    assert publish(repository.main, monkeypatch) == [0, 0]
    board = read_board(repository.main / "submissions")
    (version,) = board.versions
    assert version.verdict == "consistent, not scored again"
    assert "<td>consistent, not scored again</td>" in (repository.main / "pages/index.html").read_text()
    pages = {p.stem: p.read_text() for p in (repository.main / "pages/leaderboard/run").iterdir()}
    marked = {name for name, text in pages.items() if "<strong>Consistent, not scored again</strong>" in text}
    assert board.unscored() == marked < set(pages) and all("<h1>MiB, seed 0" in pages[name] for name in marked)
    older = replace(board, versions=(msgspec.structs.replace(version, unscored=None),))
    assert older.unscored() == set(pages)  # what nothing tells apart is not called scored


def test_a_submission_changes_nothing_else_and_brings_no_other_file(
    place: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = repository.request("our-lab", place / "packed/our-lab", also="README.md")
    result, said = check(work, monkeypatch)
    assert result == 2 and "it changes README.md: a submission changes nothing else" in said
    strange = renamed(place / "packed/our-lab", repository.folder / "strange")
    (strange / "setup.py").write_text("raise SystemExit\n")
    (strange / "records/link.json").symlink_to("/etc/passwd")
    result, said = check(repository.request("strange", strange), monkeypatch)
    assert result == 2
    assert "`setup.py is no file of a submission`" in said and "`records/link.json is no regular file`" in said


def test_faulty_results_are_not_packed(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(place / "ours", tmp_path / "runs")
    forge(tmp_path / "runs", "FT")
    out = tmp_path / "lab"
    assert main(["submit", "--records", str(tmp_path / "runs"), "--out", str(out)]) == 2
    printed = capsys.readouterr()
    assert "FT seed 0: step 1: its network does not give these counts" in printed.out
    assert "not packed: 1 faults" in printed.err and not out.exists()
    for words, line in (
        (["--out", str(tmp_path / "Our Lab")], "'Our Lab' is no name of a submission"),
        (["--out", str(tmp_path / "runs")], "already exists: a submission is a new folder"),
        (["--out", str(out), "--replaces", "x"], "--replaces NAME and --reason TEXT belong together"),
    ):
        assert main(["submit", "--records", str(place / "ours"), *words]) == 2
        assert line in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["runs"]


def test_large_networks_travel_beside_the_folder(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pack, "NETWORKS_IN_GIT", 1000)
    out = tmp_path / "large"
    assert main(["submit", "--records", str(place / "ours"), "--out", str(out)]) == 0
    archive = tmp_path / "large-networks.tar"
    assert f"too large for a repository: {archive}; upload it" in capsys.readouterr().out
    assert not (out / "cache").exists() and {p.name for p in tmp_path.iterdir()} == {"large", archive.name}
    assert pack.read_submission(out)[1] == []
    with tarfile.open(archive) as tar:  # unpacked into the folder, they are what the manifest says
        assert {(m.uid, m.gid, m.uname, m.gname) for m in tar} == {(0, 0, "", "")}
        tar.extractall(out, filter="data")
    submission, faults = pack.read_submission(out)
    assert faults == [] and submission is not None
    assert set(submission.manifest.networks) == {str(p.relative_to(out)) for p in out.rglob("*.safetensors")}


def test_a_manifest_names_its_runs_files_by_content(place: Path) -> None:
    packed = place / "packed/our-lab"
    manifest = json.loads((packed / MANIFEST).read_text())
    seal = manifest.pop("sha256")
    assert seal == digest(manifest)
    there = {p.relative_to(packed).as_posix() for p in packed.rglob("*") if p.is_file()} - {MANIFEST}
    assert there == {*manifest["files"], *manifest["networks"]}
    assert len(manifest["networks"]) >= 3 and manifest["replaces"] is None


# --- reproduce ------------------------------------------------------------------------------------------------------


def test_a_run_is_trained_again_from_its_records(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (record,) = (place / "ours/records").rglob("MiB/**/step1.json")
    out = tmp_path / "again"
    assert main(["reproduce", str(record), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "MiB seed 0, step 1 of 2: 2 of 2 steps are trained in" in said and "the keys agree" in said
    assert "reproduced: every count is equal" in said
    assert said.count("+0.00") == 7 + 2  # classes, and mIoU after two steps
    assert {r["method"] for r in records(out).values()} == {"MiB"}

    # a record that says something else than was trained
    copy = tmp_path / "copy"
    shutil.copytree(place / "ours/records", copy / "records")
    (path,) = (copy / "records").rglob("MiB/**/step1.json")
    forge(copy, "MiB")
    assert main(["reproduce", str(path), "--out", str(out)]) == 1
    said = capsys.readouterr().out
    assert "0 of 2 steps are trained in" in said and "counts differ." in said
    assert "device, versions, processes and threads are the recorded ones" in said
    path.with_name("step0.json").unlink()
    assert main(["reproduce", str(path), "--out", str(out)]) == 2
    assert "step0.json is missing: the settings of every step up to 1 are needed" in capsys.readouterr().err
    assert main(["reproduce", str(record), "--out", str(place / "ours")]) == 2
    assert "holds the record itself: name a fresh folder" in capsys.readouterr().err


# --- the workflow files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("*.yml")), ids=lambda p: p.name)
def test_no_token_that_can_write_meets_code_of_a_request(path: Path) -> None:
    flow = yaml.safe_load(path.read_text())
    events = flow[True]  # YAML 1.1 reads `on` as true
    assert "pull_request_target" not in events and set(events) <= {"pull_request", "push", "workflow_run"}
    for job in flow["jobs"].values():
        writes = "write" in {**flow["permissions"], **job.get("permissions", {})}.values()
        used = [step["uses"] for step in job["steps"] if "uses" in step]
        lines = "\n".join(step.get("run", "") for step in job["steps"])
        if "pull_request" in events:
            assert not writes and "./base" in lines and "secrets" not in path.read_text()
        if writes:
            assert "contseg" not in lines and "pip" not in lines
            assert "push" in events or not any(u.startswith("actions/checkout") for u in used)
        else:
            checkouts = [step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout")]
            assert all(step["with"]["persist-credentials"] is False for step in checkouts)
        assert not [u for u in used if not u.startswith("actions/")]
        assert "${{ github.event.pull_request.title" not in lines and "head_ref" not in lines
