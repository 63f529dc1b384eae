"""Under ``@random`` every seed has an order of its own: no page or figure shows that of one seed for all."""

import re
from pathlib import Path

import numpy as np
import pytest

from contseg.benchmark.plan.protocol import PROTOCOLS
from contseg.benchmark.report.figures import classes, contest_rows
from contseg.benchmark.report.html import as_html
from contseg.benchmark.report.reporter import leaderboard
from contseg.benchmark.score.published import load_published
from contseg.benchmark.site.build import boards_of, write_site
from contseg.tests.records import Record, make_run

ORDERS = {0: ((1, 2), (3,)), 1: ((3, 2), (1,))}
FOUND = {0: (1.0, 0.2, 0.4, 0.6), 1: (1.0, 0.4, 0.4, 0.8)}


def drawn(orders: dict[int, tuple[tuple[int, ...], ...]]) -> list[Record]:
    return [
        r
        for seed, groups in orders.items()
        for r in make_run(seed=seed, groups=groups, order="random", hit=lambda t, k, s=seed: FOUND[s][k])
    ]


def test_the_heat_map_is_of_one_order_and_says_so() -> None:
    board = leaderboard(drawn(ORDERS), PROTOCOLS["sdr"])
    ((key, rows),) = contest_rows(board)
    figure = classes(board, key, rows)
    assert figure is not None and figure.get_suptitle().endswith(", seed 0: each seed has an order of its own")
    image = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    assert image[1:, 1] == pytest.approx([20, 40, 60]) and np.isnan(image[3, 0])
    alone = leaderboard(drawn({1: ORDERS[1]}), PROTOCOLS["sdr"])
    ((key, rows),) = contest_rows(alone)
    assert "order of its own" not in classes(alone, key, rows).get_suptitle()


def test_bars_stand_by_label_and_name_no_step() -> None:
    page = as_html(leaderboard(drawn(ORDERS), PROTOCOLS["sdr"]))
    assert "each seed has an order of its own" in page and "learned at step" not in page
    assert re.findall(r"<title>class (\d): ([\d.]+)</title>", page) == [("1", "30.0"), ("2", "40.0"), ("3", "70.0")]
    alone = as_html(leaderboard(drawn({1: ORDERS[1]}), PROTOCOLS["sdr"]))
    assert "blue: learned at step 0" in alone and "<title>class 1, learned at step 1: 40.0</title>" in alone


def test_pages_say_whose_order_they_show(tmp_path: Path) -> None:
    write_site(boards_of(drawn(ORDERS), (), load_published()), tmp_path)
    scenario = (tmp_path / "scenario/toy-2-1@random-overlapped.html").read_text()
    assert "Each seed has an order of its own; this is that of seed 0." in scenario
    compared = (tmp_path / "compare/toy-2-1@random-overlapped.html").read_text()
    lines = re.findall(r'<th scope="row">([^<]*)</th><td>([^<]*)</td>', compared)
    assert lines == [("background", "-"), ("class 1", "-"), ("class 2", "-"), ("class 3", "-")]
    steps = {}
    for path in (tmp_path / "run").iterdir():
        page = path.read_text()
        steps[re.search(r"FT, seed (\d)", page)[1]] = re.findall(r'<th scope="row">class (\d)</th><td>(\d)</td>', page)
    assert steps == {"0": [("1", "0"), ("2", "0"), ("3", "1")], "1": [("3", "0"), ("2", "0"), ("1", "1")]}
