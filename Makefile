# Two commands set up all that they need on a fresh machine with Python 3.10+: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := train,eval,demo,export,dev
# Tests take one thread; a third process works while browsers, killed runs and the Hub keep another one waiting.
WORKERS := -n 3 --dist worksteal

# What depends on arithmetic, and the processors that one machine can emulate: other instructions, other threads, and by
# AIR_ROUNDING_SEED other rounding (tests/rounding).
NUMBERS := tests/test_golden.py tests/test_optim.py tests/test_model.py tests/test_solve.py
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
# Threads that spin while they wait take the cores from the other worker.
THREADS := AIR_TEST_THREADS=2 OMP_WAIT_POLICY=PASSIVE
PROCESSORS := "$(AVX2)" "ATEN_CPU_CAPABILITY=default" "$(AVX2) $(THREADS)" "$(THREADS)" \
	$(foreach seed,1 2 3 4 5,"AIR_ROUNDING_SEED=$(seed)")

.PHONY: quickstart test lint format clean test-slow test-numbers test-processors test-conformance release help

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

# The stamp depends on pyproject.toml, so a changed dependency reinstalls and nothing else does.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "AIR needs Python 3.10 or newer, this is %s; run: make PYTHON=python3.11 ..." % sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[$(EXTRAS)]"
	touch $@

quickstart: $(VENV)/.installed ## train a small AIR on 6x6 Sudoku, evaluate, solve and draw (about 3 minutes, CPU)
	$(BIN)/python scripts/quickstart.py

test: $(VENV)/.installed lint ## lint and run the tests (CPU)
	$(BIN)/python -m pytest $(WORKERS)

test-numbers: $(VENV)/.installed ## the numeric tests on every processor that can be emulated here
	for processor in $(PROCESSORS); do \
		echo "$$processor"; env $$processor $(BIN)/python -m pytest $(NUMBERS) -k "not compiles and not installed" $(WORKERS) || exit 1; \
	done

test-processors: test-numbers ## that, and all tests with other rounding and with fewer instructions
	AIR_ROUNDING_SEED=6 $(BIN)/python -m pytest $(WORKERS)
	$(AVX2) $(BIN)/python -m pytest $(WORKERS)

test-slow: $(VENV)/.installed ## the slow tests as well
	$(BIN)/python -m pytest -m "slow and not gpu"

test-conformance: $(VENV)/.installed ## transformers' own common tests against AirModel (downloads them; skips if it cannot)
	$(BIN)/python -m pytest tests/conformance -m "" -rs -W ignore --timeout=600 || test $$? -eq 5

release: $(VENV)/.installed ## wheel and sdist in dist/, checked in an empty environment
	rm -rf build dist
	$(BIN)/python -m build --outdir dist .
	rm -rf build
	$(BIN)/python publishing/check_release.py dist

lint: $(VENV)/.installed ## ruff, check only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed ## ruff, rewriting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the virtual environment and build folders
	rm -rf $(VENV) build dist *.egg-info
