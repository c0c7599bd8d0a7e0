# Every developer command. Each makes the virtual environment it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	# torch first: with it installed no later range pulls another build
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

setup: $(VENV)/ready ## make .venv with everything pinned

check: setup ## format, lint, types, import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## format, and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: setup ## the tests, in a few minutes
	# three at a time: half of a test is waiting
	$(BIN)/pytest -n 3 -m "not gpu and not network and not slow"

test-slow: setup ## the tests that take longer
	$(BIN)/pytest -m "slow and not gpu and not network"

demo: setup ## the whole loop on a toy world, offline, in minutes: SFT, reward model, PPO, DPO, and what came of them
	$(BIN)/rlhf demo

schema: setup ## derive the recipe keys from the installed TRL
	$(BIN)/python -m rlhf_cli.schema.generate

bench: setup ## the numbers in the README
	$(BIN)/python benchmarks/start.py

clean: ## remove what was made here, the demo too
	rm -rf $(VENV) build dist demo .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

.PHONY: help setup check format test test-slow demo schema bench clean
