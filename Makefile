# Two commands matter: `make video` and `make test`. Both set up .venv from the locks first; a second call skips that.

PYTHON ?= python3
VENV ?= .venv
PROMPT ?= a small red ball bouncing on a gray background
SEED ?=
ARGS ?=
WORKERS ?= 2
TORCH := 2.13.0

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
BASE := $(VENV)/.base-installed
TEST := $(VENV)/.test-installed

export PROMPT

# Threads that wait give their core away. By default they spin, and beside another program on the same cores small networks
# then take many times as long.
export OMP_WAIT_POLICY ?= PASSIVE

# Tests start many programs, and what Python compiled for one of them serves the next.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help video test lint fix types slow chaos tiny evaluate bench docs lock clean

help: ## this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

video: $(BASE) ## a video from the built-in model: PROMPT="..." SEED=7 ARGS="..."; the last line is its path
	@$(BIN)/daifuku generate "$$PROMPT" $(if $(SEED),--seed $(SEED)) $(ARGS)

test: lint types ## lint, types and all fast tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

lint: $(TEST) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(TEST) ## pyright
	$(BIN)/pyright --pythonpath $(BIN)/python

fix: $(TEST) ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

slow: $(TEST) ## the tests marked slow
	$(BIN)/python -m pytest -m slow $(ARGS)

chaos: $(TEST) ## kill server and workers at random and at every moment, and check the promise: ARGS="--jobs 100 --kills 10"
	$(BIN)/python -m tests.chaos $(ARGS)

# A step of training asks for the same memory again and again: it is kept, in large pages. And its threads wait by spinning.
tiny: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
tiny: export MALLOC_MMAP_THRESHOLD_ ?= 4294967296
tiny: export MALLOC_TRIM_THRESHOLD_ ?= 17179869184
tiny: $(BASE) ## train the built-in model, in two worlds; a stopped run goes on where it was
	env -u OMP_WAIT_POLICY $(BIN)/daifuku tiny --folder runs/tiny/first --output runs/tiny/first/model $(ARGS)
	env -u OMP_WAIT_POLICY $(BIN)/daifuku tiny --settings examples/built_in/larger_world.toml $(ARGS)

evaluate: $(BASE) ## measure the built-in model on prompts it never saw
	$(BIN)/daifuku evaluate world $(ARGS)

bench: $(TEST) ## measure speed and memory beside diffusers, and refresh docs/performance.md: ARGS="'dit_*'"
	$(BIN)/daifuku bench $(ARGS)
	$(BIN)/python docs/performance.py

$(BASE): requirements/base.lock pyproject.toml | $(BIN)/python
	@echo "Installing the locked packages into $(VENV) ..." >&2
	@$(PIP) -r requirements/base.lock >&2
	@$(PIP) --no-deps --no-build-isolation --editable . >&2
	@touch $@

$(TEST): requirements/test.lock $(BASE)
	@echo "Installing what the tests need ..." >&2
	@$(PIP) -r requirements/test.lock >&2
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "Daifuku needs Python 3.11, 3.12 or 3.13; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
		"Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "This Python cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) >&2

docs: $(TEST) ## measure the built-in model again, and refresh the figures and pictures of the pages
	$(BIN)/python docs/refresh.py
	$(BIN)/python -m tests.browser.pictures

lock: ## write requirements/*.lock again from pyproject.toml, in a throw-away environment
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet torch==$(TORCH)
	.venv-lock/bin/pip install --quiet 'setuptools>=77' --editable .
	.venv-lock/bin/pip freeze --all --exclude-editable --exclude pip | sed -E $(PORTABLE) > requirements/base.lock
	.venv-lock/bin/pip install --quiet --editable '.[test]'
	{ echo '-r base.lock'; .venv-lock/bin/pip freeze --all --exclude-editable --exclude pip | sed -E $(PORTABLE) \
		| grep -vxFf requirements/base.lock; } > requirements/test.lock
	rm -rf .venv-lock

# PyTorch itself names the CUDA packages that belong to it, so the locks hold for machines with and without a GPU.
PORTABLE := 's/\+cpu$$//; /^(nvidia-|cuda-|triton)/d'

clean: ## remove what the other targets made, .venv included
	rm -rf $(VENV) .venv-lock build dist .pytest_cache .ruff_cache src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
