# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Threads that spin long while they wait make training many times slower beside any other busy process.
export GOMP_SPINCOUNT ?= 1000

.PHONY: help demo test test-slow test-timm lint format clean
.DEFAULT_GOAL := help

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.installed ## install, train on digits, evaluate, predict, explain
	$(BIN)/python examples/demo.py

test: $(VENV)/.installed-dev ## install what tests need, run the tests
	$(BIN)/python -m pytest -n 4 --dist worksteal

test-slow: $(VENV)/.installed-dev ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

test-timm: $(VENV)/.installed-dev ## timm's own model tests on this project's networks
	$(BIN)/python scripts/timm_tests.py

lint: $(VENV)/.installed-dev ## format, style and type checks
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/ruff check --no-cache .
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environment and the caches
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist

# The marker files make a second `make` install nothing again.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) --editable '.[dev]'
	@touch $@
