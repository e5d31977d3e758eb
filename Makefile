# make serve: set up, then serve the demo.   make test: set up, then every check.   Both can be run again at any time.
VENV := .venv
BIN := $(VENV)/bin

# A server is several processes: what one has compiled, the others need not.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: serve test unit test-long lint lock clean experiment-demo

serve: $(VENV)/.ready
	$(BIN)/tta serve --config deploy/demo/serve.yaml --model "$$($(BIN)/python -m deploy.demo base)"

# Coverage, which is of the unit tests, takes half as long again as they do.
test: COVERAGE := --cov
test: lint unit
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/engine
	$(BIN)/python -m pytest tests/e2e

# What needs no engine and no server: the quick part of `make test`.
unit: $(VENV)/.ready
	bash deploy/setup/test_tools.sh
	$(BIN)/python -m deploy.demo base
	$(BIN)/python -m pytest -n 2 $(COVERAGE) --ignore tests/engine --ignore tests/e2e

# Tests that hold on vLLM's second model runner too; `make test` runs some of each there.
SECOND_RUNNER := $(patsubst %,tests/engine/test_%.py,acts_from gated head_and_embedding invoked lifecycle places twin)

# What takes too long for every change: soaks, whole experiments and long simulations, ten times as much
# of all that is generated, and all clients, each in an environment of its own.
test-long: $(VENV)/.ready
	$(BIN)/python -m deploy.demo base
	$(BIN)/python -m pytest -m long
	$(BIN)/python -m pytest -n 2 -m "hypothesis and not long" --hypothesis-profile long --ignore tests/e2e
	TRITON_INTERPRET=1 VLLM_USE_V2_MODEL_RUNNER=1 $(BIN)/python -m pytest -p tests.factories.second_runner $(SECOND_RUNNER)
	TTA_TENANT_REQUESTS=10000 $(BIN)/python -m pytest tests/e2e/test_access.py
	TTA_FUZZ_CASES=3000 $(BIN)/python -m pytest tests/e2e/test_fuzzed.py
	$(BIN)/python -m tests.clients --write

# An A/B test of routing policies with 2,000 simulated users on the demo; its report goes to the folder experiment.
experiment-demo: $(VENV)/.ready
	$(BIN)/python -m deploy.demo base
	$(BIN)/python -m deploy.demo experiment

lint: $(VENV)/.ready
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m tests.house
	$(BIN)/mypy

$(VENV)/.ready: pyproject.toml deploy/setup/setup.sh deploy/setup/torch.sh deploy/setup/cpu.txt deploy/setup/gpu.txt
	bash deploy/setup/setup.sh

# Resolve both locks anew. The CPU one needs the CPU build of torch in a place that uv looks at (UV_FIND_LINKS or an index).
LOCK := $(BIN)/uv pip compile pyproject.toml --extra demo --extra dev --universal --python-version 3.11 --no-annotate --no-header -q
lock:
	$(LOCK) --extra cpu --override deploy/setup/overrides-cpu.txt -o deploy/setup/cpu.txt
	env -u UV_FIND_LINKS $(LOCK) --extra gpu -o deploy/setup/gpu.txt

clean:
	rm -rf $(VENV)
