# A target makes .venv first, or completes it, if it is missing or its dependencies have changed:
# the demo needs the package alone, and the checks its extras and tools too.

PYTHON ?= python3
# Tests at a time, each on one thread: most are too small to use two cores.
WORKERS ?= 2
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
# On all cores: pip compiles on one. Some files are for other Pythons.
COMPILE = $(BIN)/python -m compileall -qq -j 0 .venv/lib || true
RUN := .venv/.installed
DEV := .venv/.installed-dev
DOCS := .venv/.installed-docs
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

.PHONY: help setup demo guidance test test-fast browser lint format type tables docs clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(DEV)  ## Create .venv with the pinned dependencies, the checks' too

$(RUN): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e .
	$(COMPILE)
	touch $@

$(DEV): $(RUN)
	$(PIP) -e '.[dev]'
	$(COMPILE)
	touch $@

$(DOCS): $(RUN)
	$(PIP) -e '.[docs]'
	$(COMPILE)
	touch $@

demo: $(RUN)  ## Distil the embedded teacher on a CPU, in minutes; results in runs/demo
	$(BIN)/python -m sid_lsg.cli fit --config configs/demo.yaml

guidance: $(RUN)  ## Score the embedded teacher at several guidance scales: runs/guidance
	reports=; for scale in 1 1.2 1.5 2 3 4.5; do \
	  $(BIN)/python -m sid_lsg.cli evaluate --config configs/evaluate/demo.yaml \
	    --model package:demo/fashion --sampler ddim --num_steps 25 --guidance $$scale \
	    --name "guidance $$scale" --compare "[$$reports]" --output runs/guidance/$$scale || exit; \
	  reports="$${reports:+$$reports,}runs/guidance/$$scale"; \
	done

test: $(DEV)  ## Run the tests, WORKERS at a time
	$(PYTEST)

test-fast: $(DEV)  ## Run the tests but those that are marked slow
	$(PYTEST) -m 'not slow and not browser'

# In CI it installs chromium, in a terminal it asks, and elsewhere it says what to run.
INSTALL_CHROMIUM = sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; $$sudo apt-get update -qq && \
	  $$sudo apt-get install -qq --no-install-recommends -y chromium

browser: $(DEV)  ## Test the app in a real browser, Debian's chromium
	@command -v chromium >/dev/null || { \
	  what="apt-get install chromium"; \
	  command -v apt-get >/dev/null || { \
	    echo "error: this needs chromium, and there is no apt-get to install it with." >&2; exit 1; }; \
	  if [ -z "$$CI" ]; then \
	    [ -t 0 ] || { echo "error: this needs chromium. Install it: $$what" >&2; exit 1; }; \
	    printf 'This needs chromium. Run "%s"? [y/N] ' "$$what"; read -r answer; \
	    case "$$answer" in [yY]*) ;; *) exit 1;; esac; \
	  fi; \
	  $(INSTALL_CHROMIUM); }
	$(BIN)/python -m pytest -q -m browser tests/app/test_browser.py

lint: $(DEV)  ## Check style, spelling and what imports what
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/lint-imports --no-cache

format: $(DEV)  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(DEV)  ## Check types
	$(BIN)/mypy

tables: $(DEV)  ## Write the documentation's tables of measurements again
	$(BIN)/python docs/tables.py

# The variable silences an advertisement of the theme's makers.
docs: $(DOCS)  ## Build the documentation's site, strictly and offline: build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean:  ## Remove .venv and caches, not runs
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache
