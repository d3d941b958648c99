# Two commands: `make quickstart` runs the main job, `make test` the checks. Both create the environment in .venv first.
# `make test` takes up to ten minutes on two cores; `make test-all` adds the slow tests, as .ci/run does.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

.PHONY: setup quickstart test test-all lint types clean

setup: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "parl needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

quickstart: setup
	$(BIN)/parl train configs/quickstart.yaml

test: setup lint types
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadgroup --max-worker-restart 0

test-all: test
	$(BIN)/python -m pytest -m slow -n 2 --dist loadgroup --max-worker-restart 0

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright

clean:
	rm -rf .venv build *.egg-info
