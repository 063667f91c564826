# What a person types. `make` alone says what there is.

VENV := .venv
BIN := $(VENV)/bin
MODEL := models/smollm2-135m-instruct
QUICKSTART := configs/quickstart.toml

# Real vLLM and real DeepSpeed, minutes; `make test` runs them last. tests/gpu is apart: `make gpu`.
# tests/podman builds the images and runs the compose file, half an hour: `make test-containers`.
E2E_TESTS := tests/e2e tests/chaos
UNIT_TESTS := $(filter-out $(E2E_TESTS) tests/gpu tests/podman tests/__pycache__, \
	$(patsubst %/,%,$(wildcard tests/*/)) $(wildcard tests/test_*.py))

# The unit tests on all cores (four are enough); a file's tests share its fixtures, so stay together.
UNIT := -n logical --maxprocesses 4 --dist loadfile $(UNIT_TESTS)

# Never two at a time: lint before tests is the point, and the machine may be small.
.NOTPARALLEL:
.PHONY: help setup model demo test lint unit e2e gpu test-containers bench bench-reward proto generated \
	clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## .venv with everything in requirements.lock; instant when nothing changed
	@requirements/install $(VENV)

model: setup ## the quickstart's model (once, about 40 s)
	@$(BIN)/dapod model fetch --dir $(MODEL)

demo: model ## train a small real model with DAPO, through all the services
	@$(BIN)/dapod run $(QUICKSTART)

test: lint model ## the gate: lint, then every test, end to end last
	@$(BIN)/python -m pytest $(UNIT)
	@$(BIN)/python -m pytest $(E2E_TESTS)

lint: setup ## ruff, mypy --strict, buf lint
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "ruff: run $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/buf lint proto

unit: setup ## the unit tests, a minute or two
	@$(BIN)/python -m pytest $(UNIT)

e2e: model ## the end-to-end tests with real vLLM and real DeepSpeed, minutes
	@$(BIN)/python -m pytest $(E2E_TESTS)

gpu: model ## a step of trainer and rollout on a GPU; skipped without one
	@$(BIN)/python -m pytest tests/gpu

test-containers: model ## build the images and run docker-compose.yml under podman (docs/containers.md)
	@$(BIN)/python -m pytest tests/podman

bench-reward: setup ## verifications a second, against a fork per call and plain Math-Verify
	@$(BIN)/python -m bench.reward

bench: model ## what the services cost: the platform against one program, in turn (10 minutes)
	@$(BIN)/python -m bench.overhead

proto: setup ## regenerate dapod/v1 from proto/
	@$(MAKE) --no-print-directory generated

# Apart from `proto` so that a test can have the same files made in another directory.
OUT := .
generated:
	@PATH="$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iproto $(wildcard proto/dapod/v1/*.proto) \
		--python_out=$(OUT) --grpc_python_out=$(OUT) --mypy_out=quiet:$(OUT) --mypy_grpc_out=quiet:$(OUT)

clean: ## remove .venv and every cache; models/ and runs/ stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
