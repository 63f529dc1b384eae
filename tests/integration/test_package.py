"""contseg as users install it: a wheel beside a plugin's wheel, used in a folder that is not the checkout.

The programs of these tests may not even look into the checkout: whatever opens or lists a file of it fails.
"""

import csv
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from contseg import __version__
from contseg.benchmark.plan.build import make_plan
from contseg.benchmark.plan.config import read_config
from contseg.benchmark.store.files import Store
from contseg.datasets.errors import EXTRAS
from contseg.datasets.registry import open_dataset
from contseg.tests.integration.grid import SMALL, records, small
from contseg.tests.material import ROOT
from contseg.tests.pages import code

BUILD = "import sys, setuptools.build_meta as b; print(b.build_sdist(sys.argv[1]))"
GUARD = """\
import os, sys
HOME, ENVIRONMENT, LOG = {home!r}, {environment!r}, {log!r}

def look(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and arguments and isinstance(arguments[0], (str, os.PathLike)):
        path = os.path.abspath(os.fspath(arguments[0]))
        if path.startswith(HOME + os.sep) and not path.startswith(ENVIRONMENT + os.sep):
            os.write(os.open(LOG, os.O_CREAT | os.O_APPEND | os.O_WRONLY), (path + chr(10)).encode())
            raise PermissionError("a file of the checkout: " + path)

sys.addaudithook(look)
"""
Command = Callable[..., subprocess.CompletedProcess[str]]


def python(*words: object, cwd: Path) -> str:
    """Run this Python with these words; what it printed."""
    done = subprocess.run([sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source: Path, out: Path) -> Path:
    """The wheel of a source folder; nothing is fetched."""
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check")
    python("-m", "pip", "wheel", *offline, "--wheel-dir", out, source, cwd=out.parent)
    (wheel,) = out.glob(f"{source.name}-*.whl")
    return wheel


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout to build from: nothing is written beside the sources, no older build is taken up."""
    away = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "cache", "logs")
    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("source") / "contseg", ignore=away))


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, tmp_path_factory.mktemp("wheels") / "own")


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the plugin that docs/add_a_method.md prints."""
    folder = tmp_path_factory.mktemp("plugin") / "soft_kd"
    folder.mkdir()
    (folder / "soft_kd.py").write_text(code("docs/add_a_method.md", "@register_method"))
    (folder / "pyproject.toml").write_text(code("docs/add_a_method.md", "[project.entry-points", "toml"))
    return build(folder, tmp_path_factory.mktemp("wheels") / "theirs")


@pytest.fixture(scope="module")
def site(wheel: Path, plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages: contseg and a plugin, and what watches over the checkout."""
    site = tmp_path_factory.mktemp("environment") / "site-packages"
    offline = ("--no-deps", "--no-index", "--quiet", "--disable-pip-version-check", "--no-compile")
    python("-m", "pip", "install", *offline, "--target", site, wheel, plugin, cwd=site.parent)
    log = site.parent / "looked_at"
    (site / "sitecustomize.py").write_text(GUARD.format(home=str(ROOT), environment=sys.prefix, log=str(log)))
    return site


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def contseg(site: Path, elsewhere: Path) -> Command:
    """The installed command, or ``start`` in its place, in a folder of its own."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONSAFEPATH", "CONTSEG_SHARED")}
    env |= {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def call(*words: object, start: tuple[str, ...] = (str(site / "bin/contseg"),)) -> subprocess.CompletedProcess[str]:
        line = [*start, *map(str, words)]
        done = subprocess.run(line, cwd=elsewhere, env=env, capture_output=True, text=True, timeout=600)
        assert not (site.parent / "looked_at").exists(), (site.parent / "looked_at").read_text()
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    return call


# --- what is in it -------------------------------------------------------------------------------------------------


def wanted() -> list[str]:
    """The files of the package: all of its Python, what it reads, and nothing else."""
    parts = ("benchmark", "datasets", "methods")
    files = [ROOT / "__init__.py", ROOT / "run_benchmark.py", *(p for x in parts for p in (ROOT / x).rglob("*.py"))]
    data = ("benchmark/configs/*.toml", "benchmark/*/templates/*", "datasets/*.toml", "results/published/*")
    files += [ROOT / "docs/methods.md", *(p for pattern in data for p in ROOT.glob(pattern))]
    return sorted(f"contseg/{p.relative_to(ROOT).as_posix()}" for p in files)


def test_a_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert sorted(n for n in names if ".dist-info/" not in n) == wanted()
    info = {n.partition(".dist-info/")[2] for n in names if ".dist-info/" in n}
    assert info == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}


def test_a_source_distribution_gives_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    name = python("-c", BUILD, tmp_path, cwd=source).splitlines()[-1]
    with tarfile.open(tmp_path / name) as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / name.removesuffix(".tar.gz")).rename(tmp_path / "contseg")
    again = build(tmp_path / "contseg", tmp_path / "wheels")
    files = [{n: z.read(n) for n in z.namelist()} for z in map(zipfile.ZipFile, (wheel, again))]
    assert files[0] == files[1]


