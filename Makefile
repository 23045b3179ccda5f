# What people type. Every target does its own set-up; it needs Python 3.10+ and make, nothing else.
#
#   make demo       draw pictures, train a small model on them, ingest, search: the whole chain
#   make test       the tests, in minutes, without network, GPU or server
#   make check      lint, types, and which package may import which
#   make docs       write docs/cli.md from the help of the commands; run the commands of all pages
#   make test-slow  what needs minutes, or gigabytes of memory and disk
#   make clean      forget the environment and the demo

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
TRAIN  ?= 4000
TEST   ?= 200
SEED   ?= 0
DEMO   := build/demo-$(TRAIN)-$(TEST)-$(SEED)

.PHONY: demo test test-slow check docs clean

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "imret needs Python 3.10 or newer; name one: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "Could not make a virtual environment (on Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	@echo "Installing imret into $(VENV), once. On Linux PyTorch brings CUDA: some minutes, and about 6 GB on disk."
	@echo "Without an NVIDIA GPU a third of that will do: docs/install.md."
	@$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@
	@echo "Installed. For the command imret in this terminal: source $(BIN)/activate"

demo: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" imret demo $(DEMO) --train $(TRAIN) --test $(TEST) --seed $(SEED) --tour

test: $(READY)
	@$(BIN)/python -m pytest -q -n auto --maxprocesses 4

test-slow: $(READY)
	@$(BIN)/python -m pytest -q -m slow

check: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo --no-cache

docs: $(READY)
	@$(BIN)/python -m imret.cli.reference > docs/cli.md
	@$(BIN)/python -m pytest -q tests/docs

clean:
	rm -rf $(VENV) build *.egg-info
