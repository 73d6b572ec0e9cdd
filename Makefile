# Everything runs in .venv, made here on first use from pyproject.toml (ranges) and constraints.txt (exact versions).
#   make demo    eight local peers train digits, three attack and are banned
#   make test    the test suite;   make test-processes   with real peers;   make test-slow   what takes minutes
#   make soak    random simulated runs with faults and attackers, as many as fit in SOAK_SECONDS
#   make churn   real peers come, leave and are killed for some minutes
#   make lint    ruff, mypy --strict, the import contracts
#   make bench   the benchmark tables of docs/

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The first interpreter here that is new enough; `make PYTHON=/path/to/python3.12` decides otherwise.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
REFEREES := $(VENV)/.referees
WORKERS ?= 2
SOAK_SECONDS ?= 600

.PHONY: help env demo test test-processes test-slow soak churn lint format bench referees clean

help:
	@sed -n '1,7p' Makefile

env: $(READY)

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "btrain needs Python 3.11 or newer; none was found (make PYTHON=/path/to/python3.12)" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,test]'
	@touch $@

demo: $(READY)
	$(BIN)/btrain demo

test: $(READY)
	$(BIN)/pytest -n $(WORKERS) --dist loadfile

test-processes: $(READY)
	$(BIN)/pytest -m "processes and not slow"

test-slow: $(READY)
	$(BIN)/pytest -m slow --timeout 1800

soak: $(READY)
	$(BIN)/python experiments/soak.py --seconds $(SOAK_SECONDS) --workers $(WORKERS)

churn: $(READY)
	$(BIN)/python experiments/churn_processes.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict -p btrain
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/btrain bench all

# Other people's implementations as judges of ours. Their declared dependencies are older than ours, hence --no-deps.
$(REFEREES): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,test,referees]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps byzfl==0.0.11 byzpy==0.1.4 torchvision==0.28.0
	@touch $@

referees: $(REFEREES)
	$(BIN)/pytest -m 'slow or not slow' tests/referees

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
