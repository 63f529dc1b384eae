"""The leaderboard's pages: addresses, what a page says, what a build leaves behind."""

import json
import re
from collections.abc import Callable, Collection
from html.parser import HTMLParser
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from markupsafe import escape

from contseg import run_benchmark
from contseg.benchmark.plan.protocol import PROTOCOLS, Protocol
from contseg.benchmark.score.leaderboard import leaderboard
from contseg.benchmark.score.published import load_published, with_literature
from contseg.benchmark.score.records import gather_runs, read_records
from contseg.benchmark.score.submissions import CONSISTENT
from contseg.benchmark.site import catalogue
from contseg.benchmark.site.build import MANIFEST, boards_of, write_site
from contseg.datasets.errors import UserError
from contseg.tests.records import Record, joint_run, make_run, write_records
from contseg.tests.unit.test_over_tasks import tasks
from contseg.tests.unit.test_published import measured
from contseg.tests.unit.test_reporter import grid


class Html(HTMLParser):
    """What a page names, what it links to, and what it loads."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.text = page.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {name: value or "" for name, value in attrs}
        self.ids += [names["id"]] if "id" in names else []
        self.links += [names["href"]] if tag == "a" else []
        self.loads += [names[name] for name in ("src", "srcset", "data") if name in names]
        self.loads += [names["href"]] if tag == "link" else []


def build(
    out: Path, records: list[Record], unscored: Collection[str] = (), protocols: tuple[Protocol, ...] = ()
) -> dict[str, Html]:
    write_site(boards_of(records, protocols, load_published()), out, unscored=unscored)
    return {p.relative_to(out).as_posix(): Html(p) for p in sorted(out.rglob("*.html"))}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("site")


@pytest.fixture(scope="module")
def site(out: Path) -> dict[str, Html]:
    return build(out, [*grid(), *measured(), *make_run("Mine[x=1]", task="3-1", protocol=PROTOCOLS["plop"])])


# --- addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [("MiB+SDR", "MiB+SDR"), ("voc-15-1@b-overlapped", "voc-15-1@b-overlapped"), ("a_b", "a_b"), ("LwF-MC", "LwF-MC")],
)
def test_a_name_that_is_a_file_name_is_the_address(text: str, name: str) -> None:
    assert catalogue.slug(text) == name


@pytest.mark.parametrize("text", ["../../etc", "a/b", "..", "", "x" * 300, "ä", "<script>", "a b"])
def test_any_other_name_gives_a_file_of_the_folder_and_one_of_its_own(text: str) -> None:
    name = catalogue.slug(text)
    assert re.fullmatch(r"[\w+@=.-]{9,90}", name) and not name.startswith(".") and name.isascii()
    assert name != catalogue.slug(text + "!")


def test_an_address_does_not_depend_on_what_else_there_is(tmp_path: Path) -> None:
    few = build(tmp_path / "few", make_run("FT"))
    more = build(tmp_path / "more", [*make_run("EWC"), *make_run("FT", 1), *make_run("FT")])
    assert set(few) < set(more)


def test_two_runs_with_the_same_steps_have_two_pages() -> None:
    one, two = make_run("FT"), make_run("FT", task="1-1")
    for r in (*one, *two):
        r["run"] = "0" * 64
    assert len({catalogue.run_id(run) for run in gather_runs([*one, *two])}) == 2


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (
            (15, 1, 1),
            "voc: after 15 classes, then 1 at a time in 2 more steps, which method knows all 17 classes best?",
        ),
        ((15, 5), "voc: after 15 classes, then 5 more in one more step, which method knows all 20 classes best?"),
        (
            (5, 6, 8),
            "voc: after 5 classes, then 6, 8 at a time in 2 more steps, which method knows all 19 classes best?",
        ),
        ((20,), "voc: which mIoU does one training on all 20 classes reach?"),
    ],
)
def test_a_scenario_is_a_question(sizes: tuple[int, ...], said: str) -> None:
    assert catalogue.question(("voc", "x", "overlapped"), [range(n) for n in sizes]) == said


# --- the pages ------------------------------------------------------------------------------------------------------


def test_every_scenario_method_and_run_has_its_page(site: dict[str, Html], out: Path) -> None:
    kinds = [name.partition("/")[0] for name in site]
    boards = boards_of([*grid(), *measured()], (), load_published())
    assert (
        kinds.count("scenario")
        == kinds.count("compare")
        == len({r.place for r in catalogue.Catalogue(tuple(boards)).rows}) + 1
    )
    assert {"method/MiB.html", "method/MiB+SDR.html", "method/Joint.html", "method/Mine.html"} <= set(site)
    assert kinds.count("run") == len(list((out / "records").iterdir())) > 10


def test_every_link_leads_somewhere(site: dict[str, Html], out: Path) -> None:
    lost = []
    for name, html in site.items():
        for link in html.links:
            parts = urlsplit(link)
            if parts.scheme == "https":
                assert parts.netloc == "arxiv.org"
            elif (
                not (parts.path and (out / name).parent.joinpath(unquote(parts.path)).is_file())
                and parts.fragment not in html.ids
            ):
                lost.append(f"{name}: {link}")
    assert lost == []


def test_pages_load_two_files_of_the_site_and_a_style(site: dict[str, Html], out: Path) -> None:
    for name, html in site.items():
        root = "../" * name.count("/")
        assert html.loads == [f"{root}site.css", f"{root}search.js", f"{root}site.js"], name
        assert len(set(html.ids)) == len(html.ids), name
    style, script = ((out / name).read_text(encoding="utf-8") for name in ("site.css", "site.js"))
    assert not any(word in style + script for word in ("http:", "https:", "@import", "url(", "fetch(", "eval("))


def test_what_users_wrote_is_text_not_markup(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>"
    records = make_run(bad, dataset="</script><b>", losses={bad: [1.0]})
    for r in records:
        r["class_names"][1] = bad
        r["provenance"]["command"] = bad
    pages = build(tmp_path, records)
    assert all(
        "<script>alert" not in html.text and "<b>" not in html.text.replace("<b><i>", "") for html in pages.values()
    )
    assert "</script" not in (tmp_path / "search.js").read_text(encoding="utf-8")
    assert any("&lt;script&gt;alert(1)" in html.text for html in pages.values())


def test_a_run_says_what_its_records_say(site: dict[str, Html], out: Path) -> None:
    (run,) = (r for r in gather_runs(grid()) if r.method == "MiB" and r.seed == 0)
    page = site[catalogue.run_page(run)].text
    for text in (
        "run_benchmark.py run --seeds 0",
        "model.backbone = &#34;tiny&#34;",
        run.last["key"][:16],
        "torch 2.15.0",
        "class 3",
    ):
        assert text in page
    assert page.count('class="heat"') == sum(len(r["channels"]) for r in run.records)
    assert 'loss ce over the run"' in page and "confusion matrix of 4 classes" in page


def test_a_run_shows_its_gradient_norms_or_says_that_it_has_none(site: dict[str, Html], tmp_path: Path) -> None:
    watched = {"updates": [0, 9], "weights": {"ce": 1.0, "kd": 10.0}, "norms": {"ce": [1.0, 0.5], "kd": [0.01, 0.1]}}
    records = make_run("MiB", gradient_norms=watched)
    pages = build(tmp_path, records)
    page = pages[catalogue.run_page(gather_runs(records)[0])].text
    assert "gradient norm of every term over the run" in page and "10 kd" in page and "Not recorded" not in page
    (run,) = (r for r in gather_runs(grid()) if r.method == "MiB" and r.seed == 0)
    assert "Not recorded: this run was trained without" in site[catalogue.run_page(run)].text


def test_records_are_copied_with_their_seals(site: dict[str, Html], out: Path) -> None:
    found, problems = read_records(out)
    assert problems == [] and len(found) == len({(r["key"], r["method"], r["task"]) for r in found}) > 20


def test_published_numbers_stand_only_where_there_are_some(site: dict[str, Html]) -> None:
    voc, toy = site["scenario/voc-15-1-overlapped.html"].text, site["scenario/toy-2-1-overlapped.html"].text
    assert "As papers print it" in voc and "hide published" in voc
    assert "As papers print it" not in toy and "hide published" not in toy


def test_a_table_says_what_its_numbers_are_made_with(site: dict[str, Html]) -> None:
    assert "tiny from scratch; " in site["scenario/toy-2-1-overlapped.html"].text
    assert "external data: none" in site["scenario/toy-2-1-overlapped.html"].text


def test_a_scenario_leaves_out_notes_on_others(tmp_path: Path) -> None:
    runs = [
        r for task in ("2-1", "1-2") for seed in (0, 1) for m in ("FT", "MiB") for r in make_run(m, seed, task=task)
    ]
    pages = build(tmp_path, runs)
    notes = {name: re.findall(r"<li>toy/(\S+?)/overlapped:", html.text) for name, html in pages.items()}
    assert set(notes["scenario/toy-2-1-overlapped.html"]) == {"2-1"}
    assert set(notes["scenario/toy-1-2-overlapped.html"]) == {"1-2"}


def test_each_leaderboard_is_there_as_a_file(site: dict[str, Html], out: Path) -> None:
    cells = json.loads((out / "leaderboard-sdr.json").read_text(encoding="utf-8"))["cells"]
    assert (out / "leaderboard-sdr.csv").read_text().count("\n") == len(cells) + 1
    assert 'href="leaderboard-plop.csv"' in site["index.html"].text


def test_large_data_sets_stay_below_a_megabyte(tmp_path: Path) -> None:
    """ADE 100-5: 151 classes, 11 steps, twelve methods."""
    groups = [tuple(range(1, 101)), *(tuple(range(k, k + 5)) for k in range(101, 151, 5))]
    records = []
    for method in ("FT", "LwF", "EWC", "PI", "RW", "ILT", "MiB", "PLOP", "RCIL", "SSUL", "DKD", "STAR"):
        records += make_run(method, dataset="ade", task="100-5", groups=groups, hit=lambda t, k: (k * 7 % 89) / 100)
    dense = np.random.default_rng(0).integers(0, 99, (152, 151)).tolist()
    records[10]["matrix"]["seen"] = dense
    board = leaderboard(records, PROTOCOLS["sdr"])
    write_site([board], tmp_path)
    sizes = {p.name: p.stat().st_size for p in tmp_path.rglob("*") if p.suffix in (".html", ".js", ".css")}
    assert len(sizes) > 25 and {n: s for n, s in sizes.items() if s > 1_000_000} == {}


def test_methods_are_compared_over_tasks_or_it_is_said_why_not(tmp_path: Path) -> None:
    """0.4 and 0.2 of the way from FT (10 %) to Joint (90 %) on the first task, 1.25 points more on each later one."""
    pages = build(tmp_path / "two", tasks(2, MiB=0.42, LwF=0.26), (), (PROTOCOLS["mib"],))
    page = pages["tasks.html"].text
    rows = dict(re.findall(r'<th scope="row" data-value="([^"]+)">.*?</th>((?:<td.*?</td>)+)', page))
    assert {name: re.findall(r">([^<]+)<", cells) for name, cells in rows.items()} == {
        "LwF": ["0.206", "0.206", "0.200", "0.212"],
        "MiB": ["0.406", "0.406", "0.400", "0.412"],
    }
    assert re.findall(r"<td>(0\.\d+)</td>", page) == ["0.200", "0.212", "0.400", "0.412"]
    for line in ("no ranks and no critical-difference diagram: 2 tasks, mean ranks need 10", "no interval: 1 seed"):
        assert line in page and line in pages["index.html"].text
    assert "<strong>MiB</strong>, 0.406" in pages["index.html"].text
    ranked = build(tmp_path / "ten", tasks(10, MiB=0.42, LwF=0.26))["tasks.html"].text
    assert "mean rank" in ranked and "no ranks" not in ranked
    one = build(tmp_path / "one", tasks(1, MiB=0.42))
    assert "there is nothing to compare over tasks yet" in one["tasks.html"].text
    assert one["index.html"].links.count("tasks.html") == 1  # of the navigation
    without = build(tmp_path / "bare", [*make_run("MiB", task="2-1"), *make_run("MiB", task="1-2")])
    assert "no score over tasks: no run of Joint" in without["tasks.html"].text


def test_runs_that_nobody_scored_again_are_marked_wherever_they_stand(tmp_path: Path) -> None:
    records = tasks(2, seeds=2, MiB=0.42, LwF=0.26)
    (mark,) = (catalogue.run_id(r) for r in gather_runs(records) if (r.method, r.seed, r.task) == ("MiB", 1, "2-1@0"))
    pages = build(tmp_path, records, [mark])
    said = {name for name, html in pages.items() if CONSISTENT in html.text.lower()}
    marked, other = (
        catalogue.scenario_page(("toy", "2-1@0", "overlapped")),
        catalogue.scenario_page(("toy", "2-1@1", "overlapped")),
    )
    assert said == {"index.html", "tasks.html", marked, "method/MiB.html", f"run/{mark}.html"}
    page = pages[marked].text
    assert re.findall(r'aria-label="run with seed (\d), consistent, not scored again">(\d†)<', page) == [("1", "1†")]
    assert (
        re.findall(r">(\w+)</a> †</th>", page) == ["MiB"] == re.findall(r">(\w+)</a> †</th>", pages["tasks.html"].text)
    )
    assert "†" not in pages[other].text and not any("†" in html.text for html in build(tmp_path, records).values())


# --- building again -------------------------------------------------------------------------------------------------


def test_a_build_replaces_an_earlier_one(tmp_path: Path) -> None:
    first = build(tmp_path, [*make_run("FT"), *make_run("MiB")])
    second = build(tmp_path, make_run("MiB"))
    assert "method/FT.html" in first and "method/FT.html" not in second
    listed = set(json.loads((tmp_path / MANIFEST).read_text()))
    there = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert there == listed | {MANIFEST}


def test_a_folder_with_other_files_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(UserError, match="holds files that are not of a leaderboard site"):
        build(tmp_path, make_run("FT"))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_list_of_files_removes_nothing_outside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    site = tmp_path / "site"
    site.mkdir()
    (site / MANIFEST).write_text(json.dumps(["../mine.txt", "old.html"]))
    (site / "old.html").write_text("")
    build(site, make_run("FT"))
    assert (tmp_path / "mine.txt").read_text() == "keep" and not (site / "old.html").exists()


def test_without_a_whole_run_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no complete run yet"):
        build(tmp_path / "site", make_run("FT")[:1])
    assert not (tmp_path / "site").exists()


# --- methods --------------------------------------------------------------------------------------------------------


def test_a_method_from_elsewhere_is_said_to_be_one(site: dict[str, Html]) -> None:
    assert "not part of this version of contseg" in site["method/Mine.html"].text


# --- the command ----------------------------------------------------------------------------------------------------

Cli: TypeAlias = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    def call(*words: object) -> tuple[int, str, str]:
        code = run_benchmark.main([str(word) for word in words])
        return (code, *capsys.readouterr())

    return call


def test_the_command_writes_the_site(tmp_path: Path, cli: Cli) -> None:
    write_records(tmp_path / "runs" / "a", [*make_run("FT"), *joint_run()])
    code, said, wrong = cli("site", tmp_path / "runs", "--out", tmp_path / "site")
    assert (code, wrong) == (0, "") and "index.html" in said
    assert (tmp_path / "site" / "method" / "Joint.html").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{runs}", "--out", "{runs}"], "holds files that are not of a leaderboard site"),
        (["{empty}", "--out", "{new}"], "no records yet below"),
        (["{runs}", "--out", "{new}", "--protocol", "sdd"], "did you mean 'sdr'"),
        (["{missing}", "--out", "{new}"], "is not a folder"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], said: str, tmp_path: Path, cli: Cli) -> None:
    write_records(tmp_path / "runs", make_run("FT"))
    (tmp_path / "empty").mkdir()
    places = {name: tmp_path / name for name in ("runs", "empty", "new", "missing")}
    code, out, wrong = cli("site", *(word.format(**places) for word in words))
    assert (code, out) == (2, "") and wrong.count("\n") == 1 and said in wrong
    assert not (tmp_path / "new").exists()


def test_published_numbers_stand_beside_measured_ones(tmp_path: Path) -> None:
    board = with_literature(leaderboard(measured(), PROTOCOLS["sdr"]), load_published())
    write_site([board], tmp_path)
    page = (tmp_path / "scenario" / "voc-15-1-overlapped.html").read_text(encoding="utf-8")
    for citation in {f"{note.split('] ', 1)[1]}" for note in board.notes if note.startswith("[")}:
        assert str(escape(citation)) in page


def test_steps_by_domain_are_shown_as_domains(tmp_path: Path) -> None:
    """Domains a, then b; all classes from step 0 on: each domain and each class has its line after every step."""
    records = make_run("FT", task="1-1", setup="domain", groups=((1, 2), ()))
    for r in records:
        seen = [["a"], ["b"]][: r["step"] + 1]
        r["domains"] = [["a"], ["b"]]
        r["matrix"]["domains"] = {d: r["matrix"]["seen"] for step in seen for d in step}
    pages = build(tmp_path, records)
    asked = "toy: after 1 domain, then 1 more in one more step, which method knows all 2 domains best?"
    assert asked in pages["index.html"].text and '<li value="1">b</li>' in pages["scenario/toy-1-1-domain.html"].text
    (run,) = (html.text for name, html in pages.items() if name.startswith("run/"))
    lines = dict(re.findall(r'<th scope="row">([^<]*)</th><td>\d</td>((?:<td[^>]*>[^<]*</td>)+)', run))
    assert set(lines) >= {"a", "b", "background", "class 1", "class 2"}
    assert (lines["a"].count("heat"), lines["b"].count("heat"), lines["class 1"].count("heat")) == (2, 1, 2)
