# Everything a contributor needs. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.hyperprune-installed
AUDIT := $(VENV)-audit
OLDEST ?= python3.10
NEWEST ?= python3.13

# Idle OpenMP threads sleep rather than spin: with one other busy process on a machine of two cores,
# spinning makes training four to ten times slower.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help venv demo test coverage lint format clean bench-rules bench-search bench-search-report bench-speed bench-dhp bench-hyperize bench-onnx bench-latency bench-latency-budget zoo bench-checkpoints nightly
.PHONY: bench-restoration example-super-resolution example-denoising example-cifar example-timm
.PHONY: docs dist smoke versions audit mutation

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP)  ## make a virtual environment with everything in it (again only when pyproject.toml changes)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(STAMP)  ## prune a ResNet-20 trained on real handwritten digits to half its MACs (under 4 minutes)
	$(BIN)/hyperprune demo

test: lint  ## lint, then run every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

coverage: $(STAMP)  ## run every test with a report of the branches that none takes (half as long again as make test)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --cov --cov-report=term

lint: $(STAMP)  ## check style, format, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench-rules: $(STAMP)  ## compare search rules and Torch-Pruning on ResNet-20 alone (needs ../shared/data; about 45 minutes)
	$(BIN)/python -m benchmarks.rules
	$(BIN)/python -m benchmarks.rules --table

bench-search: $(STAMP)  ## prune four CIFAR-10 networks by every method (needs ../shared/data; resumable; days on a CPU)
	$(BIN)/python -m benchmarks.search
	$(BIN)/python -m benchmarks.search --report

bench-search-report: $(STAMP)  ## write docs/benchmarks.md and its picture from the rows that are finished
	$(BIN)/python -m benchmarks.search --report

bench-hyperize: $(STAMP)  ## time hyperize beside torch.export
	$(BIN)/python benchmarks/hyperize.py --out benchmarks/results/hyperize.json

bench-speed: $(STAMP)  ## time training steps, hyperize, export and search beside dense and Torch-Pruning (resumable; two hours)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.speed
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.speed --report

bench-dhp: $(STAMP)  ## time training steps of ResNet-56 with DHP as published, as ours, and lean (a minute)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.dhp

bench-checkpoints: $(STAMP)  ## save twenty models, load them in fresh processes, compare bit for bit (about 15 minutes)
	$(BIN)/python benchmarks/checkpoints.py
	$(BIN)/python benchmarks/checkpoints.py --table

bench-onnx: $(STAMP)  ## export twenty slim networks to ONNX and compare with ONNX Runtime (about 10 minutes)
	$(BIN)/python benchmarks/deploy.py onnx --again
	$(BIN)/python benchmarks/deploy.py report

bench-latency: $(STAMP)  ## time slim networks in ONNX Runtime (about 5 minutes; let the machine do nothing else)
	$(BIN)/python benchmarks/deploy.py latency --again
	$(BIN)/python benchmarks/deploy.py report

bench-restoration: $(STAMP)  ## super-resolution and denoising at 40 % of the MACs (needs ../shared/data; resumable; most of a day on a CPU)
	$(BIN)/python -m benchmarks.restoration
	$(BIN)/python -m benchmarks.restoration --table

example-super-resolution: $(STAMP)  ## EDSR on photographs: dense, pruned and rivals; a table and a picture (minutes)
	$(BIN)/python -m examples.super_resolution.train

example-denoising: $(STAMP)  ## DnCNN on photographs, the same
	$(BIN)/python -m examples.denoising.train

example-cifar: $(STAMP)  ## ResNet-20 on handwritten digits: dense, pruned and rivals; a table (minutes)
	$(BIN)/python -m examples.classification.cifar

example-timm: $(STAMP)  ## a timm model on a folder of images (minutes)
	$(BIN)/python -m examples.classification.timm_folder

nightly: $(STAMP)  ## hyperize, prune and export 5,000 random networks, compared with zeroing by hand (resumable; two hours)
	$(BIN)/python -m benchmarks.random_networks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m nightly

mutation: $(STAMP)  ## change budget, coupling and slim in 2,200 places: what does no test notice? (resumable; half an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.mutation

bench-latency-budget: $(STAMP)  ## prune to a latency and measure it, by both clocks (about 10 minutes)
	$(BIN)/python benchmarks/latency_budget.py --clock cpu
	$(BIN)/python benchmarks/latency_budget.py --clock wall

zoo: $(STAMP)  ## hyperize, export and prove every architecture on the list (resumable; hours)
	$(BIN)/python benchmarks/zoo.py
	$(BIN)/python benchmarks/zoo.py --report

docs: $(STAMP)  ## write the API reference, the licences and the tutorial's pictures again
	$(BIN)/python docs/scripts/api_pages.py
	$(BIN)/python docs/scripts/licenses.py
	$(BIN)/python docs/scripts/pictures.py

dist: $(STAMP)  ## build wheel and sdist into dist/
	rm -rf build dist
	$(BIN)/python -m build --no-isolation

smoke: dist  ## install the wheel in an environment of its own and run the README's first snippet (a minute)
	$(BIN)/python tests/smoke.py dist/*.whl

versions: $(STAMP)  ## fast tests with the oldest and the newest libraries (OLDEST=python3.10 NEWEST=python3.13; 12 GB)
	$(BIN)/python tests/versions.py oldest --python $(OLDEST)
	$(BIN)/python tests/versions.py newest --python $(NEWEST)

audit: $(STAMP)  ## ask for known weaknesses of what is installed (needs the advisory service)
	test -x $(AUDIT)/bin/pip-audit || ($(PYTHON) -m venv $(AUDIT) && $(AUDIT)/bin/pip install --quiet pip-audit)
	$(AUDIT)/bin/pip-audit --path $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') --skip-editable --strict

format: $(STAMP)  ## rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove caches and builds; the virtual environment stays
	rm -rf build dist *.egg-info .coverage .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .grimp_cache
	find hyperprune tests -name __pycache__ -type d -prune -exec rm -rf {} +
