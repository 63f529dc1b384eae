"""``contseg tune`` by the real command: searched, gone on with, and used."""

from pathlib import Path

from contseg.benchmark.plan.config import read_config
from contseg.benchmark.plan.toml import as_toml
from contseg.tests.integration.grid import SMALL, call, records, small


def test_a_search_ends_in_a_grid_and_is_done_once(tmp_path: Path) -> None:
    words = ["tune", *small(tmp_path, "MiB"), "--trials", "3", "--on", "first"]
    done = call(*words)
    assert done.returncode == 0, done.stderr
    assert "3 runs, 6 cells, 4 distinct steps; to train now: 4 steps" in done.stdout
    assert (
        "tuned on first (shapes/[1-2|3]/overlapped, a held-out fifth of the training images), 3 trials" in done.stdout
    )
    assert {r["split"] for r in records(tmp_path).values()} == {"tune"}
    written = {name: (tmp_path / name).read_text() for name in ("trials.csv", "tuned.toml")}
    assert (tmp_path / "search.png").stat().st_size > 1000
    again = call(*words, "--launcher", "local")
    assert again.returncode == 0 and "to train now: 0 steps" in again.stdout
    assert written == {name: (tmp_path / name).read_text() for name in written}
    assert read_config(tmp_path / "tuned.toml").scenarios == ("shapes/3-3/overlapped",)
    planned = call("plan", "--config", tmp_path / "tuned.toml", "--out", tmp_path)
    assert planned.returncode == 0 and "1 runs, 2 cells" in planned.stdout


def test_the_rows_of_a_search_are_named_in_the_table(tmp_path: Path) -> None:
    """FT has one trial, its default: it is two rows of the same run. The name of MiB's row says its search."""
    words = ["tune", *small(tmp_path / "search", "FT"), "--trials", "1", "--on", "stream"]
    done = call(*words)
    assert done.returncode == 0, done.stderr
    assert "best of 1" in done.stdout
    final = tmp_path / "final"
    done = call("run", "--config", tmp_path / "search/tuned.toml", "--out", final)
    assert done.returncode == 0, done.stderr
    assert "FT, tuned on stream, 1 trial " in done.stdout and "\nFT  " in done.stdout
    (trials,) = (final / "tuned").glob("*.csv")
    assert trials.read_bytes() == (tmp_path / "search/trials.csv").read_bytes()
    table = (final / "leaderboard.md").read_text()
    assert (
        "tuned on stream (shapes/3-3/overlapped), 1 trial, Sobol seed 0, best 'all' mIoU; all trials: tuned/" in table
    )
    shown = call("report", "--out", final)
    assert shown.returncode == 0 and (final / "leaderboard.md").read_text() == table
    # a method that the search did not choose is not tuned
    other = call("run", "--config", tmp_path / "search/tuned.toml", "--methods", "MiB", "--out", final)
    assert other.returncode == 0 and "\nMiB  " in other.stdout


def test_trials_on_the_test_images_stay_out_of_the_leaderboard(tmp_path: Path) -> None:
    done = call("tune", *small(tmp_path, "FT"), "--trials", "3", "--on", "test")
    assert done.returncode == 0, done.stderr
    table, said = (tmp_path / "leaderboard.md").read_text(), "2 trials of a search on the test images"
    assert table.count("\n| FT ") == 1 and table.count("\n| FT[") == 0 and said in table and said in done.stdout
    assert len((tmp_path / "trials.csv").read_text().splitlines()) == 1 + 3
    done = call("run", "--config", tmp_path / "tuned.toml", "--out", tmp_path)
    assert done.returncode == 0 and "to train now: 0 steps" in done.stdout
    assert "FT, tuned on test, 3 trials " in done.stdout
    more = call("tune", *small(tmp_path, "FT", "LwF"), "--trials", "4", "--on", "test", "--launcher", "local")
    assert more.returncode == 0 and len((tmp_path / "trials.csv").read_text().splitlines()) == 1 + 8, more.stderr


def test_another_search_into_the_same_folder_is_refused_before_it_trains(tmp_path: Path) -> None:
    """It would overwrite the trials and the grid of the first; more trials and more methods go on with it."""
    words = ["--scenarios", "shapes/3-3/overlapped", "--out", tmp_path]
    (tmp_path / "trials.csv").write_text("method,trial\nMiB,0\n")
    grid = as_toml(read_config(None, SMALL, scenarios=("shapes/3-3/overlapped",)))
    (tmp_path / "tuned.toml").write_text(f'{grid}\n[tuned]\non = "stream"\nscenario = "shapes/3-3/overlapped"\n')
    for other, said in (
        (["--methods", "MiB", "--on", "first"], "tuned.toml is of another search, which this one would overwrite: "),
        (["--methods", "MiB", "--on", "stream", "--draw", "1"], "tuned.toml is of another search"),
        (["--methods", "MiB", "--on", "stream", "--scenarios", "shapes/3-1/overlapped"], "tuned.toml is of another"),
        (["--methods", "FT", "--on", "stream"], "trials.csv holds trials of MiB, which this search would overwrite"),
    ):
        done = call("tune", *words, *other, "--set", *SMALL)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["trials.csv", "tuned.toml"]


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    for words, said in (
        (["--on", "frist"], "unknown selection 'frist': did you mean 'first'?"),
        (["--trials", "0"], "--trials must be a whole number >= 1 and <= 4096, not 0"),
        (["--trials", "2.5"], "--trials must be a whole number >= 1 and <= 4096, not 2.5"),
        (["--trials", "100000000"], "--trials must be a whole number >= 1 and <= 4096, not 100000000"),
        (["--draw", "-1"], "--draw must be a whole number >= 0, not -1"),
        (["--scenarios", "shapes/3-3/overlapped", "shapes/3-1/overlapped"], "tune what? Give one scenario"),
    ):
        done = call("tune", *small(tmp_path, "MiB"), *words)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "trials.csv").exists()
