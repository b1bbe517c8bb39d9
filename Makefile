# Each target does all of its own set-up: a virtual environment in .venv with pinned versions.
#
#   make demo         train on handwritten digits, audit on another machine, try to cheat
#   make test         the tests, the linter, the formatter and the type checker
#   make test-long    the tests that take minutes
#   make bench        measure what is claimed
#   make generated    write the vectors of numerics and the list of operators again
#
# The interpreter is python3 (3.11 or newer); for another one: make demo PYTHON=python3.12
# Further arguments for installing PyTorch, an index with smaller builds for example: PIP_TORCH_ARGS

PYTHON ?= python3
TORCH ?= torch==2.13.0
PIP_TORCH_ARGS ?=

venv := .venv
bin := $(venv)/bin
pip := $(bin)/python -m pip --disable-pip-version-check install --quiet
ready := $(venv)/ready

.DEFAULT_GOAL := help
.PHONY: help demo test test-long bench generated lint format clean

help:
	@sed -n 's/^#   //p' Makefile

demo: $(ready)
	@$(bin)/python examples/demo.py

# One process of tests for each core, four at most; a file's tests stay in one process.
test: lint
	$(bin)/python -m pytest -m "not long" \
	  --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-long: $(ready)
	$(bin)/python -m pytest -m long

bench: $(ready)
	$(bin)/python -m benchmarks

generated: $(ready)
	$(bin)/python -m spec
	$(bin)/python -m spec.shards
	$(bin)/python tests/numerics/test_operator_list.py

lint: $(ready)
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/pyright --pythonpath $(bin)/python

format: $(ready)
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

clean:
	rm -rf $(venv) .pytest_cache .ruff_cache .hypothesis build runs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# PyTorch comes first and alone: with it in place nothing that follows asks for another build.
$(ready): requirements/lock.txt pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, $(PYTHON) is not; try make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments: apt-get install python3-venv"; exit 1; }
	@echo "Setting up $(venv); the first time takes a few minutes."
	@$(PYTHON) -m venv --clear $(venv)
	@$(pip) $(TORCH) $(PIP_TORCH_ARGS)
	@$(pip) -r requirements/lock.txt
	@$(pip) --no-deps --no-build-isolation -e .
	@touch $@
