# Every target does its own set-up: a virtual environment in .venv, made when pyproject.toml is newer than it.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export PYTHONHASHSEED := 0
# One place where the networks are exported to for the demo, the slow tests and the benchmarks.
export LOADPART_EDGE_STORE ?= $(CURDIR)/.cache/models
PROTOS := $(shell find protos -name '*.proto')
.DEFAULT_GOAL := help

.PHONY: help
help:  ## show this text
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing LoADPart and what it needs into $(VENV)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	@$(BIN)/pip install --quiet --disable-pip-version-check -e ".[server,cluster,mindspore,onnxruntime,openvino,trained]" --group test --group lint --group proto --group demo
	@touch $@

.PHONY: setup
setup: $(VENV)/installed  ## make the virtual environment

.PHONY: demo
demo: setup  ## run the seven networks on a photograph: locally, offloaded, load-aware
	@$(BIN)/python examples/demo.py

.PHONY: test
test: setup  ## run the fast tests (two minutes)
	@$(BIN)/python -m pytest

.PHONY: test-slow
test-slow: setup  ## run the tests that take minutes
	@$(BIN)/python -m pytest -n 0 -m slow --timeout 1800

.PHONY: test-fleet
test-fleet: setup  ## run the tests with Ray clusters on this machine (five minutes)
	@$(BIN)/python -m pytest -n 0 -m fleet

.PHONY: lint
lint: setup  ## check style, types, protos, generated code and the import rule
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@cd protos && ../$(BIN)/buf lint
	@$(BIN)/python protos/generate.py --check
	@$(BIN)/lint-imports

.PHONY: format
format: setup  ## put the code into shape
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

.PHONY: proto
proto: setup  ## generate the Python code of protos/
	@$(BIN)/python protos/generate.py

.PHONY: bench-engines
bench-engines: setup  ## the engines side by side, and what our call adds to theirs (10 minutes)
	@$(BIN)/python -m benchmarks.engines

.PHONY: bench-exact
bench-exact: setup  ## every cut of every network on every engine over gRPC, compared bit for bit
	@$(BIN)/python -m benchmarks.exact

.PHONY: bench-codecs
bench-codecs: setup  ## what codecs cost and save: bytes, errors, latency; writes docs/codecs.md (45 minutes, root)
	@$(BIN)/python -m benchmarks.comparison run codecs$(if $(QUICK),-quick) --output .cache/benchmarks/codecs
	@$(BIN)/python -m benchmarks.codecs $(if $(QUICK),--quick --report .cache/benchmarks/codecs/codecs.md)

.PHONY: bench-overhead
bench-overhead: setup  ## what splitting costs beyond computing: milliseconds a request, microseconds a decision
	@$(BIN)/python -m benchmarks.overhead

.PHONY: bench-footprint
bench-footprint: setup  ## seconds to ready, memory of each process, seconds to import the SDK
	@$(BIN)/python -m benchmarks.footprint

.PHONY: bench-abuse
bench-abuse: setup  ## 10,000 bad requests, then 100 good ones
	@$(BIN)/python -m benchmarks.abuse
	@$(BIN)/python -m benchmarks.abuse --payloads

.PHONY: test-faults
test-faults: setup  ## daemons killed and stopped, workers hung, links cut and thinned, overload (15 minutes, root)
	@$(BIN)/python -m benchmarks.faults
	@$(BIN)/python -m benchmarks.overload

.PHONY: soak
soak: setup  ## ten minutes of everything that goes right and wrong; MINUTES=600 for a night
	@$(BIN)/python -m benchmarks.soak --minutes $(or $(MINUTES),10)

.PHONY: test-security
test-security: setup  ## malformed requests, attacks, credentials, what the door costs (ten minutes; QUICK=1: three)
	@$(BIN)/python -m benchmarks.security $(if $(QUICK),--quick)

.PHONY: fuzz
fuzz: setup  ## a coverage-guided fuzzer on all that reads strangers' bytes, for MINUTES (10)
	@$(BIN)/pip install --quiet --disable-pip-version-check --group fuzz
	@$(BIN)/python -m benchmarks.fuzz $(or $(MINUTES),10)

.PHONY: bench-prediction
bench-prediction: setup  ## predicted seconds of heads and tails against measured ones, all cuts (20 minutes)
	@$(BIN)/python -m benchmarks.prediction

.PHONY: bench-decision
bench-decision: setup  ## hulls against brute force, microseconds a decision
	@$(BIN)/python -m benchmarks.decision

.PHONY: bench-fleet
bench-fleet: setup  ## three servers to choose from, while links and loads change; workers on nodes (10 minutes, root; QUICK=1: five)
	@$(BIN)/python -m benchmarks.fleet $(if $(QUICK),--quick)
	@$(BIN)/python -m benchmarks.cluster $(if $(QUICK),--quick)

.PHONY: bench-link
bench-link: setup  ## the link estimator against shaped links (root)
	@$(BIN)/python -m benchmarks.link

.PHONY: bench-load
bench-load: setup  ## predicted server time under load, coming back after it, steadiness (root)
	@$(BIN)/python -m benchmarks.load

.PHONY: bench-simulation
bench-simulation: setup  ## a thousand devices on one server and on four, simulated; QUICK=1: load-aware only
	@$(BIN)/python -m benchmarks.simulation $(if $(QUICK),--quick)

.PHONY: bench
bench: setup  ## every policy side by side, a balanced part of the grid; writes docs/benchmarks.md (an hour, root)
	@$(BIN)/python -m benchmarks.comparison run balanced --output docs

.PHONY: bench-quick
bench-quick: setup  ## the same under a handful of conditions on two engines, into .cache/benchmarks (10 minutes, root)
	@for engine in mindspore onnxruntime; do \
		$(BIN)/python -m benchmarks.comparison run quick --engine $$engine --output .cache/benchmarks/quick-$$engine || exit; \
	done
	@$(BIN)/python -m benchmarks.comparison engines .cache/benchmarks/quick-onnxruntime .cache/benchmarks/quick-mindspore

.PHONY: bench-full
bench-full: setup  ## the same over the whole grid, into .cache/benchmarks/full; goes on where it stopped (a day, root)
	@$(BIN)/python -m benchmarks.comparison run full --output .cache/benchmarks/full --resume

.PHONY: clean
clean:  ## remove the virtual environment and everything cached
	@rm -rf $(VENV) .cache build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
