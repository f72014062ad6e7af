# Targets create or update .venv if it is missing or its dependencies have changed. The demo needs
# only the package; the checks also need its extras and tools.

PYTHON ?= python3
# Test processes, with one thread each, since most tests are too small for two cores. Some wait for
# other processes, so that three keep two cores busy.
WORKERS ?= 3
BIN := .venv/bin
# Without pip's compilation: Python compiles a module when it is first imported, and keeps the result.
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
unexport PYTHONDONTWRITEBYTECODE
RUN := .venv/.installed
DEV := .venv/.installed-dev
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

.PHONY: help setup demo guidance test test-fast browser lint format type tables docs clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(DEV)  ## Create .venv with the pinned development dependencies

$(DEV): EXTRA := [dev]
# The newest pip resolves the dependencies in a third of the time that Python 3.11's takes.
$(RUN) $(DEV): pyproject.toml constraints.txt
	$(PYTHON) -m venv --upgrade-deps .venv
	$(PIP) -e '.$(EXTRA)'
	touch $(RUN) $@

demo: $(RUN)  ## Distil the embedded teacher on a CPU, in minutes; results in runs/demo
	$(BIN)/python -m sid_lsg.cli fit --config configs/demo.yaml

guidance: $(RUN)  ## Score the embedded teacher at several guidance scales; results in runs/guidance
	reports=; for scale in 1 1.2 1.5 2 3 4.5; do \
	  $(BIN)/python -m sid_lsg.cli evaluate --config configs/evaluate/demo.yaml \
	    --model package:demo/fashion --sampler ddim --num_steps 25 --guidance $$scale \
	    --name "guidance $$scale" --compare "[$$reports]" --output runs/guidance/$$scale || exit; \
	  reports="$${reports:+$$reports,}runs/guidance/$$scale"; \
	done

test: $(DEV)  ## Run the tests, WORKERS at a time
	$(PYTEST)

test-fast: $(DEV)  ## Run the tests that are not marked slow
	$(PYTEST) -m 'not slow and not browser'

# Installs chromium in CI, asks in a terminal, and otherwise prints the command.
INSTALL_CHROMIUM = sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; $$sudo apt-get update -qq && \
	  $$sudo apt-get install -qq --no-install-recommends -y chromium

browser: $(DEV)  ## Test the app in Debian's chromium
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

lint: $(DEV)  ## Check style, spelling and imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/lint-imports --no-cache

format: $(DEV)  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(DEV)  ## Check types
	$(BIN)/mypy

tables: $(DEV)  ## Update the documentation's tables of measurements
	$(BIN)/python -m docs.tables

# The variable silences an advertisement of the theme's makers.
docs: $(DEV)  ## Build the documentation's site in build/site, strictly and offline
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean:  ## Remove .venv and caches, but not runs
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache
