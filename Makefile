# Two commands for a fresh machine: `make fit` and `make test`. Both create .venv if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ON_ALL_CORES := $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

# Real pairs for tests and benchmarks; tests that need them are skipped without.
ifndef NLICOT_REAL_DATA
  ifneq ($(wildcard ../shared/data/comp34812),)
    export NLICOT_REAL_DATA := $(abspath ../shared/data)
  endif
endif

STARTED := $(shell date +%Y%m%d-%H%M%S)

.PHONY: help fit test test-slow test-slow-short interop chaos chaos-short test-gpu browser lint format clean
.DEFAULT_GOAL := help

help: ## show this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

fit: $(VENV)/installed ## tune the bundled model on the sample data: labels first, then thoughts
	$(BIN)/python -m nlicot fit --config configs/label_only.yaml --config configs/overlays/sample.yaml \
	  --run labels-$(STARTED)
	@echo; echo "== the second run: a thought after each label, from the adapter of the first"; echo
	$(BIN)/python -m nlicot fit --config configs/label_first.yaml --config configs/overlays/light_thought.yaml \
	  --config configs/overlays/sample.yaml --trainer.max_epochs 1 --model.learning_rate 3e-4 \
	  --from checkpoints/labels-$(STARTED) --run thoughts-$(STARTED)
	@echo "             (in the environment: . $(BIN)/activate)"

test: $(VENV)/installed-dev lint ## lint, then the fast tests, one process for each core (less than 10 minutes on two)
	$(ON_ALL_CORES) -m "not slow and not chaos and not gpu and not browser"

test-slow: $(VENV)/installed-dev ## slow tests: the commands of the docs, real kills; minutes each
	$(ON_ALL_CORES) -m slow

test-slow-short: $(VENV)/installed-dev ## the same without those that take longest
	$(ON_ALL_CORES) -m "slow and not long"

interop: $(VENV)/installed-dev ## what is written for other programs, in the real ones; those not installed are skipped
	$(BIN)/python -m pytest -v -m interop

chaos: $(VENV)/installed-dev ## kills, full disks, damage and signals, 20 kills of each command; an hour or more
	NLICOT_CHAOS_KILLS=20 $(BIN)/python -m pytest -m chaos

chaos-short: $(VENV)/installed-dev ## the same with one kill of each command, fewer places of damage and signals
	NLICOT_CHAOS_KILLS=1 NLICOT_CHAOS_PLACES=1 $(BIN)/python -m pytest -m "chaos and not long"

test-gpu: $(VENV)/installed-dev ## tests that need an NVIDIA GPU
	$(BIN)/python -m pytest -m gpu

browser: $(VENV)/installed-dev ## the report's page in a headless Chromium (Debian: apt install chromium)
	$(BIN)/python -m pytest -m browser

lint: $(VENV)/installed-dev ## linter, type checker and language check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tests.language.check --count

format: $(VENV)/installed-dev ## format the code and fix what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv and caches; keep checkpoints and data
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/installed: requirements.txt requirements-bundled.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "nlicot: $$($(PYTHON) --version) is too old: use Python 3.11 or later (make PYTHON=python3.12 ...)"; exit 2; }
	@echo "installing into $(VENV): a few minutes the first time"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.txt
	$(PIP) --no-deps -r requirements-bundled.txt
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	touch $@
