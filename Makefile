# Bare `make` lists the targets. Nothing but Python 3.11, its venv module and make is assumed.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Workers for pytest, more than cores since most of them wait for something; the wire tests give each hub a loopback
# address of its own, so they run side by side.
JOBS ?= 6

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

setup: $(READY)  ## Create the virtual environment and install Slipway into it

$(READY): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make setup: no $(PYTHON) found; install Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make setup: $(PYTHON) is older than 3.11; set PYTHON=python3.11"; exit 1; }
	@echo "Setting up $(VENV) (about a minute, once)"
	@$(PYTHON) -m venv $(VENV)
	@{ $(BIN)/python -m pip install --upgrade pip && $(BIN)/python -m pip install --editable '.[dev]'; } \
		> $(VENV)/setup.log 2>&1 || { tail -n 20 $(VENV)/setup.log; echo "make setup: pip failed; the whole of it is in $(VENV)/setup.log"; exit 1; }
	@touch $@

demo: $(READY)  ## Run the main job on this machine (KEEP=1 leaves it running)
	$(BIN)/python -m simulators.demo $(if $(KEEP),--keep) $(DEMO_FLAGS)

demo-stop: $(READY)  ## Stop what `make demo KEEP=1` left running
	$(BIN)/python -m simulators.demo --stop

# The tests start hundreds of processes, each of which would compile the sources anew where the shell forbids bytecode.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(READY)  ## Run every test that needs no root, Docker or account
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(PYTEST_FLAGS)

docker: $(READY)  ## Run the tests that need a container engine (see docs/testing.md)
	SLIPWAY_TEST_DOCKER=1 $(BIN)/python -m pytest tests/docker $(PYTEST_FLAGS)

lint: $(READY)  ## Formatting, ruff, mypy --strict and the import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## Put every file into the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## Measure, and print what docs/performance.md records
	$(BIN)/python -m benchmarks

docs: $(READY)  ## Write the generated pages: command lines, state tables, schemas
	$(BIN)/python -m docs.generate

check: lint test  ## What a commit must pass

clean:  ## Remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .slipway-demo

.PHONY: help setup demo demo-stop test docker lint format bench docs check clean
