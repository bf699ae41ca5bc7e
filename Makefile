# `make` lists the targets. All of them work in .venv, which is made when first needed
# and brought up to date when the requirements change.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
WORKFLOW_READY := .venv/.workflow_ready
CORES ?= 2

PYTHON37 ?= python3.7
# pyenv's python3.7 fails where no 3.7 is chosen, so its versions are tried by path
FOUND37 = $(shell for p in "$(PYTHON37)" "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.7.*/bin/python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 7))' 2>/dev/null && echo "$$p" && break; done)
TF1_READY := .venv-tf1/.ready

.DEFAULT_GOAL := help
.PHONY: help garage report optional reproduce reproduce-smoke test test-fast docs tf1 test-tf1 clean

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1\t/p' Makefile

garage: $(READY)  ## train GARAGE on the embedded blood cells and draw synthetic ones
	$(BIN)/python data_generation/garage.py

optional: $(READY)  ## add what some controls and tests need: scvi-tools, scib-metrics
	$(BIN)/python -m pip install --quiet -r requirements_optional.txt

report: $(READY)  ## write a page about the run of `make garage`, or about RUN=folder
	$(BIN)/python analysis/report.py --run $(or $(RUN),results/synthetic/pbmc68k/garage/seed42)

reproduce: $(WORKFLOW_READY)  ## data, every run, table and figure, as workflow/config.yaml says; CORES=8 for more at a time
	$(BIN)/python -m snakemake --cores $(CORES) --keep-going all

reproduce-smoke: $(WORKFLOW_READY)  ## the same on toy cells in a copy, results/smoke
	rm -rf results/smoke
	$(BIN)/python workflow/smoke.py --cores $(CORES)

test: $(READY)  ## lint, format, types and every test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n $(CORES) --dist loadfile

test-fast: $(READY)  ## the tests that take seconds
	$(BIN)/pytest -n $(CORES) --dist loadfile -m "not slow"

docs: $(READY)  ## build the documentation in docs/_build/html; a warning is an error
	$(BIN)/python -m pip install --quiet -r docs/requirements.txt
	$(BIN)/sphinx-build -q -W --keep-going docs docs/_build/html

tf1:  ## set up .venv-tf1 for the TensorFlow-1 references, where there is a Python 3.7
	@if [ -n "$(FOUND37)" ]; then $(MAKE) --no-print-directory $(TF1_READY); \
	else echo "no Python 3.7 here: the TensorFlow-1 references are skipped; name one with PYTHON37=/path" >&2; fi

test-tf1: $(READY) tf1  ## check the baselines against those references
	$(BIN)/pytest -rs tests/test_tf1_parity.py

clean:  ## remove .venv, .venv-tf1 and caches; data and results stay
	rm -rf .venv .venv-tf1 *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# written last, so an interrupted installation is taken up again
$(READY): requirements_garage.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null || \
	{ echo "error: $(PYTHON) is not Python 3.11 or 3.12: name one that is, as in make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements_garage.txt
	@touch $@

$(WORKFLOW_READY): requirements_workflow.txt $(READY)
	$(BIN)/python -m pip install --quiet -r requirements_workflow.txt
	@touch $@

$(TF1_READY): requirements_benchmarking.txt
	$(FOUND37) -m venv .venv-tf1
	.venv-tf1/bin/python -m pip install --quiet -r requirements_benchmarking.txt
	@touch $@
