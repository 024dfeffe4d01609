# kedit-lab: `make help` lists the targets. Only the installation needs a network.

CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)

PYTHON ?= python3
VENV ?= .venv
# more words for pip install, for example a mirror with smaller builds
PIP_ARGS ?=
# more words for JupyterLab, for example --no-browser --port 8890
LAB_ARGS ?=
# more words for pytest, for example -k unit
TEST_ARGS ?=
# tests and notebooks that run side by side, each on one thread
WORKERS ?= $(if $(filter 1,$(CORES)),1,2)

# Small models gain nothing from more threads than this, and notebooks run beside each other.
OMP_NUM_THREADS ?= $(if $(filter 1,$(CORES)),1,2)
export OMP_NUM_THREADS

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install lab tour test lint format notebooks clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(STAMP) ## create .venv and install the tested versions (the other targets do it too, once)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[test]'
	touch $@

lab: $(STAMP) ## open JupyterLab on the first notebook
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb $(LAB_ARGS)

tour: $(STAMP) ## run the collision study without a browser; writes its table and figure
	$(BIN)/kedit-lab tour

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test: export HF_HUB_OFFLINE = 1
test: export OMP_NUM_THREADS = 1
test: lint ## ruff, the tests, then every notebook against its saved outputs
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile tests $(TEST_ARGS)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --nbval --nbval-current-env --nbval-sanitize-with tests/notebooks/nbval_sanitize.cfg notebooks

format: $(STAMP) ## let ruff repair and format the code, notebooks included
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebooks: export HF_HUB_OFFLINE = 1
notebooks: $(STAMP) ## run every notebook from a clean kernel and save its outputs
	$(BIN)/python tests/notebooks/execute.py

clean: ## remove the environment, caches and builds
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find . -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
