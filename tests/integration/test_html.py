"""The HTML leaderboard in a real browser: it loads from disk without a complaint, sorts, filters, opens a row."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from contseg.benchmark.plan.protocol import PROTOCOLS
from contseg.benchmark.report.html import as_html, config_text
from contseg.benchmark.report.reporter import leaderboard
from contseg.benchmark.score.published import load_published, with_literature
from contseg.benchmark.score.records import gather_runs
from contseg.tests.browser import Browser, chromium, need_chromium
from contseg.tests.records import make_run
from contseg.tests.unit.test_published import measured
from contseg.tests.unit.test_reporter import grid

ROWS = "[...document.querySelectorAll('section')].filter(s => !s.hidden).map(s => [...s.querySelectorAll('tr.row')]"
SHOWN = f"return {ROWS}.filter(r => !r.hidden).map(r => r.dataset.method))"


def page_text() -> str:
    records = grid() + measured()
    boards = (leaderboard(records, PROTOCOLS[p]) for p in ("sdr", "plop"))
    return as_html(*(with_literature(board, load_published()) for board in boards))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    need_chromium()
    path = tmp_path_factory.mktemp("page") / "leaderboard.html"
    path.write_text(page_text(), encoding="utf-8")
    with chromium() as opened:
        opened.path = path
        yield opened


@pytest.fixture
def page(browser: Browser) -> Browser:
    browser.size(1400, 900)
    browser.open(browser.path)
    return browser


def test_it_asks_nothing_of_a_network() -> None:
    text = page_text()
    assert not any(word in text for word in ("http:", "https:", "@import", "<link", "src="))


def test_what_users_wrote_is_text_not_markup() -> None:
    html = as_html(leaderboard(make_run("<script>alert(1)</script>"), PROTOCOLS["sdr"]))
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)" in html


def test_a_configuration_is_given_once_and_then_by_its_changes() -> None:
    first, second = make_run()
    second["config"] = {**first["config"], "train": {"epochs": [0.5]}}
    (run,) = gather_runs([first, second])
    assert config_text(run) == (
        '# step 0\nmodel.backbone = "tiny"\ntrain.epochs = [1.0]\ntrain.batch = [8]\neval.split = "val"\n'
        "# from step 1 on\ntrain.epochs = [0.5]"
    )


def test_it_loads_without_a_complaint(page: Browser) -> None:
    assert page.log() == []
    toy, voc, *_ = page.run(SHOWN)
    assert toy == ["FT", "MiB", "MiB+SDR", "Joint"]
    assert voc == ["MiB[kd=10]+SDR", "Mine", "Joint", "MiB+SDR", "Joint"]  # the last two are published


def click(page: Browser, column: str) -> None:
    page.run(f"[...document.querySelectorAll('thead button')].find(b => b.textContent === {column!r}).click()")


def test_it_sorts_a_table_by_its_numbers(page: Browser) -> None:
    click(page, "old")
    assert page.run(SHOWN)[0] == ["Joint", "MiB", "MiB+SDR", "FT"]
    click(page, "old")
    assert page.run(SHOWN)[0] == ["FT", "MiB+SDR", "MiB", "Joint"]
    assert page.run("return document.querySelector('th[aria-sort]').getAttribute('aria-sort')") == "ascending"
    click(page, "forgetting")  # Joint has none: last in both directions
    assert page.run(SHOWN)[0] == ["FT", "MiB+SDR", "MiB", "Joint"]
    click(page, "forgetting")
    assert page.run(SHOWN)[0] == ["MiB", "MiB+SDR", "FT", "Joint"]


def choose(page: Browser, name: str, value: str) -> None:
    page.run(
        f"const f = document.getElementById('filters').elements[{name!r}]; f.value = {value!r};"
        "f.dispatchEvent(new Event('input', {bubbles: true}))"
    )


def test_it_filters_by_scenario_protocol_and_method(page: Browser) -> None:
    choose(page, "dataset", "voc")
    assert len(page.run(SHOWN)) == 2  # sdr, and plop scoring
    choose(page, "protocol", "sdr")
    assert len(page.run(SHOWN)) == 1
    choose(page, "method", "sdr")
    assert page.run(SHOWN) == [["MiB[kd=10]+SDR", "MiB+SDR"]]
    page.run("document.querySelector('[name=published]').click()")
    assert page.run(SHOWN) == [["MiB[kd=10]+SDR"]]
    choose(page, "task", "2-1")
    assert page.run(SHOWN) == []


def test_published_rows_are_marked(page: Browser) -> None:
    texts = page.run("return [...document.querySelectorAll('tr.published')].map(r => r.innerText)")
    assert len(texts) == 2
    assert all("published" in text for text in texts)


def test_a_row_opens_to_classes_curves_cost_command_and_configuration(page: Browser) -> None:
    page.run("document.querySelectorAll('tbody button')[0].click()")
    hidden = page.run("return [...document.querySelectorAll('tr.detail')].map(d => d.hidden)")
    assert hidden == [False] + [True] * (len(hidden) - 1)
    text = page.run("return document.querySelector('tr.detail').innerText")
    assert "training images seen" in text
    assert "run_benchmark.py run --seeds 0" in text
    assert 'model.backbone = "tiny"' in text
    curves, classes = page.run("return [...document.querySelectorAll('tr.detail svg.chart')].map(c => c.innerHTML)")[:2]
    assert curves.count("<polyline") == 3
    assert classes.count("<title>") == 4
    page.run("document.querySelectorAll('tbody button')[0].click()")
    assert page.run("return document.querySelector('tr.detail').hidden")


def test_a_phone_needs_no_sideways_scrolling_and_dark_is_dark(page: Browser, tmp_path: Path) -> None:
    page.size(390, 800)
    page.run("document.querySelectorAll('tbody button')[0].click()")
    assert page.run("return document.documentElement.scrollWidth") <= 390
    assert page.run("return document.querySelector('.open').getBoundingClientRect().right") <= 390
    page.dark(True)
    assert page.run("return getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"
    page.screenshot(tmp_path / "phone.png")
    assert (tmp_path / "phone.png").read_bytes()[:4] == b"\x89PNG"
    page.dark(False)
    assert page.log() == []
