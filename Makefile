# Two commands serve a newcomer: `make demo` runs the main job, `make test` passes the tests. Each sets up what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test test-slow test-gpu faults lint bench clean

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "regionclip needs Python 3.11 or newer; this is %s. Try: make PYTHON=python3.12 ..." % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: $(READY)  ## the whole pipeline on the embedded world, then the table and the report's place
	$(BIN)/regionclip run --config pipeline.yaml

test: $(READY)  ## ruff, strict typing of the core, the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses 3 --dist worksteal

test-slow: $(READY)  ## the long ones
	$(BIN)/python -m pytest -m slow

test-gpu: $(READY)  ## those that need a CUDA device
	$(BIN)/python -m pytest -m gpu tests/gpu

faults: $(READY)  ## breaks a hundred runs at random moments; each must end with the same bytes
	$(BIN)/python tests/faults --rounds 100

lint: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## ratios measured side by side, into docs/BENCHMARKS.md (25 minutes); QUICK=1: toy sizes, only prints
	$(BIN)/python benchmarks $(if $(QUICK),--quick)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
