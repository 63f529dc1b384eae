"""The charts of the leaderboard's pages, and colours that can be read."""

import re

import numpy as np
import pytest

from contseg.benchmark.site.charts import Point, confusion, loss_chart, norm_chart, pareto, scatter
from contseg.tests.material import ROOT


def test_the_pareto_line_joins_what_nothing_beats() -> None:
    points = [
        Point("a", 10, 90),
        Point("beaten in both", 5, 50),
        Point("beaten in one", 10, 80),
        Point("b", 60, 60),
        Point("equal", 60, 60),
        Point("c", 90, 5),
        Point("bound", 99, 99, bound=True),
        Point("unknown", float("nan"), 99),
    ]
    assert [p.name for p in pareto(points)] == ["a", "b", "equal", "c"]
    drawn = scatter(points, "x")
    line = re.search(r'class="pareto" points="([^"]+)"', drawn)
    assert line is not None and len(line[1].split()) == 4
    assert "bound: old 99.0, new 99.0 (not ranked)" in drawn and "unknown: " not in drawn
    assert scatter([Point("x", float("nan"), 1)], "none") == ""


def test_more_is_further_right_and_higher() -> None:
    drawn = scatter([Point("low", 10, 20), Point("high", 40, 80)], "x")
    (x1, y1), (x2, y2) = (
        (float(x), float(y))
        for x, y in re.findall(
            r'<path transform="translate\(([\d.]+) ([\d.]+)\)" fill="[^"]+" d="[^"]+"><title>', drawn
        )
    )
    assert x1 < x2 and y1 > y2


def test_a_confusion_matrix_has_a_square_for_each_share() -> None:
    drawn = confusion([[1.0, 0.0, 0.0], [0.3, 0.695, 0.005], [np.nan] * 3], ["a", "b", "c"])
    squares = {float(o): d.count("M") for o, d in re.findall(r'opacity="([\d.]+)" d="([^"]+)"', drawn)}
    assert squares == {1.0: 1, 0.375: 1, 0.75: 1}  # eighths, rounded up; below 1 % nothing


def test_losses_stand_side_by_side_and_a_gap_stays_a_gap() -> None:
    drawn = loss_chart("ce", [[4.0, 2.0], [], [1.0, float("nan"), 3.0]])
    lines = [p.split() for p in re.findall(r'points="([^"]*)"', drawn)]
    assert [len(p) for p in lines] == [2, 0, 2]
    assert float(lines[0][1].split(",")[0]) < float(lines[2][0].split(",")[0])
    assert loss_chart("none", [[float("nan")]]) == ""


@pytest.mark.parametrize(
    ("values", "ticks", "title"),
    [
        ([0.4, 0.1], ["0", "0.1", "0.2", "0.3", "0.4"], "mean over some updates"),
        ([0.0004, 0.0001], ["0", "1", "2", "3", "4"], "mean over some updates (10⁻⁴)"),
        ([40_000.0], ["0", "1", "2", "3", "4"], "mean over some updates (10⁴)"),
        ([0.0, 0.0], ["0"], "mean over some updates"),
    ],
)
def test_small_and_large_losses_are_in_units_of_a_power_of_ten(
    values: list[float], ticks: list[str], title: str
) -> None:
    drawn = loss_chart("ce", [values])
    assert re.findall(r'text-anchor="end">([^<]+)<', drawn) == ticks
    assert f">{title}</text>" in drawn


def test_a_tenth_of_a_norm_is_a_decade_lower_and_zero_is_not_drawn() -> None:
    drawn = norm_chart(["ce", "10 kd"], [{"ce": [1.0, 0.1, 0.01]}, {"ce": [1.0, 1.0], "10 kd": [0.0, 0.001]}, {}])
    lines = [
        [tuple(map(float, p.split(","))) for p in found.split()] for found in re.findall(r'points="([^"]*)"', drawn)
    ]
    assert [len(line) for line in lines] == [3, 2, 1]
    (_, a), (_, b), (_, c) = lines[0]
    assert b - a == pytest.approx(c - b, abs=0.2) and b > a
    assert re.findall(r'text-anchor="end">([^<]+)<', drawn) == ["10⁻³", "10⁻²", "10⁻¹", "10⁰"]
    assert lines[2][0][1] == pytest.approx(280) and lines[1][0][1] == pytest.approx(12)  # the ends of the axis
    assert lines[0][-1][0] < lines[1][0][0]
    assert drawn.count("<title>ce</title>") == 2 and drawn.endswith("10 kd</li></ul>")
    assert norm_chart(["ce"], [{"ce": [0.0]}]) == norm_chart([], [{}]) == ""


def test_wide_spans_of_norms_have_few_ticks() -> None:
    drawn = norm_chart(["a"], [{"a": [1e-12, 3e4]}])
    assert re.findall(r'text-anchor="end">([^<]+)<', drawn) == ["10⁻¹²", "10⁻⁹", "10⁻⁶", "10⁻³", "10⁰", "10³", "10⁶"]


# --- colours --------------------------------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def mixed(a: str, b: str, share: float) -> str:
    """``color-mix(in srgb, a share, b)``."""
    parts = [round(share * int(a[i : i + 2], 16) + (1 - share) * int(b[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{p:02x}" for p in parts)


def palette(scheme: int) -> dict[str, str]:
    text = (ROOT / "benchmark/report/templates/palette.css").read_text()
    return {m[1]: m[2 + scheme] for m in re.finditer(r"--(\w+): light-dark\((#\w{6}), (#\w{6})\)", text)}


def test_the_contrast_formula() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # the example of WCAG's technique G18


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_and_lines_can_be_read(scheme: int) -> None:
    c = palette(scheme)
    assert len(c) == 14
    for ground in ("bg", "head", "hit"):
        assert {t: r for t in ("fg", "dim", "link") if (r := contrast(c[t], c[ground])) < 4.5} == {}, ground
    assert {k: r for k in c if re.fullmatch(r"c\d", k) and (r := contrast(c[k], c["bg"])) < 3} == {}
    style = (ROOT / "benchmark/site/templates/site.css").read_text()
    most = re.search(r"\.heat \{[^}]*var\(--share\) \* (\d+)%", style)
    assert most is not None and contrast(c["fg"], mixed(c["c0"], c["bg"], int(most[1]) / 100)) >= 4.5
    bar, on_bar = (re.search(rf"--{name}: (#\w{{6}})", style)[1] for name in ("bar", "on-bar"))  # type: ignore[index]
    assert contrast(bar, on_bar) >= 4.5
