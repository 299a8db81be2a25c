# `make help` lists the targets. Each sets up .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A process a core, each with one thread; a file's tests stay together, for the runs that they share.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test test-all check lint docs options examples results clean

help: ## Show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(READY): pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(READY)

demo: $(READY) ## Prune a network on real images: train, search, compare, slim, fine-tune (three to five minutes on two cores)
	$(BIN)/python examples/demo.py

test: $(READY) ## Run the tests, on up to four cores (four to ten minutes on two)
	$(PYTEST)

test-all: $(READY) ## Run all tests, the slow ones too
	$(PYTEST) -m ''

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY) ## Build the documentation into site/; a broken link is an error
	$(BIN)/mkdocs build --strict --quiet

check: lint test ## ruff, mypy, tests

options: $(READY) ## Write docs/options.md from the options, objectives, allocations and algorithms
	$(BIN)/python docs/make_options.py

examples: $(READY) ## Fill the code blocks of the pages from the programs in examples/
	$(BIN)/python docs/fill_examples.py

results: $(READY) ## Write benchmarks/RESULTS.md from benchmarks/results/*.json
	$(BIN)/python benchmarks/tables.py

clean: ## Remove caches (not .venv, not runs)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist site
