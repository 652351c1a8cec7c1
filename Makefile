# make train: pre-trains configs/tiny.py on the documentation of this Python; make test: the fast
# tests; make test-all: all. All set up .venv first, with the versions of requirements.lock. Needs Python 3.11, 3.12 or 3.13.

VENV ?= .venv
WORKDIR ?= runs/tiny
CONFIG ?= tiny
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
  && echo $$p && break; done)
BIN = $(VENV)/bin
JOBS ?= 2
INSTALLED = $(VENV)/installed
PYTEST = $(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=worksteal
ONLY ?=

.PHONY: help install train test test-all lint lock clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED)  ## set up .venv

$(INSTALLED): requirements.lock pyproject.toml setup.cfg
	@test -n "$(PYTHON)" || { echo "bertjax needs Python 3.11, 3.12 or 3.13; found: $$(python3 --version 2>&1). Install one or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

train: $(INSTALLED)  ## pre-train CONFIG (tiny) into WORKDIR (runs/tiny); resumes when run again
	$(BIN)/python -m bertjax.train --config=$(CONFIG) --workdir=$(WORKDIR)

test: $(INSTALLED)  ## the fast tests, JOBS (2) at a time; fails below the coverage of setup.cfg
	$(PYTEST) -m "not slow" --cov --cov-report=

test-all: $(INSTALLED)  ## all tests; ONLY="-m slow": those that make test leaves out
	$(PYTEST) $(ONLY)

lint: $(INSTALLED)  ## ruff, the type checker and shellcheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck --external-sources launch/*.sh launch/*.sbatch tests/launch/*.sh benchmarks/*.sh .ci/run .ci/wheel

lock:  ## resolve requirements.lock anew (needs uv)
	uv pip compile --quiet --universal --upgrade --python-version 3.11 --extra dev --no-annotate \
	  --custom-compile-command 'make lock' pyproject.toml --output-file requirements.lock

clean:  ## remove .venv
	rm -rf $(VENV)
