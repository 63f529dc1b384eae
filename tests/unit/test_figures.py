"""Figures: one of each, with the same bytes for the same numbers, showing what the records hold."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

from contseg.benchmark.plan.protocol import PROTOCOLS
from contseg.benchmark.report.figures import (
    STYLE,
    classes,
    confusion,
    contest_rows,
    curves,
    file_name,
    published,
    save,
    terms,
    unwatched,
    write_figures,
)
from contseg.benchmark.report.latent import separation
from contseg.benchmark.report.reporter import leaderboard
from contseg.benchmark.score.networks import telling_images
from contseg.benchmark.score.published import load_published, with_literature
from contseg.datasets.palette import label_colours
from contseg.tests.records import Record, make_run
from contseg.tests.unit.test_published import measured
from contseg.tests.unit.test_reporter import grid

SDR = PROTOCOLS["sdr"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    folder = tmp_path_factory.mktemp("figures")
    return folder, write_figures(leaderboard(grid(), SDR), folder)


def test_every_figure_comes_as_png_and_pdf(drawn: tuple[Path, list[Path]]) -> None:
    folder, written = drawn
    methods = ("FT", "MiB", "MiB+SDR", "Joint")
    names = ["curves", "classes", "old-new", "cost", *(f"{of}-{m}" for m in methods for of in ("confusion", "terms"))]
    assert [p.name for p in written] == [f"{n}.{ending}" for n in names for ending in ("png", "pdf")]
    assert {p.parent for p in written} == {folder / "toy-2-1-overlapped-sdr"}
    assert all(p.read_bytes()[:4] == (b"\x89PNG" if p.suffix == ".png" else b"%PDF") for p in written)


def test_the_same_numbers_give_the_same_bytes(drawn: tuple[Path, list[Path]], tmp_path: Path) -> None:
    first = {p.name: p.read_bytes() for p in drawn[1] if "curves" in p.name}
    board = leaderboard(grid(), SDR)
    with mpl.rc_context(STYLE):
        again = [
            path for key, rows in contest_rows(board) for path in save(curves(board, key, rows), tmp_path / "curves")
        ]
    assert {p.name: p.read_bytes() for p in again} == first


def test_curves_show_the_mean_and_the_span_of_the_seeds() -> None:
    board = leaderboard(grid(), PROTOCOLS["mib"])
    ((key, rows),) = contest_rows(board)
    old, new, _ = curves(board, key, rows).axes
    line = next(ln for ln in old.lines if ln.get_label() == "MiB")
    assert line.get_ydata() == pytest.approx([82, 82])
    joint = next(ln for ln in new.lines if ln.get_label() == "Joint")
    assert (joint.get_xdata().tolist(), joint.get_ydata()) == ([1], pytest.approx([95]))
    band = old.collections[1].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((81, 83))
    assert old.get_ylabel() == "mIoU (%)"


def test_the_heat_map_leaves_future_classes_empty() -> None:
    board = leaderboard(make_run(hit=lambda t, k: 0.5), SDR)
    ((key, rows),) = contest_rows(board)
    image = np.ma.filled(classes(board, key, rows).axes[0].images[0].get_array(), np.nan)
    assert image.shape == (4, 2)
    assert np.isnan(image).tolist() == [[False, False]] * 3 + [[True, False]]
    assert image[1:3] == pytest.approx(50)


def test_bars_stand_beside_the_published_number() -> None:
    board = with_literature(leaderboard(measured(), SDR), load_published())
    ((key, rows),) = contest_rows(board)
    ax = published(board, key, rows).axes[0]
    heights = [round(bar.get_height(), 2) for bar in ax.patches]
    assert heights[2:] == [39.5, 77.58]
    assert published(leaderboard(grid(), SDR), key, rows) is None


def watched_run() -> list[Record]:
    """Step 0 without norms; step 1 of 40 updates with two terms, one of which has no gradient at first."""
    first, later = make_run("MiB")
    later |= {
        "cost": later["cost"] | {"updates": 40},
        "losses": {"unce": [4.0, 2.0, 1.0, 0.5], "unkd": [0.1, 0.0, 0.2, 0.3]},
        "gradient_norms": {
            "updates": [0, 20, 39],
            "weights": {"unce": 1.0, "unkd": 10.0},
            "norms": {"unce": [2.0, 1.0, 0.5], "unkd": [0.0, 0.01, 0.02]},
        },
    }
    return [first, later]


def test_a_confusion_matrix_sums_classes_not_places() -> None:
    """Under ``@random`` every seed has its own order of classes: class 1 is found by both seeds, class 3 by none."""
    found = (1.0, 1.0, 0.5, 0.0)
    orders = {0: ((1, 2), (3,)), 1: ((3, 2), (1,))}
    records = [
        r
        for seed, groups in orders.items()
        for r in make_run(seed=seed, groups=groups, order="random", hit=lambda t, k: found[k])
    ]
    board = leaderboard(records, SDR)
    ((_, rows),) = contest_rows(board)
    (shares,) = (image.get_array() for ax in confusion(*rows[0], board).axes[:1] for image in ax.images)
    assert np.diag(shares).tolist() == [100, 0, 50, 100]  # in the order of the last seed


def test_a_column_a_step_shows_losses_at_their_windows_and_norms_at_their_updates() -> None:
    ((_, [(method, runs)]),) = contest_rows(leaderboard(watched_run(), SDR))
    figure = terms(method, runs)
    first, later, none, norms = figure.axes
    assert [len(ax.lines) for ax in figure.axes] == [1, 2, 0, 2]
    assert {ax.get_yscale() for ax in figure.axes} == {"log"}
    assert first.lines[0].get_xdata().tolist() == [25, 75]  # two windows of 100 updates
    assert later.lines[0].get_xdata().tolist() == [5, 15, 25, 35]
    assert norms.lines[0].get_xdata().tolist() == [0, 20, 39]
    assert norms.lines[0].get_ydata().tolist() == [2.0, 1.0, 0.5]
    assert np.isnan(norms.lines[1].get_ydata()).tolist() == [True, False, False]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["ce", "unce", "10 unkd"]
    assert [ax.get_title() for ax in (none, norms)] == ["step 0", "step 1"]


def test_without_norms_there_is_a_line_and_no_empty_panel() -> None:
    board = leaderboard(watched_run() + make_run("FT"), SDR)
    ((_, rows),) = contest_rows(board)
    assert [len(terms(method, runs).axes) for method, runs in rows] == [2, 4]
    assert unwatched(board) == [
        "no gradient norms of FT: terms-*.png has losses alone (set run.gradient_norms=50 and train)"
    ]
    assert unwatched(leaderboard(watched_run(), SDR)) == []


def test_a_step_without_an_update_says_so() -> None:
    ((_, [(method, runs)]),) = contest_rows(leaderboard(make_run("Still", losses={}), SDR))
    assert [ax.get_title() for ax in terms(method, runs).axes] == ["step 0: no update", "step 1: no update"]


def test_file_names_are_safe() -> None:
    assert file_name("toy-sdr scoring, trained with void/../x") == "toy-sdr-scoring-trained-with-void-..-x"


def test_a_long_task_is_a_name_of_a_folder_too() -> None:
    """One group a class, as in an explicit task of ADE20K: a name has 255 bytes. Two of one beginning stay two."""
    tasks = ["|".join(map(str, classes)) for classes in (range(1, 151), [*range(1, 149), 150, 149])]
    one, two = (file_name(f"ade-[{task}]-overlapped-sdr") for task in tasks)
    assert one != two and max(len(f".confusion-{name}.png.0123abcd.tmp".encode()) for name in (one, two)) <= 255


def test_voc_colours_are_vocs_own_where_there_are_many_classes() -> None:
    table = label_colours(21)
    assert table[[1, 2, 3, 15, 20, 255]].tolist() == [
        [128, 0, 0], [0, 128, 0], [128, 128, 0], [192, 128, 128], [0, 64, 128], [224, 224, 192],
    ]  # fmt: skip
    assert len({tuple(c) for c in label_colours(151)[:151].tolist()}) == 151


def test_images_that_show_old_and_later_classes_come_first() -> None:
    present = np.zeros((5, 5), dtype=bool)
    present[:, 0] = True
    for image, labels in enumerate(([1], [1, 3], [3, 4], [2, 4], [2, 1])):
        present[image, labels] = True
    assert telling_images(present, ((1, 2), (3,), (4,)), 3) == [1, 3, 2]
    assert telling_images(present, ((1, 2, 3, 4),), 9) == [1, 3, 2, 4, 0]


def test_separation_is_variance_between_over_within() -> None:
    points = np.array([[0.0, 0.0], [2.0, 0.0], [10.0, 0.0], [12.0, 0.0]])
    assert separation(points, np.array([1, 1, 2, 2])) == pytest.approx(25 / 1)
    assert np.isnan(separation(points, np.ones(4)))
