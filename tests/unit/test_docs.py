"""What the documents show is what runs: their code, their links, their names."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from torch import Tensor

from contseg import run_benchmark
from contseg.benchmark.plan.config import read_config
from contseg.datasets import base
from contseg.datasets.registry import known_datasets, open_dataset
from contseg.datasets.scenario import Step
from contseg.methods import registry
from contseg.methods.base import Batch, SegOutput
from contseg.tests.material import ROOT
from contseg.tests.pages import PAGES, code, commands, shell


@pytest.fixture
def soft_kd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The plugin of docs/add_a_method.md, loaded as a user loads it and forgotten afterwards."""
    registry.methods()  # what ships is discovered first, and stays
    for table in ("_METHODS", "_ADDONS"):
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))
    path = tmp_path / "soft_kd.py"
    path.write_text(code("docs/add_a_method.md", "@register_method"))
    registry.load_plugins(path)
    yield sys.modules["soft_kd"]
    del sys.modules["soft_kd"]


def batch(z: Tensor, z_old: Tensor, labels: Tensor) -> Batch:
    """Three old channels and two new ones, everything at label size."""
    features = torch.zeros(len(z), 1, *z.shape[2:], dtype=z.dtype)
    step = Step(1, "overlapped", (1, 2), (3, 4))
    return Batch(features, labels, SegOutput(z, features, features), SegOutput(z_old, features, features), step)


def test_the_documented_plugin_is_thirty_lines() -> None:
    lines = [line for line in code("docs/add_a_method.md", "@register_method").splitlines() if line.strip()]
    assert 20 <= len(lines) <= 35


def test_the_documented_plugin_computes_what_it_says(soft_kd: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    z_old = torch.randn(2, 3, 3, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (2, 3, 4), generator=generator)
    method = registry.build_method("SoftKD[temperature=4,kd=10]+SDR")
    assert method.name == "SoftKD[kd=10,temperature=4]+SDR"

    expected = 0.0
    for b in range(2):
        for y in range(3):
            for x in range(4):
                q = (z_old[b, :, y, x] / 4).softmax(0)
                expected -= 16 * sum(q[c] * (z[b, :3, y, x] / 4).log_softmax(0)[c] for c in range(3)).item() / 24
    value = method.terms["kd"](batch(z, z_old, labels))
    assert isinstance(value, Tensor)
    assert method.terms["kd"].weight == 10
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_the_documented_plugin_does_not_move_a_copy_of_its_teacher(soft_kd: ModuleType) -> None:
    z_old = torch.randn(2, 3, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = torch.cat([z_old, torch.zeros(2, 2, 3, 4, dtype=torch.float64)], 1).requires_grad_()
    value = registry.build_method("SoftKD").terms["kd"](batch(z, z_old, torch.zeros(2, 3, 4, dtype=torch.int64)))
    assert isinstance(value, Tensor)
    (gradient,) = torch.autograd.grad(value, z)
    torch.testing.assert_close(gradient, torch.zeros_like(z), rtol=0, atol=1e-16)


def test_the_documented_data_set_reads_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "REGISTRY", known_datasets())
    for split, n in (("train", 2), ("val", 1)):
        (tmp_path / split).mkdir()
        for i in range(n):
            Image.new("RGB", (8, 6), (10 * i, 0, 0)).save(tmp_path / split / f"{i}.jpg")
            Image.new("L", (8, 6), i + 1).save(tmp_path / split / f"{i}.png")
    exec(code("docs/your_data.md", "@register_dataset"), {"__name__": "documented_data_set"})
    data = open_dataset("mine", tmp_path)
    assert data.ids("train") == ("0", "1") and data.ids("val") == ("0",)
    image, label = data.load("1", "train")
    assert image.shape == (3, 6, 8) and label.unique().tolist() == [2]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    anchors = {
        re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.M)
    }
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("#"):
            assert link[1:] in anchors, link
        elif not link.startswith(("http://", "https://")):
            assert (page.parent / link.partition("#")[0]).exists(), link


def test_every_method_has_its_line() -> None:
    rows = re.findall(r"^\| `(.+?)` \|", (ROOT / "docs/methods.md").read_text(encoding="utf-8"), re.M)
    assert sorted(rows) == sorted([*registry.methods(), *(f"+{name}" for name in registry.addons())])


