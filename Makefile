# The verbs of this repository. `make demo` and `make test` do all their own set-up.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Workers have servers of their own; one that has nothing left to do takes tests over from another. The fast tests wait
# for half of their time, so that there are more workers than cores.
PYTEST := $(BIN)/python -m pytest --dist worksteal --benchmark-disable

.PHONY: help demo test soak check k8s-check bench quality lock clean

help: ## list the verbs
	@grep -E '^[a-z0-9-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

demo: .venv/demo ## data, training, a release and a running service
	$(BIN)/hotplate demo

test: check ## every check and the fast tests
	@.ci/debian-packages
	$(PYTEST) -n 3 -m "not soak and not k8s"

soak: .venv/dev ## the long tests: SOAK_MINUTES=10 of load, faults, kills and random cases
	@.ci/debian-packages
	@SOAK_SEED=$${SOAK_SEED:-$$($(BIN)/python -c 'import random; print(random.randrange(1, 1 << 31))')}; export SOAK_SEED; set -x; \
	    $(PYTEST) -n 2 -m soak --timeout 900 --hypothesis-seed $$SOAK_SEED

check: .venv/dev ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

k8s-check: .venv/k8s ## manifests, images, alerts and dashboards: built, validated against schemas and tried
	$(PYTEST) -n 2 -m k8s tests/k8s

bench: .venv/dev ## the figures, printed and written to bench-results.json
	$(BIN)/python -m bench.micro

quality: .venv/dev ## how good the lists are, on both data sets and every split, printed and written into the docs
	$(BIN)/python -m bench.micro.quality

lock: .venv/dev ## resolve the requirements anew (needs uv)
	uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --no-annotate --python-version 3.11 \
	    pyproject.toml --extra offline --group build -o requirements/demo.lock
	uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --no-annotate --python-version 3.11 \
	    pyproject.toml --extra offline --extra redis --extra cosmos --extra arrow --extra oidc --extra bench --group build --group dev \
	    --constraint requirements/demo.lock -o requirements/dev.lock
	uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --no-annotate --python-version 3.11 \
	    pyproject.toml --group k8s --constraint requirements/dev.lock -o requirements/k8s.lock

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("hotplate needs Python 3.11 or newer; this is %s. Try: make PYTHON=python3.12 demo" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "No virtual environment could be made. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }

.venv/demo: requirements/demo.lock pyproject.toml | .venv/bin/python
	@echo "Installing what the demo needs (a minute on a first run) ..."
	@$(PIP_INSTALL) --require-hashes -r requirements/demo.lock
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

.venv/dev: requirements/dev.lock pyproject.toml | .venv/bin/python
	@echo "Installing what the tests need (a minute on a first run) ..."
	@$(PIP_INSTALL) --require-hashes -r requirements/dev.lock
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch .venv/demo $@

.venv/k8s: requirements/k8s.lock .ci/k8s-tools | .venv/dev
	@echo "Installing what the checks of k8s/ need (a minute on a first run) ..."
	@$(PIP_INSTALL) --require-hashes -r requirements/k8s.lock
	@.ci/k8s-tools .venv/bin
	@touch $@

clean: ## remove the environment, caches and results
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks bench-results.json
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
