# Every target makes .venv first if it is missing: `demo` and `report` with what users need, the others
# also with the tools of developers. `make` alone lists the targets.
PYTHON ?= python3
JOBS ?= 2

# The products are small: OpenMP threads that wait for each other make them slower.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
UNCOMPILED := /tests?/|/plotly/(graph_objs|validators)/|/transformers/models/[b-z]
PIP_FLAGS := --quiet --disable-pip-version-check
PYTEST = HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal $(ARGS)
# Where there is a GPU, problems are loaded onto it; all tests but those of tests/gpu are of the CPU.
ON_CPU = CUDA_VISIBLE_DEVICES=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo report report-full notebooks test test-full test-gpu fuzz check clean docs dist

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(DEV) ## make .venv and install the project and its tools into it

demo: $(STAMP) ## find the IOI circuit of the bundled model and show it
	HF_HUB_OFFLINE=1 $(BIN)/pahq discover ioi --out runs/demo --force
	HF_HUB_OFFLINE=1 $(BIN)/pahq show runs/demo

docs: $(DEV) ## build the documentation: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

report: $(STAMP) ## compare all methods, reduced (minutes on two cores): runs/report/report.html
	HF_HUB_OFFLINE=1 $(BIN)/pahq compare --profile reduced --processes $(JOBS) --out runs/report

report-full: $(STAMP) ## the same at full size (hours): runs/report-full/report.html
	HF_HUB_OFFLINE=1 $(BIN)/pahq compare --profile full --processes $(JOBS) --out runs/report-full

notebooks: $(DEV) ## execute the notebooks and write their outputs back (a minute or two)
	PYTHONPATH=. $(BIN)/python -m notebooks.execute $(ARGS)

test: $(DEV) ## all tests but the whole acceptance grids (ARGS="-k name" to choose)
	$(ON_CPU) $(PYTEST) -m "not full"

test-full: $(DEV) ## all tests
	$(ON_CPU) $(PYTEST)

test-gpu: $(DEV) ## tests that need an NVIDIA GPU (minutes)
	$(PYTEST) tests/gpu

fuzz: $(DEV) ## 100,000 hostile inputs for everything that reads files or arguments (minutes)
	HF_HUB_OFFLINE=1 PYTHONPATH=.:exporters $(BIN)/python -m tests.fuzz $(ARGS)

check: $(DEV) ## lint, formatting, types, direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/test_imports.py

dist: $(DEV) ## sdist and wheel in dist/, checked
	rm -rf dist build
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

clean: ## remove .venv, caches and builds (not runs/)
	rm -rf $(VENV) build dist site *.egg-info .hypothesis .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written last, so that an interrupted install is done again.
$(STAMP) $(DEV): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "pahq-plugin needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true);" \
	    "name another one: make PYTHON=python3.12" >&2; exit 1; }
	@rm -f $@
	@echo "installing into $(VENV) (once; some minutes)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) --no-compile -c constraints.txt -e ".$(if $(filter $(DEV),$@),[dev])"
	@# What pip would do on one core, without what is hardly ever imported; containers often forbid to
	@# compile later. Some packages hold files that are meant for other Pythons.
	@$(BIN)/python -m compileall -qq -j $(JOBS) -x '$(UNCOMPILED)' $(VENV)/lib || true
	@touch $(STAMP) $@
