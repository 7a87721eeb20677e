# The commands of this repository. Everything happens inside .venv.

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := .venv/.installed

export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1
# Compiling the tests' assertions is half of collecting them; what was compiled is kept for the next time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo test types tests fix lock bench docs

install: $(STAMP)

$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dualform needs Python 3.11 or newer: make install PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install --upgrade pip
	@# torch comes first, alone and pinned: everybody runs the one build, and no other package chooses it.
	$(PIP) install torch==2.13.0
	@# Every file is checked against the hashes in the lock.
	$(PIP) install --require-hashes -r requirements.lock
	$(PIP) install --no-deps -e .
	touch $@

demo: install
	$(BIN)/dualform compare smollm2-135m reviews --out runs/demo --overwrite

test: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	@# Types are checked in one process, in the meantime.
	$(MAKE) --no-print-directory --jobs 2 types tests

types: install
	$(BIN)/mypy

tests: install
	@# A file stays with one worker, so that what its tests share is made once; the files are given out in the order of
	@# tests/conftest.py, the longest first.
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 15 --benchmark-disable

fix: install
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# After a change of the dependencies in pyproject.toml; commit the result.
lock: install
	$(PIP) install --group dev -e . uv
	$(BIN)/python tools/lock.py > requirements.lock.new
	mv requirements.lock.new requirements.lock

bench: install
	$(BIN)/python tools/lock.py --pins < requirements.lock > .venv/constraints.txt
	$(PIP) install -c .venv/constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks

docs: install
	$(BIN)/python tools/lock.py --pins < requirements.lock > .venv/constraints.txt
	$(PIP) install -c .venv/constraints.txt -e '.[docs]'
	$(BIN)/python -m sphinx -W docs docs/_build
