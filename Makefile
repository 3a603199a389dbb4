# Everything needs only Python >= 3.11 and make: the first target that runs creates .venv and installs into it.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test bench check format format-check lint types clean

demo: .venv/installed
	$(BIN)/deftx demo

test: .venv/installed-dev
	$(BIN)/python -m pytest

# side by side with the plain way, at XLM-R base's shape: takes long; BENCH=--small for a quick look
bench: .venv/installed
	$(BIN)/python benchmarks/core.py $(BENCH)
	$(BIN)/python benchmarks/vectors.py $(BENCH)
	$(BIN)/python benchmarks/training.py $(BENCH)

check: format-check lint types test

format: .venv/installed-dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

format-check: .venv/installed-dev
	$(BIN)/ruff format --check

lint: .venv/installed-dev
	$(BIN)/ruff check

types: .venv/installed-dev
	$(BIN)/mypy

clean:
	rm -rf .venv

# torch goes first and alone, so that the pinned build is there before anything can ask for another one
.venv/torch: constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	touch $@

.venv/installed: .venv/torch pyproject.toml
	$(PIP) --editable '.[plot]'
	touch $@

.venv/installed-dev: .venv/torch pyproject.toml
	$(PIP) --editable '.[dev]'
	touch $@
