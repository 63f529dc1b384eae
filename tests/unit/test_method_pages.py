"""What the page of a method says: paper, formula, parameters and code of every method, from its docstrings and docs."""

import re

import pytest

from contseg.benchmark.site import methods
from contseg.methods.registry import addons
from contseg.methods.registry import methods as registered
from contseg.tests.material import ROOT


@pytest.mark.parametrize("name", [*registered(), *(f"FT+{name}" for name in addons())])
def test_every_method_has_paper_formula_parameters_and_code(name: str) -> None:
    (*_, part) = methods.about(name, [])
    assert part["summary"] and part["paper"] and part["formula"], part
    assert part["formulas"] or not re.search(r"F-[A-Z]", part["formula"])
    named = set(re.findall(r"F-[A-Z-]+[A-Z]", part["formula"]))
    assert {f[0].removesuffix("±") for f in part["formulas"]} == named
    assert (ROOT / part["file"]).is_file() and part["code"].startswith("code/")
    assert all(p["default"] and p["source"] for p in part["parameters"])


def test_a_formula_is_drawn() -> None:
    pytest.importorskip("latex2mathml", reason="no latex2mathml: pip install 'contseg[docs]'")
    formula, over, remarks = methods.formulas()["F-UNCE"]
    assert formula.count("<math") == formula.count("</math>") == 4 and "$" not in formula + remarks
    assert over == "valid pixels"
    assert methods.formulas()["F-INIT"][1:] == ("", "keeps the old probabilities exactly")
    assert methods.drawn("a `b` <c> [d](e.md)") == "a <code>b</code> &lt;c&gt; d"
