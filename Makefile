# Every target makes .venv first if it is missing or its dependencies have changed.

PYTHON ?= python3
# Tests at a time, each on one thread: most are too small to use two cores.
WORKERS ?= 2
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
STAMP := .venv/.installed

.PHONY: help setup demo guidance test browser lint format type tables clean

help:  ## List the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## Create .venv with the pinned dependencies

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e '.[dev]'
	@# On all cores: pip has only one compile what it installs. Some files are for other Pythons.
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	touch $@

demo: $(STAMP)  ## Distil the embedded teacher on a CPU, in minutes; results in runs/demo
	$(BIN)/python -m sid_lsg.cli fit --config configs/demo.yaml

guidance: $(STAMP)  ## Score the embedded teacher at several guidance scales: runs/guidance
	reports=; for scale in 1 1.2 1.5 2 3 4.5; do \
	  $(BIN)/python -m sid_lsg.cli evaluate --config configs/evaluate/demo.yaml \
	    --model package:demo/fashion --sampler ddim --num_steps 25 --guidance $$scale \
	    --name "guidance $$scale" --compare "[$$reports]" --output runs/guidance/$$scale || exit; \
	  reports="$${reports:+$$reports,}runs/guidance/$$scale"; \
	done

test: $(STAMP)  ## Run the tests, WORKERS at a time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

browser: $(STAMP)  ## Test the app in a real browser; Debian's chromium is installed if missing
	@command -v chromium >/dev/null || { \
	  command -v apt-get >/dev/null || { \
	    echo "error: this needs chromium, and there is no apt-get to install it with." >&2; exit 1; }; \
	  sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  $$sudo apt-get update -qq && \
	  $$sudo apt-get install -qq --no-install-recommends -y chromium; }
	$(BIN)/python -m pytest -q -m browser tests/app/test_browser.py

lint: $(STAMP)  ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(STAMP)  ## Check types
	$(BIN)/mypy

tables: $(STAMP)  ## Write the documentation's tables of measurements again
	$(BIN)/python docs/tables.py

clean:  ## Remove .venv and caches, not runs
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache
