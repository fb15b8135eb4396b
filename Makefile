# `make demo` and `make test` do everything; both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test check format clean
setup: .venv/installed

# torch first: one package that asked for a looser torch would otherwise pull in gigabytes.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

test: setup
	$(BIN)/python -m pytest -q

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf out .mypy_cache .ruff_cache .pytest_cache
