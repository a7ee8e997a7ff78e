# Two commands: `make demo` runs the network, `make test` passes the tests.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
PROTOS := $(wildcard proto/lianfang/v1/*.proto)
KERNEL := $(wildcard protocols/_kernel/*.[ch])
SOURCES := nodes protocols federation tests benchmarks

.PHONY: setup demo test test-unit test-system test-containers lint format proto lock bench clean

setup: $(STAMP)

# Found by name, or by `python3` where that is 3.11 already.
$(STAMP): requirements.lock pyproject.toml $(KERNEL)
	@command -v $(PYTHON) >/dev/null 2>&1 && py=$(PYTHON) || py=python3; \
	  $$py -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")' && \
	  { test -x $(BIN)/python || $$py -m venv $(VENV); }
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes --only-binary :all: -r requirements.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)
	$(BIN)/lianfang demo

test: test-unit test-system

# A file at a time to each core: what a file's tests share is made once.
test-unit: $(STAMP)
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile tests/protocols tests/nodes tests/federation

# One after the other: each has a network of processes, and deadlines that two of them at once would miss on two cores.
test-system: $(STAMP)
	$(BIN)/python -m pytest tests/system tests/test_house.py

# The images and docker-compose.yml with a real engine, which has to run. DOCKER_BUILD_OPTIONS go to the build.
test-containers: $(STAMP)
	$(BIN)/python -m pytest tests/containers

lint: $(STAMP)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# Generated code is committed; a test compares it with a fresh run of this.
proto: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iproto --python_out=proto --grpc_python_out=proto \
	  --mypy_out=proto --mypy_grpc_out=proto $(PROTOS)

lock: $(STAMP)
	$(BIN)/uv pip compile -q --python-version 3.11 --all-extras --generate-hashes --no-header --only-binary :all: \
	  -o requirements.lock pyproject.toml
	$(BIN)/uv pip compile -q --python-version 3.11 --generate-hashes --no-header --only-binary :all: \
	  -c requirements.lock -o requirements-node.lock pyproject.toml
	$(BIN)/uv pip compile -q --python-version 3.11 --extra learn --generate-hashes --no-header --only-binary :all: \
	  -c requirements.lock -o requirements-learn.lock pyproject.toml

# The peer pins another protobuf, so it lives in a venv of its own.
bench: $(STAMP)
	@test -x .venv-peer/bin/python || $(BIN)/python -m venv .venv-peer
	.venv-peer/bin/python -m pip install -q --disable-pip-version-check openmined.psi==2.0.6
	$(BIN)/python benchmarks/kernel.py
	$(BIN)/python benchmarks/lookup.py --peer-python .venv-peer/bin/python
	$(BIN)/python benchmarks/history.py
	$(BIN)/python benchmarks/follow.py
	$(BIN)/python benchmarks/defaults.py
	$(BIN)/python benchmarks/horizontal.py
	$(BIN)/python benchmarks/ledger.py
	$(BIN)/python benchmarks/psi.py --peer-python .venv-peer/bin/python
	$(BIN)/python benchmarks/vertical.py

clean:
	rm -rf $(VENV) .venv-peer build *.egg-info .mypy_cache .ruff_cache .pytest_cache
