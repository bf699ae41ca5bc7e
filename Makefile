# `make` lists the targets. All of them work in .venv, which is made when first needed
# and brought up to date when the requirements change.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help garage optional test test-fast clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile

garage: $(READY)  ## train GARAGE on the embedded blood cells and draw synthetic ones
	$(BIN)/python data_generation/garage.py

optional: $(READY)  ## add what some controls and tests need: scvi-tools, scib-metrics
	$(BIN)/python -m pip install --quiet -r requirements_optional.txt

test: $(READY)  ## lint, format, types and every test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

test-fast: $(READY)  ## the tests that take seconds
	$(BIN)/pytest -m "not slow"

clean:  ## remove .venv and caches; data and results stay
	rm -rf .venv *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# written last, so an interrupted installation is taken up again
$(READY): requirements_garage.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null || \
	{ echo "error: $(PYTHON) is not Python 3.11 or 3.12: name one that is, as in make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements_garage.txt
	@touch $@
