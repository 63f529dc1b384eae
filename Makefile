# Each target does all of its own set-up: a virtual environment in .venv with the versions of constraints.txt.
# Another Python:  make test PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# a test process a core, whole files each, in their order; every process works in one thread
TESTS := -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
# This folder has a `datasets` too: it must not stand in front of Hugging Face's on the path.
export PYTHONSAFEPATH := 1
.PHONY: help demo test numeric lint format bench docs install clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "  make %-8s %s\n", $$1, $$2}'

demo: $(INSTALLED)  ## the default grid on drawn images: minutes on a CPU, ends with the table
	$(BIN)/python run_benchmark.py run --config benchmark/configs/demo.toml --launcher local --out runs/demo

test: lint  ## lint, types and the whole test suite
	$(BIN)/python $(TESTS)

# `make test` itself: the machine's own instructions and one thread (tests/conftest.py)
numeric: $(INSTALLED)  ## tests of numbers, without AVX-512, in plain kernels and two threads
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive \
	  $(BIN)/python $(TESTS) -q -m "numeric and not slow"

lint: $(INSTALLED)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p $(VENV)/types && ln -sfn $(CURDIR) $(VENV)/types/contseg
	MYPYPATH=$(VENV)/types $(BIN)/mypy

format: $(INSTALLED)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)  ## time the hot paths against their references; BENCH="--benchmark-json=bench.json" for a file
	$(BIN)/python -m pytest tests/benchmarks --benchmark-only --benchmark-columns=min,median,rounds $(BENCH)

docs: $(INSTALLED)  ## the documentation and the leaderboard as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

install: $(INSTALLED)  ## only the environment

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "contseg needs Python 3.11 or later, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true); name another: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "$(PYTHON) cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 2; }
	@echo "Installing the dependencies into $(VENV) (once; some gigabytes with CUDA) ..."
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

clean:  ## remove the environment and what the tools cached; results stay
	rm -rf $(VENV) build dist site contseg.egg-info .pytest_cache .mypy_cache .ruff_cache
