PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo test test-long test-slurm lint format clean

demo: $(READY)  ## the whole job on the built-in task
	$(BIN)/python search.py +experiment=demo

test: lint  ## lint, types, imports and the quick tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-long: $(READY)  ## the tests that take minutes
	$(BIN)/python -m pytest -m long -n 2 --dist loadfile

test-slurm: $(READY)  ## a search on a real SLURM, which this starts
	PATH="$(CURDIR)/$(BIN):$$PATH" tests/slurm.sh $(BIN)/python -m pytest -m slurm

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Debian keeps venv's ensurepip in a package of its own.
$(READY): setup.cfg setup.py pyproject.toml constraints.txt
	$(PYTHON) -c "import ensurepip" || { apt-get update && apt-get install --yes python3-venv; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,gp]'
	touch $(READY)

clean:
	rm -rf $(VENV)
