# Two commands are the whole set-up: `make demo` and `make test`. Each makes .venv when it is missing or stale.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# The first interpreter that is new enough; `make venv PYTHON=python3.12` picks another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
# More arguments for pip, such as PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" (torch without CUDA).
PIP_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Tests at a time; the slow ones wait for processes and sockets more than they compute.
WORKERS ?= 2

# One thread per process: the models are small, nodes run beside each other, and results do not depend on the machine.
export OMP_NUM_THREADS ?= 1
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help venv demo test test-plain test-fast lint bench format clean

help:  ## show this help
	@awk 'BEGIN {FS = ":.*##"} /^[a-z-]+:.*##/ {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP)  ## make .venv and install flsparse with the tested versions; a C compiler, if any, makes the kernel

$(STAMP): pyproject.toml constraints.txt $(wildcard flsparse/codec/native/*)
	@test -n "$(PYTHON)" || { echo "flsparse needs Python 3.11 or newer; none was found (make venv PYTHON=/path/to/python3)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)  ## dense FedAvg, Top-K and SparsyFed on handwritten digits, with a table of accuracy and bytes
	$(BIN)/flsparse -m experiment=demo strategy=fedavg,topk,sparsyfed
	@echo; echo "Try next:"
	@echo "  source $(BIN)/activate"
	@echo "  flsparse --help"
	@echo "  flsparse -m strategy.sparsity=0.9,0.98,0.99     what more sparsity costs"
	@echo "  flsparse -m experiment=demo strategy=topk,sparsyfed partition.alpha=0.1   nodes that differ more"
	@echo "  flsparse dry_run=true                            the bytes a run would send"

test: lint  ## format, lint, types, layers, all tests
	$(BIN)/pytest -n $(WORKERS) --dist worksteal

test-plain: $(STAMP)  ## the quick tests as on an old processor: no optional CPU feature, no compiled kernel
	$(BIN)/python tests/processors.py $(BIN)/pytest -n $(WORKERS) --dist worksteal -m 'not slow and not e2e'

test-fast: lint  ## the same without the tests that need minutes, Ray or sockets
	$(BIN)/pytest -n $(WORKERS) -m 'not slow and not e2e'

lint: $(STAMP)  ## format, lint, types and layers, without the tests
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(STAMP)  ## measure and print ratios; the sweeps of hours are the other files of benchmarks/
	@set -e; for benchmark in benchmarks/bench_*.py; do echo "== $$benchmark"; $(BIN)/python $$benchmark; done

format: $(STAMP)  ## format the code and mend what ruff can mend
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:  ## remove .venv, caches and build outputs; run folders stay
	rm -rf $(VENV) build dist *.egg-info flsparse/codec/_kernel.* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
