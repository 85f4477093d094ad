# The verbs of this repository. `make demo` and `make test` do all their own set-up.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := .ci/pip-install $(BIN)/python
# Workers have servers of their own; one that has nothing left to do takes tests over from another. The fast tests wait
# for half of their time, so that there are more workers than cores.
PYTEST := $(BIN)/python -m pytest --dist worksteal
FAST := $(PYTEST) -m "not soak and not k8s and not spark" --ignore tests/k8s
# The workers and hundreds of commands load the same modules, which would be compiled for each.
unexport PYTHONDONTWRITEBYTECODE

ENGINE ?= docker
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
REVISION = $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
LOCK := uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --no-annotate --python-version 3.11

.PHONY: help demo test fast soak check lint types k8s-check spark-test wheel image image-check release-check sbom push notes bench figures quality site lock clean

help: ## list the verbs
	@grep -E '^[a-z0-9-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 15

demo: .venv/demo .venv/lane ## data, training, a release and a running service
	$(BIN)/hotplate demo

test: lint ## every check and the fast tests
	@.ci/debian-packages
	@$(MAKE) --no-print-directory --jobs 2 types fast

# What the tests wait, the types are checked. What is below tests/k8s is not even collected: to import it takes seconds.
# All is collected once before: in a fresh clone, each of the workers would else compile all tests for itself, and what
# cannot be imported fails at once, where workers would say so after all other tests.
fast: .venv/dev .venv/lane
	@collected=$$($(FAST) --collect-only -qq 2>&1) || { echo "$$collected"; exit 1; }
	$(FAST) -n 5 --durations 15

soak: .venv/dev .venv/lane ## the long tests: SOAK_MINUTES=10 of load, faults, kills and random cases
	@.ci/debian-packages
	@SOAK_SEED=$${SOAK_SEED:-$$($(BIN)/python -c 'import random; print(random.randrange(1, 1 << 31))')}; export SOAK_SEED; set -x; \
	    $(PYTEST) -n 4 -m "soak and not spark" --ignore tests/k8s --timeout 900 --durations 15 --hypothesis-seed $$SOAK_SEED

check: lint types ## lint, format and types

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev
	$(BIN)/mypy

k8s-check: .venv/k8s ## manifests, images, alerts and dashboards: built, validated against schemas and tried
	$(PYTEST) -n 3 -m k8s tests/k8s

spark-test: .venv/dev ## learning, ranking and publishing on Spark, with executors killed; takes Java, and skips without
	@.ci/debian-packages
	@if .ci/java; then $(MAKE) .venv/spark && $(PYTEST) -n 1 -m spark --timeout 600 tests/offline/spark; \
	    else case ",$$HOTPLATE_REQUIRE," in *,java,*) exit 1;; esac; fi

# The first runs on any platform, without the fast lane; the second, with it, on this platform and this Python.
wheel: .venv/demo ## the wheels, in dist/, installed and tried in environments of their own
	@rm -f dist/hotplate-*.whl
	HOTPLATE_EXTENSION=skip $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	.ci/try-wheel $(PYTHON) dist/hotplate-$(VERSION)-py3-none-any.whl missing
	HOTPLATE_EXTENSION=require $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	.ci/try-wheel $(PYTHON) dist/hotplate-$(VERSION)-cp*.whl compiled

image: ## the images, by ENGINE=docker or podman
	$(ENGINE) build --file k8s/Dockerfile --target serve --build-arg REVISION=$(REVISION) --tag hotplate:$(VERSION) .
	$(ENGINE) build --file k8s/Dockerfile --target offline --build-arg REVISION=$(REVISION) --tag hotplate-offline:$(VERSION) .
	$(ENGINE) build --file k8s/Dockerfile --target spark --build-arg REVISION=$(REVISION) --tag hotplate-spark:$(VERSION) .

image-check: ## the images built and run: train, publish, health check, a GET; their sizes and components
	.ci/image-check $(VERSION) $(REVISION)

# The soak has the sanitizers of the fast lane, and stores of earlier versions, whose commits a shallow clone lacks.
release-check: ## all that a release needs: .ci/run, the wheels, both ends of redis-py's versions, the images
	.ci/run
	$(MAKE) wheel
	.ci/redis-versions
	$(MAKE) image-check

sbom: image ## what is in the images, as CycloneDX, in dist/
	@mkdir -p dist
	for name in hotplate hotplate-offline hotplate-spark; do \
	    $(ENGINE) run --rm --entrypoint cat $$name:$(VERSION) /opt/hotplate/sbom.cdx.json > dist/$$name.cdx.json || exit; done

push: sbom ## the images, to REGISTRY=HOST/FOLDER; their digests are in dist/digests
	@[ -n "$(REGISTRY)" ] || { echo "Say where to: make push REGISTRY=HOST/FOLDER"; exit 2; }
	.ci/push-images $(ENGINE) $(REGISTRY) $(VERSION)

notes: ## what CHANGELOG.md says of this version, in dist/; with TAG=v1.2.3, only if that is it
	@[ -z "$(TAG)" ] || [ "$(TAG)" = "v$(VERSION)" ] || { echo "The tag is $(TAG), and pyproject.toml says $(VERSION)."; exit 1; }
	@mkdir -p dist
	@awk '/^## /{on = $$2 == "$(VERSION)"; next} on' CHANGELOG.md | grep . > dist/notes.md || \
	    { echo "CHANGELOG.md has no section $(VERSION)."; exit 1; }

# By themselves: pytest-benchmark does not work beside xdist.
bench: .venv/dev .venv/lane ## the benchmarks, saved below .benchmarks and compared with the last run; ONLY=bench/test_lookups.py
	$(BIN)/python -m pytest -o addopts="--import-mode=importlib --strict-markers" -p no:xdist -p no:schemathesis \
	    $$(ls .benchmarks/*/*.json >/dev/null 2>&1 && echo --benchmark-compare) --timeout 1800 \
	    --benchmark-storage file://.benchmarks --benchmark-autosave --benchmark-histogram .benchmarks/histogram \
	    $(or $(ONLY),bench)

figures: .venv/dev .venv/lane ## the tables of README and docs/measuring.md; KEEP="FILE …" adds results of make bench and reports first
	$(BIN)/python -m hotplate.bench.docs_figures $(KEEP)

quality: .venv/dev ## how good the lists are, on both data sets and every split, printed and written into the docs
	$(BIN)/python -m hotplate.offline.quality

site: .venv/site ## the documentation as a site, in dist/site
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
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "No virtual environment could be made. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }

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

# An editable install does not compile the fast lane again when its source changes. Without a compiler, the next verb
# tries again.
.venv/lane: serve/connections/lane.pyx hatch_build.py | .venv/bin/python
	@echo "Compiling the fast lane ..."
	@$(BIN)/python hatch_build.py
	@! ls serve/connections/lane.*.so >/dev/null 2>&1 || touch $@

# Few of the modules are imported, and those are compiled then.
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
