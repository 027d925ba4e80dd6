# Everything runs in .venv, made from requirements.lock: only Python 3.11 or later, make and git are needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ARGS   ?=
ROUNDS ?= 20
SEED   ?=
SEEDS  ?= 1000
FIRST  ?= 0
JOBS   ?= 2
MINUTES ?= 20
CONF   ?= conf/ister.toml
CLIENT ?=
CLIENTS_LONG ?=

.DEFAULT_GOAL := help
.PHONY: help demo test quick quick-actors quick-others test-native wheel-native check docs conf bench bench-full bench-peers bench-scaling crash sim soak build-clients test-clients serve clean python-version

help: ## list what can be made
	@echo "make TARGET [ARGS=\"...\"] [PYTHON=python3.12]"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP) ## start a broker, stream real files through it, kill a worker, verify every byte
	@$(BIN)/ister demo $(ARGS)

test: $(STAMP) ## run all the tests (12 minutes on two cores)
	@echo "all the tests: 12 minutes on two cores; make quick has an answer in one or two" >&2
	@$(BIN)/python -m pytest $(ARGS)

quick: $(STAMP) ## run the tests that start no process, to the first failure (a minute or two)
	@$(MAKE) --no-print-directory -j2 quick-actors quick-others

# Two at once. What counts with thousands and what plays against models takes longer than the rest together.
QUICK := HYPOTHESIS_PROFILE=quick $(BIN)/python -m pytest -q -x -p no:cacheprovider -m "not process and not slow and not gcs"

quick-actors: $(STAMP)
	@$(QUICK) tests/actors --ignore=tests/actors/test_flow.py --ignore=tests/actors/test_bounds.py \
	  --ignore-glob='*_model.py' $(ARGS)

quick-others: $(STAMP)
	@$(QUICK) tests/ister tests/transport tests/storage --ignore-glob='*_model.py' $(ARGS)

test-native: $(STAMP) ## compile the hot modules, and hold them to the tests of the client, the broker's parts and 100 seeds
	@$(BIN)/python -m tests.native $(ARGS)

wheel-native: $(STAMP) ## build a wheel for this platform whose hot modules are compiled (needs a C compiler)
	@ISTER_NATIVE=1 $(BIN)/python -m hatchling build -t wheel

check: $(STAMP) ## formatting, lint, types, import rules, links and lines of Markdown
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m tests.markdown

docs: $(STAMP) $(VENV)/.docs ## build docs/ and the pages beside it as a site in build/docs
	@$(BIN)/python -m sphinx -q -W --keep-going -c docs -d build/doctrees . build/docs
	@echo "build/docs/docs/index.html"

conf: $(STAMP) ## write conf/ister.toml from ister/defaults.py
	@$(BIN)/python -c 'import ister.settings, pathlib; pathlib.Path("$(CONF)").write_text(ister.settings.settings_toml())'

bench: $(STAMP) ## measure this machine in two minutes: a table and a plot, and build/bench/ with results and page
	@$(BIN)/python benchmarks/suite.py --out build/bench/quick $(ARGS)

bench-full: $(STAMP) ## the same with five rounds, and growth over topics, consumers, subscriptions and backlog (25 minutes)
	@$(BIN)/python benchmarks/suite.py --full --out build/bench/full $(ARGS)

bench-peers: $(STAMP) ## beside NATS, Redis, RabbitMQ, mosquitto and Iggy, installed where they can be (30 minutes)
	@mkdir -p build/bench
	@$(BIN)/python benchmarks/peers.py --json build/bench/peers.json $(ARGS)
	@$(BIN)/ister bench page --force build/bench/peers.json --title "Ister and its peers" --out build/bench/peers.html

bench-scaling: $(STAMP) ## throughput and CPU seconds over workers 1, 2, 4, 8, 16, as far as the cores go
	@mkdir -p build/bench
	@$(BIN)/python benchmarks/scaling.py --json build/bench/scaling.json $(ARGS)

crash: $(STAMP) ## kill a broker ROUNDS=20 times, and check that nothing is lost (SEED=n for the same kills, CLIENT=go for its clients)
	@$(BIN)/python -m tests.crash.campaign --rounds $(ROUNDS) $(if $(SEED),--seed $(SEED)) $(if $(CLIENT),--client $(CLIENT)) $(ARGS)

sim: $(STAMP) ## live SEEDS=1000 simulated histories of the whole broker (from seed FIRST=0 on, JOBS=2 processes)
	@$(BIN)/python -m tests.sim.campaign --seeds $(SEEDS) --first $(FIRST) --jobs $(JOBS) $(ARGS)

soak: $(STAMP) ## run a broker under mixed load for MINUTES=20: descriptors, maps, memory and disk stay flat
	@$(BIN)/python benchmarks/soak.py --minutes $(MINUTES) $(ARGS)

build-clients: $(STAMP) ## build the drivers of the clients in other languages, where the machine has what they need
	@$(BIN)/python -m tests.conformance_clients.build $(CLIENT)

# CLIENT=go: only that language. CLIENTS_LONG=1: what takes minutes too.
test-clients: build-clients ## hold every client of clients/ to the same scenarios, and print who understands whom
	@CLIENT="$(CLIENT)" $(if $(CLIENTS_LONG),CLIENTS_LONG=1) $(BIN)/python -m pytest -p no:cacheprovider tests/conformance_clients $(ARGS)

serve: $(STAMP) ## start a broker with its data in ./data
	@$(BIN)/ister serve $(ARGS)

clean: ## remove the environment and every cache (not ./data)
	rm -rf clients/*/build clients/*/dist clients/*/node_modules .venv .venv-3.* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist *.egg-info
	find ister actors transport storage tests benchmarks clients -name __pycache__ -type d -prune -exec rm -rf {} +

python-version:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Ister needs Python 3.11 or later; $(PYTHON) is: $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12" >&2; \
	  exit 1; }

$(STAMP): requirements.lock pyproject.toml | python-version
	@echo "making $(VENV) from requirements.lock" >&2
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.docs: docs/requirements.lock requirements.lock $(STAMP)
	@echo "adding docs/requirements.lock to $(VENV)" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -r docs/requirements.lock
	@touch $@
