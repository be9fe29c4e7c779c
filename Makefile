# Every target sets up what it needs. PYTHON chooses the interpreter, VENV the folder of the environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
TEST_ARGS ?=

.PHONY: help install quickstart test test-quick test-extras check lint types layers house format docs clean

help:
	@echo "make quickstart  teach a tiny model its name and ask for it (CPU, a few minutes)"
	@echo "make test        the whole test suite"
	@echo "make test-quick  the tests that take seconds"
	@echo "make test-extras install the optional packages and run the tests that need them"
	@echo "make check       lint, types, layers and the quick tests: run it before a commit"
	@echo "make format      format the code"
	@echo "make docs        generate the option tables and build the site into site/"

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; choose one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $(READY)

quickstart: $(READY)
	$(BIN)/llamafactory-cli init saves/tiny
	$(BIN)/llamafactory-cli train examples/quickstart/quickstart.yaml
	@echo
	@echo "The loss curve is in saves/quickstart/training_loss.png. Now we ask the model who it is:"
	@printf 'who are you?\nexit\n' | $(BIN)/llamafactory-cli chat saves/quickstart do_sample=false max_new_tokens=64

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadfile $(TEST_ARGS)

test-quick: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow" $(TEST_ARGS)

test-extras: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[bitsandbytes]"
	$(BIN)/python -m pytest -n auto --dist loadfile -m extra $(TEST_ARGS)

check: lint types layers test-quick

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

layers: $(READY)
	$(BIN)/lint-imports

house: $(READY)
	$(BIN)/python -m pytest tests/house $(TEST_ARGS)

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	$(BIN)/python scripts/generate_docs.py
	$(BIN)/python scripts/generate_conformance.py
	$(BIN)/mkdocs build --strict

clean:
	rm -rf site build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
