# The targets of this repository. Each one sets up what it needs.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := .ci/pip-install $(BIN)/python
# Each worker starts its own servers; an idle worker takes tests from another one. The fast tests wait half of their time,
# so there are more workers than cores.
PYTEST := $(BIN)/python -m pytest --dist worksteal
# Their tests have targets of their own, and importing them takes seconds, also if none is selected.
APART := --ignore tests/k8s --ignore tests/offline/spark
FAST := $(PYTEST) -m "not soak and not k8s and not spark" $(APART)
# Workers and hundreds of commands load the same modules, which would be compiled again for each.
unexport PYTHONDONTWRITEBYTECODE

ENGINE ?= docker
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
REVISION = $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
LOCK := uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --no-annotate --python-version 3.11

.PHONY: help demo test fast soak check lint types k8s-check spark-test wheel image image-check release-check sbom push notes bench figures quality site lock clean

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 15

demo: .venv/demo .venv/lane ## sample data, training, a release and a running service
	$(BIN)/hotplate demo

test: lint ## every check and the fast tests
	@.ci/debian-packages
	@$(MAKE) --no-print-directory --jobs 2 types fast

# Types are checked while tests wait.
fast: .venv/collected
	$(FAST) -n 5 --durations 15

# After a change, tests are collected once before the workers start: otherwise, in a fresh clone, each worker would compile
# them all, and an import error would be reported only after all other tests.
.venv/collected: .venv/dev .venv/lane $(shell find bench hotplate offline serve stores tests tools -name '*.py')
	@collected=$$($(FAST) --collect-only -qq 2>&1) || { echo "$$collected"; exit 1; }
	@touch $@

# Floods have a bound in milliseconds, so no other test runs beside them.
FLOODS := tests/serve/connections/test_floods.py

soak: .venv/dev .venv/lane ## the long tests: SOAK_MINUTES=10 of load, faults, kills and random cases
	@.ci/debian-packages
	@SOAK_SEED=$${SOAK_SEED:-$$($(BIN)/python -c 'import random; print(random.randrange(1, 1 << 31))')}; export SOAK_SEED; set -x; \
	    $(BIN)/python -m pytest -q $(FLOODS) && \
	    $(PYTEST) -n 4 -m "soak and not spark" $(APART) --ignore $(FLOODS) --timeout 900 --durations 15 --hypothesis-seed $$SOAK_SEED

check: lint types ## lint, format and types

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev
	$(BIN)/mypy

k8s-check: .venv/k8s ## build and validate manifests, and test images, alerts and dashboards
	$(PYTEST) -n 3 -m k8s tests/k8s

spark-test: .venv/dev ## train, rank and publish on Spark, and kill executors; skipped without Java
	@.ci/debian-packages
	@if .ci/java; then $(MAKE) .venv/spark && $(PYTEST) -n 1 -m spark --timeout 600 tests/offline/spark; \
	    else case ",$$HOTPLATE_REQUIRE," in *,java,*) exit 1;; esac; fi

# The first wheel is for any platform and lacks the fast lane; the second has it, for this platform and this Python.
wheel: .venv/demo ## build the wheels in dist/, and try each in new environments
	@rm -f dist/hotplate-*.whl
	HOTPLATE_EXTENSION=skip $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	.ci/try-wheel $(PYTHON) dist/hotplate-$(VERSION)-py3-none-any.whl missing
	HOTPLATE_EXTENSION=require $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	.ci/try-wheel $(PYTHON) dist/hotplate-$(VERSION)-cp*.whl compiled

image: ## build the images, with ENGINE=docker or podman
	$(ENGINE) build --file k8s/Dockerfile --target serve --build-arg REVISION=$(REVISION) --tag hotplate:$(VERSION) .
	$(ENGINE) build --file k8s/Dockerfile --target offline --build-arg REVISION=$(REVISION) --tag hotplate-offline:$(VERSION) .
	$(ENGINE) build --file k8s/Dockerfile --target spark --build-arg REVISION=$(REVISION) --tag hotplate-spark:$(VERSION) .

image-check: ## build the images; train, publish, check health and request a list in them; print sizes
	.ci/image-check $(VERSION) $(REVISION)

# The soak includes the sanitizers of the fast lane, and stores of earlier versions, whose commits a shallow clone lacks.
release-check: ## everything before a release: .ci/run, wheels, oldest and newest redis-py and aiohttp, images
	.ci/run
	$(MAKE) wheel
	.ci/library-versions
	$(MAKE) image-check

sbom: image ## write the components of the images, as CycloneDX, to dist/
	@mkdir -p dist
	for name in hotplate hotplate-offline hotplate-spark; do \
	    $(ENGINE) run --rm --entrypoint cat $$name:$(VERSION) /opt/hotplate/sbom.cdx.json > dist/$$name.cdx.json || exit; done

push: sbom ## push the images to REGISTRY=HOST/FOLDER; writes their digests to dist/digests
	@[ -n "$(REGISTRY)" ] || { echo "Name the registry: make push REGISTRY=HOST/FOLDER"; exit 2; }
	.ci/push-images $(ENGINE) $(REGISTRY) $(VERSION)

