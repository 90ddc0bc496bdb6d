# Everything a contributor needs. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.hyperprune-installed

# Idle OpenMP threads sleep rather than spin: with one other busy process on a machine of two cores,
# spinning makes training four to ten times slower.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint format clean bench-rules bench-hyperize zoo

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP)  ## make a virtual environment with everything in it (again only when pyproject.toml changes)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(STAMP)  ## prune a ResNet-20 trained on real handwritten digits to half its MACs (under 4 minutes)
	$(BIN)/hyperprune demo

test: lint  ## lint, then run every test with a coverage report
	$(BIN)/python -m pytest --cov --cov-report=term

lint: $(STAMP)  ## check style, format, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench-rules: $(STAMP)  ## compare search rules and Torch-Pruning on CIFAR-10 (needs ../shared/data; about 45 minutes)
	$(BIN)/python benchmarks/rules.py
	$(BIN)/python benchmarks/rules.py --table

bench-hyperize: $(STAMP)  ## time hyperize beside torch.export
	$(BIN)/python benchmarks/hyperize.py --out benchmarks/results/hyperize.json

zoo: $(STAMP)  ## hyperize, export and prove every architecture on the list (resumable; hours)
	$(BIN)/python benchmarks/zoo.py
	$(BIN)/python benchmarks/zoo.py --report

format: $(STAMP)  ## rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove caches and builds; the virtual environment stays
	rm -rf build dist *.egg-info .coverage .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .grimp_cache
	find hyperprune tests -name __pycache__ -type d -prune -exec rm -rf {} +
