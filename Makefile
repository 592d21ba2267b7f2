# Two commands for newcomers: `make sweep` and `make test`. Arguments: make sweep ARGS="--impl hf,cpu --quick"
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: sweep test lint venv
sweep: venv
	$(BIN)/python -m bench.sweep $(ARGS)
test: venv
	$(BIN)/python -m pytest -n auto $(ARGS)
lint: venv
	$(BIN)/ruff check $(ARGS) . && $(BIN)/ruff format --check .
venv: .venv/installed
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