notes: ## write this version's section of CHANGELOG.md to dist/; TAG=v1.2.3 must be this version
	@[ -z "$(TAG)" ] || [ "$(TAG)" = "v$(VERSION)" ] || { echo "The tag is $(TAG), and pyproject.toml says $(VERSION)."; exit 1; }
	@mkdir -p dist
	@awk '/^## /{on = $$2 == "$(VERSION)"; next} on' CHANGELOG.md | grep . > dist/notes.md || \
	    { echo "CHANGELOG.md has no section $(VERSION)."; exit 1; }

# In one process: pytest-benchmark does not work with xdist.
bench: .venv/dev .venv/lane ## run the benchmarks, and compare with the last run; ONLY=tools/test_lookups.py
	$(BIN)/python -m pytest -o addopts="--import-mode=importlib --strict-markers" -p no:xdist -p no:schemathesis \
	    $$(ls .benchmarks/*/*.json >/dev/null 2>&1 && echo --benchmark-compare) --timeout 1800 \
	    --benchmark-storage file://.benchmarks --benchmark-autosave --benchmark-histogram .benchmarks/histogram \
	    $(or $(ONLY),tools)

figures: .venv/dev .venv/lane ## write the tables of README and docs/measuring.md; KEEP="FILE …" adds results first
	$(BIN)/python -m tools.docs_figures $(KEEP)

quality: .venv/dev ## measure the lists on both data sets and every split, and write the tables of the docs
	$(BIN)/python -m tools.quality

site: .venv/site ## build the documentation as a site in dist/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

lock: .venv/dev ## resolve the requirements again (needs uv)
	$(LOCK) pyproject.toml --extra offline --extra redis --extra cosmos --extra bench --group build -o requirements/demo.lock
	$(LOCK) pyproject.toml --extra offline --extra redis-entra --extra cosmos --extra arrow --extra oidc --extra bench \
	    --extra azure-monitor --group build --group dev \
	    --constraint requirements/demo.lock -o requirements/dev.lock
	$(LOCK) pyproject.toml --extra server --group k8s --constraint requirements/dev.lock -o requirements/k8s.lock
	$(LOCK) pyproject.toml --extra redis-entra --extra cosmos --extra oidc --extra events --extra azure-monitor \
	    --constraint requirements/dev.lock -o requirements/serve.lock
	$(LOCK) pyproject.toml --extra redis-entra --extra cosmos --extra oidc --extra events --extra azure-monitor --extra offline --extra bench \
	    --group offline-image --constraint requirements/dev.lock -o requirements/offline.lock
	$(LOCK) --group docs --constraint requirements/dev.lock -o requirements/docs.lock
	$(LOCK) --group image --constraint requirements/k8s.lock -o requirements/image.lock
	$(LOCK) pyproject.toml --extra redis --extra cosmos --extra spark --constraint requirements/dev.lock -o requirements/spark.lock

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("hotplate needs Python 3.11 or newer; this is %s. Try: make PYTHON=python3.12 demo" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "Creating a virtual environment failed. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }

.venv/demo: requirements/demo.lock pyproject.toml | .venv/bin/python
	@echo "Installing what the demo needs (a minute on a first run) ..."
	@$(PIP_INSTALL) --require-hashes -r requirements/demo.lock
	@HOTPLATE_EXTENSION=skip $(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

.venv/dev: requirements/dev.lock pyproject.toml | .venv/bin/python
	@echo "Installing what the tests need (a minute on a first run) ..."
	@$(PIP_INSTALL) --require-hashes -r requirements/dev.lock
	@HOTPLATE_EXTENSION=skip $(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch .venv/demo $@

# An editable install does not recompile the fast lane when its source changes. Without a compiler, the next target tries
# again.
.venv/lane: serve/connections/lane.pyx hatch_build.py | .venv/bin/python
	@echo "Compiling the fast lane ..."
	@$(BIN)/python hatch_build.py
	@! ls serve/connections/lane.*.so >/dev/null 2>&1 || touch $@

# Without compiling, because few of the modules are imported.
.venv/k8s: requirements/k8s.lock .ci/k8s-tools | .venv/dev
	@echo "Installing what the checks of k8s/ need (a minute on a first run) ..."
	@$(PIP_INSTALL) --no-compile --require-hashes -r requirements/k8s.lock
	@.ci/k8s-tools .venv/bin
	@touch $@

.venv/site: requirements/docs.lock | .venv/dev
	@$(PIP_INSTALL) --no-compile --require-hashes -r requirements/docs.lock
	@touch $@

.venv/spark: requirements/spark.lock | .venv/dev
	@echo "Installing what Spark needs (several minutes on a first run) ..."
	@$(PIP_INSTALL) --no-compile --require-hashes -r requirements/spark.lock
	@touch $@

clean: ## remove the environment, caches and results
	rm -rf .venv serve/connections/lane.*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
