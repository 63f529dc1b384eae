"""The table for papers: methods x tasks, what was chosen of it, and that it compiles inside a document."""

import shutil
import subprocess
from pathlib import Path

import pytest

from contseg.benchmark.plan.protocol import PROTOCOLS
from contseg.benchmark.report.paper import Choice, as_paper
from contseg.benchmark.report.reporter import Leaderboard, leaderboard
from contseg.benchmark.score.published import load_published, with_literature
from contseg.datasets.errors import UserError
from contseg.run_benchmark import main
from contseg.tests.records import make_run, write_records
from contseg.tests.unit.test_published import VOC
from contseg.tests.unit.test_reporter import grid

SDR = PROTOCOLS["sdr"]
TABULAR = r"""\begin{tabular}{lrrrr}
\toprule
 & \multicolumn{2}{c}{2-1} & \multicolumn{2}{c}{1-1} \\
\cmidrule(lr){2-3} \cmidrule(lr){4-5}
Method & All & $\Delta$ Joint & All & $\Delta$ Joint \\
\midrule
MiB & 77.7{\scriptsize$\,\pm\,$1.1} & $-15.3$ & 75.6{\scriptsize$\,\pm\,$0.0} & $-17.4$ \\
FT & 30.3{\scriptsize$\,\pm\,$0.3} & $-62.7$ & -- & -- \\
\midrule
Joint & 93.0{\scriptsize$\,\pm\,$0.0} & $+0.0$ & 93.0{\scriptsize$\,\pm\,$0.0} & $+0.0$ \\
\bottomrule
\end{tabular}
"""


@pytest.fixture(scope="module")
def board() -> Leaderboard:
    more = [
        r for s in range(3) for r in make_run("MiB", s, task="1-1", groups=((1,), (2,), (3,)), hit=lambda t, k: 0.8)
    ]
    return leaderboard(grid() + more, SDR)


def test_a_note_of_several_lines_stays_behind_its_percent_sign(tmp_path: Path) -> None:
    """A spreadsheet writes cells with line breaks; in ``paper.tex`` the second line would be typeset."""
    mine = tmp_path / "mine.csv"
    head = "method,dataset,task,setup,old,new,all,includes_background,source,provenance,note"
    mine.write_text(f'{head}\nMiB,voc,15-1,overlapped,35,13,29,yes,ours,rerun,"two\nlines"\n')
    board = with_literature(leaderboard(make_run("MiB", **VOC), SDR), load_published([mine]), source="ours")
    assert [note.rpartition("; ")[2] for note in board.notes if note.startswith("[")] == ["two lines"]
    below = as_paper(board).partition(r"\end{table")[2].splitlines()[1:]
    assert [line for line in below if not line.startswith("%")] == []


def test_chosen_rows_columns_and_tasks_as_a_literal_table(board: Leaderboard) -> None:
    choice = Choice(("all", "to_joint"), ("MiB", "FT", "Joint"), ("2-1", "toy/1-1/overlapped"), "tab:mine")
    text = as_paper(board, choice)
    assert TABULAR in text
    assert "\\label{tab:mine}\n\\begin{tabular}" in text
    assert "\\documentclass" not in text


def test_the_caption_says_what_the_numbers_were_made_with(board: Leaderboard) -> None:
    (line,) = (line for line in as_paper(board).splitlines() if line.startswith(r"\caption"))
    assert line.startswith(r"\caption{toy $\cdot$ overlapped. tiny from scratch; ")
    for fact in ("protocol sdr", "n = 3", "no search", "external data: none", "Bold: better than every other row"):
        assert line.count(fact) == 1, fact
    assert "auto" not in line


def test_bold_is_that_of_the_whole_table(board: Leaderboard) -> None:
    text = as_paper(board, Choice(("new",), ("FT", "MiB")))
    assert r"\textbf{89.0}{\scriptsize$\,\pm\,$1.0}" in text
    assert text.count(r"\textbf") == 1


def test_published_numbers_stand_below_the_method_with_their_source() -> None:
    published = with_literature(leaderboard(make_run("MiB", **VOC), SDR), load_published())
    lines = as_paper(published).splitlines()
    (at,) = (i for i, line in enumerate(lines) if line.startswith("MiB & "))
    row = published.literature.iloc[0]
    numbers = " & ".join(rf"\textit{{{row[f'published_{c}']:.1f}}}" for c in ("old", "new", "all"))
    assert lines[at + 1] == rf"\quad\textit{{{row['source']} [1]}} & {numbers} \\"
    assert any("In italics: published numbers." in line for line in lines if line.startswith(r"\caption"))
    below = lines[lines.index(r"\end{tabular}") :]
    assert below[1] == r"\par\smallskip{\raggedright\scriptsize" and below[2].startswith("[1] ")


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"rows": ("Mib",)}, "unknown method 'Mib': did you mean 'MiB'"),
        ({"tasks": ("2-2",)}, "unknown task '2-2': did you mean '2-1'"),
        ({"columns": ("olt",)}, "unknown column 'olt': did you mean 'old'"),
        ({"label": "tab:50%"}, "--label 'tab:50%': a label of LaTeX has no space"),
    ],
)
def test_a_wrong_choice_is_a_line(board: Leaderboard, choice: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        as_paper(board, Choice(**choice))


def test_the_command_writes_it_whole_or_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = write_records(tmp_path / "a", make_run("FT"))
    other = write_records(tmp_path / "b", make_run("MiB", task="1-1", groups=((1,), (2,), (3,))))
    words = ["report", "--out", str(tmp_path / "new"), "--records", str(out), str(other), "--format"]
    assert main([*words, "csv", "paper", "--rows", "MiBB"]) == 2
    assert main([*words, "csv", "--rows", "MiB"]) == 2
    assert not (tmp_path / "new").exists()
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].startswith("error: unknown method 'MiBB': did you mean 'MiB'")
    assert errors[1] == "error: --rows is of the table for papers: add --format paper"
    assert main([*words, "paper", "--rows", "MiB", "FT"]) == 0
    text = (tmp_path / "new" / "paper.tex").read_text()
    assert r"\multicolumn{3}{c}{2-1}" in text and r"\multicolumn{3}{c}{1-1}" in text
    assert as_paper(leaderboard([], SDR)) == "% no complete run yet\n"


def test_it_compiles_inside_a_document(board: Leaderboard, tmp_path: Path) -> None:
    if not shutil.which("pdflatex"):
        pytest.skip("no pdflatex: apt-get install texlive-latex-recommended")
    (tmp_path / "paper.tex").write_text(as_paper(board), encoding="utf-8")
    odd = leaderboard(make_run("MiB", **VOC) + make_run("Odd_name[a=1]<~^#&%$|", **VOC), SDR)
    odd = with_literature(odd, load_published())
    (tmp_path / "odd.tex").write_text(as_paper(odd, Choice(label="tab:odd")), encoding="utf-8")
    (tmp_path / "main.tex").write_text(
        "\\documentclass[twocolumn]{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
        "\\input{paper.tex}\\input{odd.tex}Tables~\\ref{tab:contseg} and~\\ref{tab:odd}.\n\\end{document}\n"
    )
    call = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    for _ in range(2):
        done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-2000:]
    assert "undefined" not in done.stdout
