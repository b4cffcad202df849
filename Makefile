# make run      mounts the tree with the bundled providers, until Ctrl-C
# make test     runs every test
# make build    sets up what the others need, and .venv/bin/ldmfs
# make bench    measures, and writes bench/RESULTS.md
# make lint     types, style
#
# On a Debian machine as root, what is missing is installed; elsewhere it is named.

SHELL = /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.set-up
PYTEST_ARGS ?= -q -n 4

.PHONY: build run test bench lint format clean

build: $(SETUP)

$(SETUP): pyproject.toml setup.py tools/set-up.sh
	PYTHON=$(PYTHON) VENV=$(VENV) tools/set-up.sh
	touch $@

run: build
	$(BIN)/ldmfs mount

test: build
	$(BIN)/pytest $(PYTEST_ARGS)

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: build
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: build
	$(BIN)/python -m pip install --quiet -e '.[bench]'
	$(BIN)/python -m bench

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
