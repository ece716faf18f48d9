# Two commands: `make demo` runs the whole path, `make test` proves it. Each sets up .venv if it is not there.
# pip's own environment variables and configuration are honoured; no package address is written here.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
VENV := .venv
BIN := $(VENV)/bin
# the stamp changes with the pins, so a changed requirements.txt installs again and an unchanged one does not
STAMP := $(VENV)/.installed-$(shell cat requirements.txt pyproject.toml | sha256sum | cut -c1-12)
# torch and numpy pools larger than the machine make everything crawl
export OMP_NUM_THREADS ?= $(shell n=$$(nproc); echo $$(( n < 4 ? n : 4 )))
export HF_HUB_OFFLINE := 1

.PHONY: help setup demo test lint clean

help: ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## create .venv with the pinned packages

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 is needed, found: $$($(PYTHON) --version 2>/dev/null || echo none). Install it (Debian 12, Ubuntu 22.04: apt install python3.11 python3.11-venv;" \
	    "others: the deadsnakes PPA or pyenv) or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/pip || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV) || { echo "The virtual environment could not be made. Debian and Ubuntu need: apt install python3.11-venv"; exit 1; }; }
	@echo "Installing into $(VENV) (about 3 minutes, 3 GB) ..."
	@{ $(BIN)/python -c 'import torch; assert torch.__version__.startswith("2.13.0")' 2>/dev/null || $(BIN)/pip install -q torch==2.13.0; } \
	  && $(BIN)/pip install -q --no-deps -r requirements.txt && $(BIN)/pip install -q --no-deps --no-build-isolation -e . \
	  || { echo "The install failed (the reason is above). Check the network and the free disk space (4 GB), then run the same command again: what is installed is kept. 'make clean' starts over."; exit 1; }
	@$(BIN)/python -m compileall -q -j 2 $(VENV)/lib >/dev/null 2>&1 || true
	@rm -f $(VENV)/.installed-*; touch $@

demo: setup ## the whole path: data, training, evaluation, serving (ARGS="--source movielens --data-dir DIR")
	@$(BIN)/ugt demo --json .ugt/demo.json $(ARGS)

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

test: lint ## lint, types and all tests, one small end-to-end run included
	@$(BIN)/python -m pytest $(ARGS)

clean: ## remove .venv (artifacts in .ugt stay)
	rm -rf $(VENV)
