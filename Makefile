# Two commands for newcomers: `make sweep` and `make test`. Arguments: make sweep ARGS="--impl hf,cpu --quick"
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: sweep test lint venv lock
sweep: venv
	$(BIN)/python -m bench.sweep $(ARGS)
test: venv
	$(BIN)/python -m pytest -n auto $(ARGS)
lint: venv
	$(BIN)/ruff check $(ARGS) . && $(BIN)/ruff format --check .
venv: .venv/installed
.venv/installed: pyproject.toml constraints.txt requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --only-binary :all: --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
# all packages with their hashes, for every platform; without torch, its CUDA packages, and what nothing imports
lock:
	$(PYTHON) -m venv .venv/lock && .venv/lock/bin/python -m pip install --quiet uv==0.13.9
	.venv/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--constraint constraints.txt --extra dev pyproject.toml > .venv/lock/all
	awk '/^[a-z]/ { keep = /^nvidia-ml-py==/ || !/^(torch|future|cuda-.*|nvidia-.*)==/ } keep' .venv/lock/all > requirements.lock
