"""The leaderboard's pages in a real browser: no complaint, no barrier, and every control does what it says."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from contseg.benchmark.plan.protocol import PROTOCOLS
from contseg.benchmark.score.published import load_published
from contseg.benchmark.score.records import gather_runs, read_records
from contseg.benchmark.score.submissions import CONSISTENT
from contseg.benchmark.site.build import boards_of, write_site
from contseg.benchmark.site.catalogue import run_id, run_page
from contseg.tests.browser import Browser, chromium, need_chromium
from contseg.tests.material import ROOT
from contseg.tests.unit.test_published import measured

DEMO = "scenario/shapes-3-1-overlapped.html"
VOC = "scenario/voc-15-1-overlapped.html"
COMPARE = "compare/shapes-3-1-overlapped.html"
KINDS = (
    "index.html",
    "tasks.html",
    "methods.html",
    DEMO,
    VOC,
    COMPARE,
    "method/MiB+SDR.html",
    "code/methods.mib.py.html",
)
SHOWN = (
    "return [...document.querySelector('table.board').tBodies[0].rows]"
    ".filter(r => !r.hidden).map(r => r.cells[0].textContent)"
)


class Site:
    """The pages of `results/demo` and of a few runs beside published numbers, in one browser."""

    def __init__(self, browser: Browser, folder: Path) -> None:
        self.browser, self.folder = browser, folder
        pages = sorted((folder / "run").iterdir())
        self.run_pages = [  # one that was scored again, and one that was not
            next(f"run/{p.name}" for p in pages if (CONSISTENT in p.read_text(encoding="utf-8").lower()) is marked)
            for marked in (False, True)
        ]

    def open(self, page: str) -> None:
        path, _, query = page.partition("?")
        url = (self.folder / path).resolve().as_uri() + (f"?{query}" if query else "")
        self.browser._call("POST", "/url", {"url": url})

    def run(self, script: str) -> Any:
        return self.browser.run(script)

    def choose(self, name: str, value: str) -> None:
        self.run(
            f"const f = document.querySelector('[name={name}]'); if (f.type === 'checkbox') f.checked = !f.checked;"
            f"else f.value = {value!r}; f.dispatchEvent(new Event('input', {{bubbles: true}}))"
        )

    def press(self, key: str) -> None:
        """A key as a keyboard sends it, to whatever has the focus."""
        actions = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        self.browser._call("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    need_chromium()
    folder = tmp_path_factory.mktemp("leaderboard")
    records, problems = read_records(ROOT / "results" / "demo")
    assert problems == []
    boards = boards_of([*records, *measured()], [PROTOCOLS["sdr"], PROTOCOLS["mib"]], load_published())
    unscored = [run_id(run) for run in gather_runs(records) if run.method == "MiB"]
    write_site(boards, folder, unscored=unscored)
    with chromium() as browser:
        yield Site(browser, folder)


@pytest.fixture
def site(opened: Site) -> Site:
    opened.browser.size(1400, 900)
    opened.browser.dark(False)
    opened.open("index.html")
    opened.run("localStorage.clear()")
    return opened


@pytest.mark.parametrize(("width", "dark"), [(1400, False), (390, True)], ids=["screen", "phone"])
def test_pages_open_without_complaint_and_without_a_barrier(site: Site, width: int, dark: bool) -> None:
    axe = pytest.importorskip("axe_core_python", reason="no axe-core: pip install axe-core-python")
    source = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    site.browser.size(width, 900)
    site.browser.dark(dark)
    for page in (*KINDS, *site.run_pages):
        site.open(page)
        assert site.run("return document.documentElement.scrollWidth") <= width, page
        assert site.run("return getComputedStyle(document.body).backgroundColor") == (
            "rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)"
        )
        site.run(source)
        passed, found = site.run(
            "return axe.run().then(r => [r.passes.length, r.violations.map(v => [v.id, v.impact, v.nodes[0].html])])"
        )
        assert found == [] and passed > 15, page
        assert site.browser.log() == [], page


def test_axe_finds_a_barrier(site: Site) -> None:
    axe = pytest.importorskip("axe_core_python", reason="no axe-core: pip install axe-core-python")
    site.run("document.querySelector('.lead').style.color = '#ddd'; document.querySelector('label').remove()")
    site.run((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    assert "color-contrast" in site.run("return axe.run().then(r => r.violations.map(v => v.id))")


def test_filters_stand_in_the_address(site: Site) -> None:
    site.open(VOC)
    site.choose("method", "sdr")
    site.choose("protocol", "sdr")
    assert site.run(SHOWN) == ["MiB+SDR"]
    assert site.run("return location.search") == "?method=sdr&protocol=sdr"
    sections = "return [...document.querySelectorAll('section')].filter(s => !s.hidden).map(s => s.dataset.protocol)"
    assert site.run(sections) == ["sdr"]
    site.open(f"{VOC}?method=mine&published=no")
    assert site.run(SHOWN) == ["Mine"]
    assert site.run("return document.querySelector('[data-published]').hidden")
    assert site.run(sections) == ["sdr", "mib"]
    site.open(f"{VOC}?method=none&protocol=unknown")
    assert site.run(SHOWN) == [] and not site.run("return document.querySelector('.none').hidden")
    site.run("document.querySelector('section [data-clear]').click()")
    assert len(site.run(SHOWN)) == 3 and site.run("return location.search") == ""


def test_the_overview_filters_questions_and_matrix(site: Site) -> None:
    site.open("index.html?dataset=voc")
    shown = "return [...document.querySelectorAll('[data-item]')].filter(e => !e.hidden).map(e => e.dataset.dataset)"
    assert site.run(shown) == ["voc", "voc"]
    site.choose("task", "3-1")
    assert site.run(shown) == [] and not site.run("return document.querySelector('.none').hidden")


def test_tables_sort_by_number_and_the_address_says_so(site: Site) -> None:
    site.open(DEMO)
    click = "[...document.querySelectorAll('th button')].find(b => b.textContent === {!r}).click()"
    site.run(click.format("all"))
    assert site.run(SHOWN) == ["Joint", "SDR", "MiB+SDR", "MiB †", "LwF", "ILT", "FT"]
    assert site.run("return location.search") == "?sort=all-down"
    site.run(click.format("forgetting"))  # Joint has none: last in both directions
    assert [site.run(SHOWN)[i] for i in (0, -1)] == ["FT", "Joint"]
    site.run(click.format("forgetting"))
    assert [site.run(SHOWN)[i] for i in (0, -1)] == ["SDR", "Joint"]
    assert site.run("return document.querySelector('[aria-sort]').ariaSort") == "ascending"
    site.open(f"{DEMO}?sort=method-down")
    assert site.run(SHOWN)[0] == "SDR"


def test_two_methods_are_compared_class_by_class(site: Site) -> None:
    site.open(f"{COMPARE}?a=FT&b=Joint")
    rows = (
        "return [...document.querySelectorAll('#compared tbody tr')]"
        ".map(r => [...r.cells].slice(0, 6).map(c => c.textContent))"
    )
    background, disk, *_, star = site.run(rows)
    assert disk[:3] == ["disk", "0", "0.0"] and star[1] == "3" and len(site.run(rows)) == 7
    assert float(background[4]) == pytest.approx(float(background[3]) - float(background[2]), abs=0.11)
    low, high = background[5].split(" to ")
    assert float(low) <= float(background[4]) <= float(high)
    assert "Joint minus FT: higher in 7 classes, lower in 0" in site.run(
        "return document.querySelector('#compared p').textContent"
    )
    site.choose("by", "difference")
    differences = [float(r[4]) for r in site.run(rows)]
    assert differences == sorted(differences, reverse=True)
    site.choose("b", "FT")
    assert {r[4] for r in site.run(rows)} == {"0.0"}
    assert site.run("return location.search") == "?a=FT&b=FT&protocol=sdr&by=difference"


def test_the_search_is_used_by_keyboard_alone(site: Site) -> None:
    site.press("/")
    assert site.run("return document.activeElement.id") == "find"
    for letter in "mib+sdr":
        site.press(letter)
    assert site.run("return document.querySelector('#found li').textContent") == "MiB+SDRmethod"
    site.press("\ue015")  # arrow down
    assert site.run("return document.getElementById('find').getAttribute('aria-activedescendant')") == "hit0"
    site.press("\ue007")  # enter
    assert site.run("return decodeURIComponent(location.pathname)").endswith("/method/MiB+SDR.html")
    site.press("/")
    for letter in "zzz":
        site.press(letter)
    assert site.run("return document.getElementById('found').textContent") == "Nothing found"
    site.press("\ue00c")  # escape
    assert site.run("return document.getElementById('found').hidden")


def test_the_keyboard_reaches_content_and_table(site: Site) -> None:
    site.open(DEMO)
    site.press("\ue004")  # tab
    assert site.run("return document.activeElement.textContent") == "Skip to the content"
    site.press("\ue007")
    assert site.run("return document.activeElement.id") == "main"
    reached = []
    for _ in range(12):
        site.press("\ue004")
        reached.append(site.run("return document.activeElement.tagName + ' ' + document.activeElement.className"))
    assert {"INPUT ", "DIV scroll", "BUTTON sort"} <= set(reached)


def test_the_chosen_colours_stay(site: Site) -> None:
    ground = "return getComputedStyle(document.body).backgroundColor"
    for name, colour in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 24, 29)")):
        site.run("document.getElementById('scheme').click()")
        assert site.run("return document.getElementById('scheme').textContent") == name
        site.open(DEMO)
        assert site.run(ground) == colour
    site.run("document.getElementById('scheme').click()")
    assert site.run(ground) == "rgb(255, 255, 255)"  # the system's


def test_a_phone_has_a_menu_and_shows_the_main_columns(site: Site) -> None:
    site.browser.size(390, 800)
    site.open(DEMO)
    hidden = "return document.getElementById('nav').offsetParent === null"
    assert site.run(hidden)
    site.run("document.getElementById('menu').click()")
    assert not site.run(hidden) and site.run("return document.getElementById('menu').ariaExpanded") == "true"
    columns = (
        "return [...document.querySelector('table.board').tHead.rows[0].cells]"
        ".filter(h => h.offsetParent).map(h => h.textContent)"
    )
    assert site.run(columns) == ["method", "old", "new", "all"]
    fits = "const s = document.querySelector('.scroll'); return s.scrollWidth <= s.clientWidth"
    assert site.run(fits)
    site.choose("columns", "all")
    assert len(site.run(columns)) == 16 and site.run("return location.search") == "?columns=all"
    assert site.run("return document.documentElement.scrollWidth") <= 390


def test_on_paper_only_the_content_is_left(site: Site) -> None:
    site.browser._devtools("Emulation.setEmulatedMedia", {"media": "print"})
    site.open(DEMO)
    parts = ["header", "nav", ".filters", "main", "table.board"]
    shown = f"return {parts}.filter(s => document.querySelector(s).offsetParent)"
    assert site.run(shown) == ["main", "table.board"]
    site.browser._devtools("Emulation.setEmulatedMedia", {"media": ""})


def test_pages_are_whole_without_scripts(site: Site) -> None:
    site.browser._devtools("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        site.open(COMPARE)
        shown = site.browser._call("POST", "/elements", {"using": "css selector", "value": "table.classes td"})
        links = site.browser._call("POST", "/elements", {"using": "css selector", "value": "nav a"})
    finally:
        site.browser._devtools("Emulation.setScriptExecutionDisabled", {"value": False})
    assert len(shown) >= 7 * 8 and len(links) >= 5


def test_an_address_names_the_same_run_in_every_build(site: Site) -> None:
    """Links in papers: a change of this address breaks them."""
    from contseg.benchmark.score.records import gather_runs

    records, _ = read_records(ROOT / "results" / "demo")
    run = next(r for r in gather_runs(records) if (r.method, r.task, r.seed) == ("MiB", "3-1", 0))
    assert run_page(run) == "run/320e1ac57f32.html"
    assert (site.folder / run_page(run)).is_file()
