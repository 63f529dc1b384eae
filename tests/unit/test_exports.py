"""LaTeX that compiles, JSON that is whole, metadata that Hugging Face reads."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from contseg.benchmark.plan.protocol import PROTOCOLS
from contseg.benchmark.report.exports import as_json, as_latex, as_model_index, escape
from contseg.benchmark.report.reporter import leaderboard
from contseg.benchmark.score.published import load_published, with_literature
from contseg.tests.records import make_run
from contseg.tests.unit.test_published import VOC
from contseg.tests.unit.test_reporter import grid

SDR = PROTOCOLS["sdr"]

LATEX = r"""\begin{table}[htbp]
\centering\small
\caption{toy $\cdot$ 2-1 $\cdot$ overlapped $\cdot$ sdr. tiny from scratch; 1 epochs, batch 8; protocol sdr; n = 3; no search; external data: none}
\begin{tabular}{lrrrrrrr}
\toprule
Method & $n$ & Old & New & All & Avg & Forgetting & $\Delta$ Joint \\
\midrule
FT & 3 & 10.7 $\pm$ 0.0 & \textbf{89.0 $\pm$ 1.0} & 30.3 $\pm$ 0.3 & 58.5 $\pm$ 0.7 & 75.9 $\pm$ 1.1 & $-62.7$ \\
MiB & 3 & 76.3 $\pm$ 1.1 & 82.0 $\pm$ 1.0 & 77.7 $\pm$ 1.1 & 78.5 $\pm$ 1.0 & 2.9 $\pm$ 0.1 & $-15.3$ \\
MiB+SDR & 3 & 75.2 $\pm$ 1.1 & 81.0 $\pm$ 1.0 & 76.7 $\pm$ 1.1 & 77.4 $\pm$ 1.0 & 2.9 $\pm$ 0.1 & $-16.3$ \\
\midrule
Joint & 3 & 92.3 $\pm$ 0.0 & 95.0 $\pm$ 0.0 & 93.0 $\pm$ 0.0 & -- & -- & $+0.0$ \\
\bottomrule
\end{tabular}
\end{table}
"""  # noqa: E501


def test_latex_table() -> None:
    assert LATEX in as_latex(leaderboard(grid(), SDR))


def test_what_latex_would_read_as_its_own_is_escaped() -> None:
    assert escape("a_b & 5% {x} ~ \\ ^ #1 $") == (
        r"a\_b \& 5\% \{x\} \textasciitilde{} \textbackslash{} \textasciicircum{} \#1 \$"
    )


def test_latex_compiles(tmp_path: Path) -> None:
    if not shutil.which("pdflatex"):
        pytest.skip("no pdflatex: apt-get install texlive-latex-recommended")
    records = grid() + make_run("MiB[kd=10]+SDR", **VOC) + make_run("Odd_name[a=1]<~^#&%$|", **VOC)
    board = with_literature(leaderboard(records, SDR), load_published())
    (tmp_path / "table.tex").write_text(as_latex(board), encoding="utf-8")
    call = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "table.pdf").stat().st_size > 1000


def test_json_holds_what_the_tables_show() -> None:
    value = json.loads(as_json(leaderboard(grid(), SDR)))
    assert [c["method"] for c in value["cells"]] == ["FT", "MiB", "MiB+SDR", "Joint"]
    assert value["protocol"] == SDR.as_dict()
    assert value["cells"][3]["avg"] is None
    assert len(value["runs"]) == 12
    assert [0, "new"] in value["significantly_best"]
    (pair,) = (p for p in value["paired_differences"] if (p["a"], p["b"]) == ("MiB", "MiB+SDR"))
    assert pair["seeds"] == 3
    assert pair["low"] < 0 < pair["high"]


def test_hugging_face_reads_the_model_index() -> None:
    yaml = pytest.importorskip("yaml")
    cards = pytest.importorskip("huggingface_hub")
    text = as_model_index(leaderboard(grid(), SDR))
    card = cards.ModelCard(text + "# a card\n")
    found = {(r.metric_name, r.metric_value) for r in card.data.eval_results}
    assert ("new mIoU (%)", 89.0) in found
    assert card.data.eval_results[0].dataset_name == "toy/2-1/overlapped"
    index = yaml.safe_load(text.strip().strip("-"))["model-index"]
    assert [m["name"] for m in index] == ["FT", "MiB", "MiB+SDR", "Joint"]
