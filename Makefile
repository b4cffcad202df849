# make run      mounts the tree with the bundled providers, until Ctrl-C
# make test     runs every test: test-user and test-kernel
# make build    sets up what the others need, and .venv/bin/ldmfs
# make bench    measures, and writes bench/RESULTS.md
# make lint     types, style
# make chaos    kills containers, consumers and supervisors at random under load, for `SECONDS=…`; `SEED=…` repeats what was decided
#
# make test-user            the tests that need no guest
# make test-kernel          the kernel module's tests, in guests
# make kmod                 builds the modules for Debian's kernel, and tells where they are
# make kmod-check           sparse, coccinelle and checkpatch on the sources
# make kmod-install         installs them for the kernel that runs
# make vm                   a shell in a guest with the modules loaded and ldmfs mounted; `PROVIDER=file.c` is loaded too
# make test-kernel-debug    the guests' tests and the fuzzer on a kernel that finds mistakes; builds it at first
#
# On a Debian machine as root, what is missing is installed; elsewhere it is named.

SHELL = /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.set-up
PYTEST_ARGS ?= -q -n 4
# Guests emulate two processors each.
GUEST_ARGS ?= -q -n 2

FUZZ_SECONDS ?= 60
PROVIDER ?=
SECONDS ?= 60
SEED ?=

.PHONY: build run test test-user chaos bench lint format clean kernel-packages test-kernel kmod kmod-check kmod-install vm test-kernel-debug

build: $(SETUP)

$(SETUP): pyproject.toml setup.py tools/set-up.sh tools/packages.sh
	PYTHON=$(PYTHON) VENV=$(VENV) tools/set-up.sh
	touch $@

run: build
	$(BIN)/ldmfs mount

test: test-user test-kernel

test-user: build
	$(BIN)/pytest $(PYTEST_ARGS) --ignore=tests/kernel

chaos: build
	cd tests && ../$(BIN)/python -m chaos --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

test-kernel: build kernel-packages
	$(BIN)/pytest $(GUEST_ARGS) tests/kernel

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

# What guests need; where it cannot be installed, their tests say so and are skipped.
kernel-packages:
	-tools/packages.sh $$($(PYTHON) -m kmod.vm packages)

kmod: kernel-packages
	$(PYTHON) -m kmod.vm build $(PROVIDER)

kmod-check:
	tools/packages.sh $$($(PYTHON) -m kmod.vm packages check)
	$(PYTHON) -m kmod.vm check

kmod-install:
	tools/kmod-install.sh

vm: build kernel-packages
	$(BIN)/python -m kmod.vm shell $(PROVIDER)

test-kernel-debug: build
	tools/packages.sh $$($(PYTHON) -m kmod.vm --kernel debug packages)
	LDMFS_TEST_KERNEL=debug FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/pytest $(GUEST_ARGS) tests/kernel

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
