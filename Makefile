# README's two commands, and what they are made of. Everything happens in .venv; nothing else is touched.
PYTHON ?= python3
EXTRAS ?= test,demo
BIN := .venv/bin
# The versions that figures and tests belong to; `make ... CONSTRAINTS=` takes the newest that pyproject.toml allows.
CONSTRAINTS ?= constraints.txt

# Random tests are repeated with `make ... SEED=`.
SEED ?= $(shell date +%Y%m%d)

.PHONY: demo test check nightly bench native kernels sanitized edge fuzz fuzz-inputs kills clean

demo: $(if $(wildcard .venv/test),.venv/test,.venv/demo)  # what the tests run in has all that the demo needs
	$(BIN)/python -m ptq.demo

test: .venv/test check
	$(BIN)/pytest -q -p no:cacheprovider
	$(BIN)/pytest -q -p no:cacheprovider -p no:randomly --doctest-modules ptq/core ptq/analysis/metrics.py

nightly: .venv/test  # what takes minutes and rarely finds anything: docs/nightly.md
	$(BIN)/pytest -q -p no:cacheprovider -m nightly

check: .venv/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -p ptq
	$(BIN)/lint-imports

bench: .venv/test
	$(BIN)/python -m tests.bench
	$(BIN)/python -m tests.bench_tables bits
	$(BIN)/python -m tests.bench_tables split
	$(BIN)/python -m tests.bench_tables points
	$(BIN)/python -m tests.bench_tables observers
	$(BIN)/python -m tests.bench_native
	$(BIN)/python -m tests.bench_solvers depth
	$(BIN)/python -m tests.bench_solvers layers
	$(BIN)/python -m tests.bench_solvers textbook

# pip says what it does: a terminal that is silent for minutes looks like one that hangs.
PIN := $(if $(CONSTRAINTS),-c $(CONSTRAINTS),-U --upgrade-strategy eager)
INSTALL := CMAKE_ARGS="$(CMAKE_ARGS) -DPTQ_WERROR=ON" $(BIN)/pip install $(PIN) -e

native: .venv/test  # builds the operator library again, after changes in runtime/cpp
	$(INSTALL) . --no-deps
	$(BIN)/python -c "from ptq.runtime import native_path, native_status; print(native_status()); assert native_path()"

kernels:  # product kernels against what the processor's dot products can do
	cmake -S runtime/cpp -B build/native -DPTQ_WERROR=ON
	cmake --build build/native --target ptq_bench
	build/native/ptq_bench

fuzz:  # broken operators for ten minutes, sanitized
	PTQ_FUZZ_SECONDS=600 $(MAKE) sanitized

fuzz-inputs: .venv/test  # broken models, data, recipes and options for ten minutes; what fails is kept in build/found
	$(BIN)/python -m tests.trust.fuzz --seconds 600 --seed $(SEED) --keep build/found

kills: .venv/test  # 120 kills at random instants, and one before every call that changes a file
	PTQ_KILLS=120 PTQ_SEED=$(SEED) $(BIN)/pytest -q -p no:cacheprovider -m '' tests/trust/test_faults.py

sanitized: .venv/test  # the kernels' tests once more, under AddressSanitizer and UndefinedBehaviorSanitizer
	cmake -S runtime/cpp -B build/sanitized -DPTQ_SANITIZE=ON -DPTQ_WERROR=ON
	cmake --build build/sanitized
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
		PTQ_NATIVE_LIBRARY=build/sanitized/_ptqops.so $(BIN)/pytest -q -p no:cacheprovider tests/runtime

edge: .venv/test  # exported models in Node, a browser, C and on arm64; Debian's packages are installed if need be
	PATH="$(CURDIR)/$(BIN):$$PATH" tests/edge/tools.sh build/edge
	-runtime/cpp/fetch_headers.sh build/ort  # where they cannot be had, the C program is not compiled
	PTQ_EDGE=build/edge $(BIN)/pytest -q -p no:cacheprovider tests/edge

.venv/demo: pyproject.toml .venv/versions  # Python alone: nothing is compiled for the demo
	@echo "1 of 2: a virtual environment in .venv"
	$(PYTHON) -m venv .venv
	@echo "2 of 2: ptq and what it needs, some 60 MB to download"
	$(INSTALL) ".[demo]" --config-settings=wheel.cmake=false --config-settings=wheel.platlib=false
	touch $@

.venv/test: pyproject.toml .venv/versions
	@echo "1 of 2: a virtual environment in .venv"
	$(PYTHON) -m venv .venv
	@echo "2 of 2: ptq, its operator library if there is a compiler, and what the tests need"
	$(INSTALL) ".[$(EXTRAS)]"
	touch $@

# Other versions asked for, or constraints.txt edited: what is installed is stale.
.venv/versions: FORCE
	@mkdir -p $(@D)
	@echo "$(CONSTRAINTS)" | cat - $(CONSTRAINTS) | cmp -s - $@ || echo "$(CONSTRAINTS)" | cat - $(CONSTRAINTS) > $@
FORCE:

clean:
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
