# Everything needs only Python >= 3.11 and make: the first target that runs creates .venv and installs into it.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := pip install --quiet --disable-pip-version-check
# in the order of their names: by their number of tests, as it would be, the files that take long come last
TEST := pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-oldest test-newest test-debian audit bench docs check format format-check lint types clean

demo: .venv/installed
	$(BIN)/deftx demo

test: .venv/installed-dev
	$(BIN)/python -m $(TEST)

# the oldest versions that pyproject.toml allows, in an environment of their own; what they warn of is known by now
test-oldest: .venv-oldest/installed
	.venv-oldest/bin/python -m $(TEST) -m "not slow and not once" -W default

# the newest versions of everything, torch among them, which brings its libraries for GPUs: several gigabytes
test-newest: .venv-newest/installed
	.venv-newest/bin/python -m $(TEST) -m "not slow and not once" -W default

# the newest Python and the oldest torch: those of Debian 13, in a system of its own
test-debian:
	scripts/test_debian.sh

# known vulnerabilities of the pinned versions; skipped with a line where pip-audit or its database cannot be had
audit:
	@{ $(PYTHON) -m venv .venv-audit && .venv-audit/bin/python -m $(INSTALL) pip-audit && \
		.venv-audit/bin/pip-audit -r constraints.txt --no-deps --disable-pip --progress-spinner off --format json; } \
		2>/dev/null | $(PYTHON) scripts/audit.py

# the site of docs/, in build/docs; a warning is an error
docs: .venv/installed-docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -b html docs build/docs

# side by side with the plain way, at XLM-R base's shape: half an hour; BENCH="--shape small" for a quick look
ROWS := docs/results/performance.jsonl
bench: .venv/installed-dev
	for part in core vectors training recipe; do $(BIN)/python benchmarks/$$part.py --save $(ROWS) $(BENCH) || exit 1; done
	$(BIN)/python benchmarks/page.py $(ROWS) docs/performance.md
	$(BIN)/python benchmarks/serve.py --shape nano

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
	rm -rf .venv .venv-oldest .venv-newest build

# torch goes first and alone, so that the pinned build is there before anything can ask for another one
%/torch: constraints.txt
	$(PYTHON) -m venv $*
	$*/bin/python -m $(INSTALL) -c constraints.txt torch
	touch $@

%/installed: %/torch pyproject.toml
	$*/bin/python -m $(INSTALL) -c constraints.txt --editable '.[plot]'
	touch $@

%/installed-dev: %/torch pyproject.toml
	$*/bin/python -m $(INSTALL) -c constraints.txt --editable '.[dev]'
	touch $@

%/installed-docs: %/torch pyproject.toml
	$*/bin/python -m $(INSTALL) -c constraints.txt --editable '.[docs,plot]'
	touch $@

.venv-oldest/installed: constraints-oldest.txt pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m $(INSTALL) -c constraints-oldest.txt torch
	.venv-oldest/bin/python -m $(INSTALL) -c constraints-oldest.txt --editable '.[data,report,serve]' hypothesis pytest pytest-xdist
	touch $@

.venv-newest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m $(INSTALL) torch
	.venv-newest/bin/python -m $(INSTALL) --editable '.[data,report,serve]' hypothesis pytest pytest-xdist
	touch $@

.PRECIOUS: %/torch