def test_what_the_metadata_says(wheel: Path) -> None:
    info = f"contseg-{__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"{info}/METADATA").decode()
        entry = archive.read(f"{info}/entry_points.txt").decode()
    assert f"\nVersion: {__version__}\n" in text and "\nLicense-Expression: Apache-2.0\n" in text
    assert "\nProject-URL" not in text and "\nHome-page" not in text
    assert entry == "[console_scripts]\ncontseg = contseg.run_benchmark:main\n"
    core = {re.split(r"\W", line)[1] for line in re.findall(r"\nRequires-Dist:( .*)", text) if "extra ==" not in line}
    assert {"torch", "accelerate", "pandas"} <= core and core.isdisjoint(EXTRAS)


def test_every_extra_is_declared_and_in_dev() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for module, extra in EXTRAS.items():
        package = module.replace("_", "-")  # as packages are named
        assert any(re.match(rf"{package}\b", line) for line in declared[extra]), extra
        assert any(line.startswith("contseg[") and extra in line for line in declared["dev"]), extra


# --- what it does --------------------------------------------------------------------------------------------------


def test_a_grid_by_workers_is_what_the_checkout_would_do(contseg: Command, elsewhere: Path) -> None:
    """Two local workers, started as modules; the checkout's keys and code are theirs, so it takes over every step."""
    contseg("run", *small(Path("runs"), "FT", "MiB", sets=("launch.workers=2",)), "--launcher", "local")
    sets = [*SMALL, "launch.workers=2"]
    config = read_config(None, sets, scenarios=("shapes/3-3/overlapped",), methods=("FT", "MiB"), seeds=(0,))
    plan, made = make_plan(config, open_dataset), records(elsewhere / "runs")
    cells = {str(cell.path): cell for run in plan.runs for cell in run.cells}
    assert set(made) == set(cells)
    for path, record in made.items():
        cell, said = cells[path], record["provenance"]
        assert (record["step_key"], record["key"]) == (cell.node.key, cell.score)
        assert said["code"]["training"] == plan.origins.expected(cell.node.key)
        assert said["code"]["evaluation"] == plan.origins.expected(cell.score)
        assert said["commit"] == ""
        assert said["command"].startswith("contseg run --scenarios shapes/3-3/overlapped --methods FT MiB --out runs ")
    assert plan.to_train(Store(elsewhere / "runs")) == []

    contseg("report", "--out", "runs", "--format", "html", "csv")
    with (elsewhere / "runs/leaderboard.csv").open() as file:
        assert {row["method"] for row in csv.DictReader(file)} == {"FT", "MiB"}
    assert "MiB" in (elsewhere / "runs/leaderboard.html").read_text()


def test_published_numbers_and_configurations_come_along(contseg: Command) -> None:
    assert contseg("--version").stdout == f"contseg {__version__}\n"
    assert "MiB" in contseg("plan", "--config", "demo").stdout
    assert "SegFormer-B2" in contseg("list", "published", "--task", "15-1", "--method", "MiB").stdout


def test_an_installed_plugin_has_its_rows(contseg: Command, elsewhere: Path) -> None:
    """Found by its entry point; the command is started as a module."""
    rows = map(str.split, contseg("list", "methods").stdout.splitlines())
    assert [row[-2:] for row in rows if row[:1] == ["SoftKD"]] == [["soft-kd", "1.0"]]
    grid = small(Path("theirs"), "FT", "SoftKD[kd=2]+SDR")
    contseg("run", *grid, start=(sys.executable, "-P", "-m", "contseg.run_benchmark"))
    with (elsewhere / "theirs/leaderboard.csv").open() as file:
        assert {row["method"] for row in csv.DictReader(file)} == {"FT", "SoftKD[kd=2]+SDR"}
    (named,) = {name for record in records(elsewhere / "theirs").values() for name in record["provenance"]["plugins"]}
    assert named == "soft_kd"


def test_built_in_and_installed_methods_keep_the_contract(contseg: Command) -> None:
    assert re.findall(r"(\w+): all \d+ rules hold", contseg("check", "FT", "SoftKD").stdout) == ["FT", "SoftKD"]


def test_accelerate_launches_the_module(contseg: Command) -> None:
    launch = (sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=1")
    plan = contseg("plan", *small(Path("runs"), "FT"), start=(*launch, "-m", "contseg.run_benchmark")).stdout
    assert "FT" in plan


@pytest.mark.slow
def test_an_empty_environment_and_what_the_package_asks_for(wheel: Path, plugin: Path, tmp_path: Path) -> None:
    """A real installation with its dependencies (gigabytes, from the package index), a grid and its table."""
    python("-m", "venv", tmp_path / "venv", cwd=tmp_path)
    own = tmp_path / "venv/bin"
    install = [own / "python", "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON") and k != "CONTSEG_SHARED"}
    for line in (
        [*install, wheel, plugin],
        [own / "python", "-c", "import contseg; assert 'site-packages' in contseg.__file__, contseg.__file__"],
        [own / "contseg", "--version"],
        [own / "contseg", "run", *small(Path("runs"), "FT", "SoftKD"), "--launcher", "local"],
        [own / "contseg", "check", "MiB"],
        [own / "contseg", "report", "--out", "runs"],
    ):
        done = subprocess.run([*map(str, line)], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=3600)
        assert done.returncode == 0, done.stdout + done.stderr
    line = [str(own / "contseg"), "run", *map(str, small(Path("slurm"), "FT")), "--launcher", "slurm"]
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: --launcher slurm needs submitit, which is not installed: pip install 'contseg[slurm]'\n"
    )
