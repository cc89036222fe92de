# README's two commands, and what they are made of. Everything happens in .venv; nothing else is touched.
PYTHON ?= python3
EXTRAS ?= test,demo
BIN := .venv/bin

.PHONY: demo test check bench clean

demo: .venv/demo
	$(BIN)/python -m ptq.demo

test: .venv/test check
	$(BIN)/pytest -q -p no:cacheprovider
	$(BIN)/pytest -q -p no:cacheprovider -p no:randomly --doctest-modules ptq/core ptq/analysis/metrics.py

check: .venv/test build/view
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	MYPYPATH=build/view $(BIN)/mypy -p ptq
	PYTHONPATH=build/view $(BIN)/lint-imports

bench: .venv/test
	$(BIN)/python -m tests.bench
	$(BIN)/python -m tests.bench_tables bits
	$(BIN)/python -m tests.bench_tables split
	$(BIN)/python -m tests.bench_tables points
	$(BIN)/python -m tests.bench_tables observers
	$(BIN)/python -m tests.bench_solvers depth
	$(BIN)/python -m tests.bench_solvers layers
	$(BIN)/python -m tests.bench_solvers textbook

.venv/demo: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e ".[demo]"
	touch $@

.venv/test: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e ".[$(EXTRAS)]"
	touch $@

# The four package folders as one tree: mypy does not see through the editable install.
build/view: FORCE
	rm -rf $@ && mkdir -p $@/ptq
	ln -sfn $(CURDIR)/ptq/* $@/ptq/
	ln -sfn $(CURDIR)/passes $(CURDIR)/calibration $(CURDIR)/runtime $@/ptq/
FORCE:

clean:
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
