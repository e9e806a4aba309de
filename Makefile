# The README's commands. `make up` sets everything up and runs the gateway; `make test` runs everything CI runs.
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup
BENCH_STAMP := $(VENV)/.setup-bench
TEST_STAMP := $(VENV)/.setup-tests
LOCK := uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate \
  --no-emit-index-url --no-emit-find-links --python-version 3.11

.PHONY: up setup test lint gen lock bench bench-results guard-baseline clean

up: setup
	@$(BIN)/onegate up $(ARGS)

setup: $(STAMP)

$(STAMP): requirements.lock requirements-dev.lock pyproject.toml tools/python
	@python=$$(sh tools/python) && echo "setting up $(VENV) with $$python" && "$$python" -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements-dev.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

lint: setup
	@$(BIN)/python tools/gen.py --check
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/buf lint
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/mypy

$(TEST_STAMP): $(STAMP) tools/setup-tests requirements-sdist.lock tests/e2e/node/package-lock.json
	@sh tools/setup-tests
	@touch $@

# What drives whole gateways runs alone: it watches deadlines.
test: setup lint $(TEST_STAMP)
	@$(BIN)/pytest -n 3 --dist loadfile --ignore tests/e2e $(ARGS)
	@$(BIN)/pytest tests/e2e $(ARGS)

gen: setup
	@$(BIN)/python tools/gen.py

# Locks name hashes and no address: the package index is whatever the machine is set up with.
lock:
	@$(LOCK) pyproject.toml -o requirements.lock
	@$(LOCK) pyproject.toml --group dev -c requirements.lock -o requirements-dev.lock
	@$(LOCK) --group build -c requirements-dev.lock -o requirements-build.lock
	@$(LOCK) --group bench -c requirements-dev.lock -o requirements-bench.lock

$(BENCH_STAMP): $(STAMP) requirements-bench.lock
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements-bench.lock
	@touch $@

# `make bench ARGS=--help` says what there is.
bench: setup $(BENCH_STAMP)
	@$(BIN)/python -m bench $(ARGS)

# Everything that bench/RESULTS.md holds, on a quiet machine: about 45 minutes.
bench-results: setup $(BENCH_STAMP)
	@$(BIN)/python -m bench all --write $(ARGS)

# After a change that is worth what it costs: what a call may cost from now on, for every Python found.
guard-baseline: setup
	@sh tools/guard-baseline $(ARGS)

clean:
	@rm -rf $(VENV) build dist *.egg-info
