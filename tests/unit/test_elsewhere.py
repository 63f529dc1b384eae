"""BibTeX that BibTeX reads, and result files that Hugging Face's own reader reads."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from contseg.benchmark.plan.protocol import PROTOCOLS
from contseg.benchmark.report.elsewhere import WITHOUT, as_bibtex, entries, eval_results, hub_names
from contseg.benchmark.report.reporter import leaderboard
from contseg.benchmark.score.published import load_published, with_literature
from contseg.benchmark.score.records import Record
from contseg.benchmark.score.rows import Search, Tuned
from contseg.datasets.errors import UserError
from contseg.methods.registry import addons, methods
from contseg.run_benchmark import main
from contseg.tests.records import make_run, write_records
from contseg.tests.unit.test_published import VOC
from contseg.tests.unit.test_reporter import grid

SDR = PROTOCOLS["sdr"]
OPEN = {"Memory", "MiB-AugM"}  # several sources, or one whose full text was not read


def records() -> list[Record]:
    return grid() + make_run("MiB[kd=10]+SDR", **VOC) + make_run("Odd<~^#&%$|", **VOC)


def test_every_built_in_method_has_an_entry_that_agrees_with_its_source() -> None:
    known, registered = entries(), {**methods(), **addons()}
    ours = {name for name, entry in registered.items() if entry.factory.__module__.startswith("contseg.")}
    assert ours - set(known) == {*WITHOUT, *OPEN}
    assert set(known) <= ours, "an entry of no method"
    for name, text in known.items():
        paper = registered[name].paper
        year = re.search(r"year = \{(\d{4})\}", text)
        number = re.search(r"eprint = \{([\d.]+)\}", text)
        assert year and year[1] in paper, name
        assert (re.findall(r"arXiv ([\d.]+)", paper) or [None]) == [number[1] if number else None], name
        assert text.count("{") == text.count("}") and "methods =" not in text


def test_each_paper_is_cited_once_and_a_method_without_entry_is_named() -> None:
    text = as_bibtex(leaderboard(records(), SDR))
    keys = re.findall(r"^@\w+\{(\w+),", text, re.MULTILINE)
    assert sorted(keys) == ["cermelli2020modeling", "michieli2021continual"]
    assert "% MiB\n@inproceedings{cermelli2020modeling," in text
    assert text.startswith("% Odd<~^#&%$|: no entry\n")
    board = with_literature(leaderboard(records(), SDR), load_published())
    assert set(re.findall(r"^@\w+\{(\w+),", as_bibtex(board), re.MULTILINE)) >= set(keys)


def test_bibtex_reads_all_entries(tmp_path: Path) -> None:
    if not shutil.which("bibtex"):
        pytest.skip("no bibtex: apt-get install texlive-binaries")
    (tmp_path / "all.bib").write_text("\n".join(dict.fromkeys(entries().values())), encoding="utf-8")
    (tmp_path / "all.aux").write_text("\\citation{*}\n\\bibstyle{plain}\n\\bibdata{all}\n")
    done = subprocess.run(["bibtex", "all"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    complaints = [line for line in done.stdout.splitlines() if "arning" in line or "rror" in line]
    assert done.returncode == 0 and complaints == [], done.stdout
    assert (tmp_path / "all.bbl").read_text().count("\\bibitem") == len(set(entries().values()))


def test_hugging_face_reads_the_result_files() -> None:
    import yaml  # type: ignore[import-untyped]
    from huggingface_hub import parse_eval_result_entries

    board = leaderboard(grid(), SDR)
    files = eval_results(board, {"toy": "someone/toy"})
    names = {"FT", "Joint", "MiB", "MiB+SDR"}
    assert {str(p) for p in files} == {f"eval-results/{name}/toy_2-1_overlapped_sdr.yaml" for name in names}
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[Path("eval-results/MiB/toy_2-1_overlapped_sdr.yaml")]))
    assert (entry.dataset_id, entry.task_id) == ("someone/toy", "2-1_overlapped_sdr")
    assert entry.value == round(float(board.frame.set_index("method").loc["MiB", "all"]), 2)
    assert entry.date == "2026-01-01T00:01:00" and "n = 3" in str(entry.notes)


def test_a_long_name_of_a_method_is_a_name_of_a_file_too() -> None:
    """A tuned row names the stream of its search: on ADE20K in a class order every class. A name has 255 bytes."""
    stream = ",".join(map(str, range(1, 51))) + "|" + "|".join(map(str, range(51, 101)))
    searches = [Tuned(Search("first", f"ade/[{stream}]/overlapped", n), default=False) for n in (4, 16)]
    tuned = {r["run"]: searches for r in grid()}
    files = eval_results(leaderboard(grid(), SDR, tuned=tuned), {"toy": "someone/toy"})
    assert len(files) == 8 and max(len(part.encode()) for path in files for part in path.parts) <= 255


def test_the_hub_repository_is_the_users_to_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = write_records(tmp_path / "out", make_run("FT") + make_run("MiB"))
    words = ["report", "--out", str(out), "--format", "eval-results", "bibtex"]
    assert main(words) == 2
    assert "which repository on the Hugging Face Hub is toy? --hub toy=OWNER/REPOSITORY" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == ["records"]
    assert main([*words, "--hub", "toy=me/toy"]) == 0
    assert (out / "eval-results/FT/toy_2-1_overlapped_sdr.yaml").is_file() and (out / "methods.bib").is_file()
    for wrong in ("toy", "toy=", "=a/b", "toy=a/b/c"):
        with pytest.raises(UserError, match="write NAME=OWNER/REPOSITORY"):
            hub_names([wrong])