@pytest.mark.parametrize("page", [*PAGES, ROOT / "run_benchmark.py"], ids=lambda page: page.name)
def test_documented_commands_are_understood(page: Path) -> None:
    known = {*registry.methods(), "SoftKD", "MyMethod"}
    for printed, _ in commands(page.read_text(encoding="utf-8")):
        arguments = [word for word in printed if word != "..."]
        if arguments[0].startswith("-"):
            arguments = ["run", *arguments]
        args = run_benchmark.parser().parse_args(arguments)
        if args.command in ("run", "plan", "tune"):
            config = read_config(args.config and ROOT / args.config, args.set)
            for method in args.methods or config.methods:
                assert re.match(r"[\w-]+", method)[0] in known, method  # type: ignore[index]


def test_the_reader_of_commands_sees_continued_lines_and_launchers() -> None:
    text = "contseg list\ncontseg lists much\npython run_benchmark.py run --out a \\\n  --seeds 0 1   that\n"
    text += "accelerate launch --x 2 run_benchmark.py plan"
    expected = [(["list"], False), (["run", "--out", "a", "--seeds", "0", "1"], False), (["plan", "..."], True)]
    assert list(commands(text + " ...")) == expected


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_rows_have_as_many_cells_as_their_table(page: Path) -> None:
    """A `|` inside a cell is escaped, in code too: else what follows it is not shown."""
    cells = 0
    for line in page.read_text(encoding="utf-8").splitlines():
        found = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        assert found == (cells or found) or not found, line
        cells = found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_other_commands_of_a_page_exist(page: Path) -> None:
    """Targets of ``make``, modules of ``python -m contseg...``; nothing else is asked of a shell."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for line in shell(page.read_text(encoding="utf-8")):
        first, _, rest = line.partition(" ")
        if first == "make":
            assert rest.split()[0] in targets, line
        elif found := re.match(r"python -m contseg\.([\w.]+)", line):
            assert (ROOT / found[1].replace(".", "/")).with_suffix(".py").exists(), line
        elif line and not list(commands(line)):
            assert re.match(r"source |(\.venv/bin/)?pip install |(python -m )?pip |git |cd ", line), line


def test_the_drawing_of_the_tree_is_complete() -> None:
    """Every file of ``benchmark`` and ``datasets`` has its word in the drawing, and every path of the page exists."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    tree = page.partition("## The tree")[2].partition("```\n")[2].partition("```")[0]
    words = set(re.findall(r"\w+", tree))
    files = {p.stem for part in ("benchmark", "datasets") for p in (ROOT / part).rglob("*.py")} - {"__init__"}
    assert sorted(files - words) == []
    paths = re.findall(r"`((?:benchmark|datasets|methods|tests)/[\w/]+\.\w+)`", page)
    assert len(paths) > 10 and [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_seeds_of_the_table_of_the_demo_are_told(page: str) -> None:
    """Its records have more seeds than ``make demo`` and ``--config demo`` train by themselves."""
    seeds = sorted({p.name.removeprefix("seed") for p in (ROOT / "results/demo/records").rglob("seed*")})
    assert [*map(str, read_config(ROOT / "benchmark/configs/demo.toml", []).seeds)] != seeds
    before = (ROOT / page).read_text(encoding="utf-8").rpartition("| FT |")[0].rpartition("```")[2]
    assert f"--seeds {' '.join(seeds)}" in before


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_table_of_the_demo_is_that_of_its_records(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    printed = rows(text.partition("ends in this table")[2] or text)
    made = rows((ROOT / "results/demo/leaderboard.md").read_text(encoding="utf-8").partition("## shapes · 3-3")[0])
    assert len(printed) >= 3
    assert {name: cells[:3] for name, cells in printed.items()} == {name: made[name][:3] for name in printed}


def test_the_table_of_photographs_is_that_of_its_records() -> None:
    printed = rows((ROOT / "README.md").read_text(encoding="utf-8").partition("ends in this table")[0])
    made = rows((ROOT / "results/photos/leaderboard.md").read_text(encoding="utf-8"))
    assert len(printed) == 8
    assert {name: cells[:3] for name, cells in printed.items()} == {name: cells[:3] for name, cells in made.items()}


def rows(text: str) -> dict[str, list[str]]:
    """By method, the cells of a table that have a spread."""
    cells = [[cell.strip("* ") for cell in line.strip("|").split("|")] for line in text.splitlines() if "±" in line]
    return {row[0]: [cell for cell in row[1:] if "±" in cell] for row in cells if len(row) > 3}
