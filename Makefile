# `make run` runs DockerCoins, `make test` tests it. Both set up what they need in .venv/.
PYTHON ?= python3
WORKERS ?= 1
OTHER_REDIS := $(REDIS_URL)
SERVICES := rng hasher webui worker
PIP := .venv/bin/pip install --quiet --disable-pip-version-check
export PATH := $(CURDIR)/.venv/bin:$(PATH)

# How the processes of `make run` find each other; REDIS_URL may name another Redis.
run: export RNG_URL = http://127.0.0.1:8001
run: export HASHER_URL = http://127.0.0.1:8002
run: export REDIS_URL := $(or $(REDIS_URL),redis://127.0.0.1:8003)

.PHONY: run test test-docker test-k8s test-faults test-abuse test-docs bench lint wheels audit lock release manifest check ports

run: .venv/run.stamp ports
	@echo "DockerCoins is at http://localhost:8000"
	@honcho start -c worker=$(WORKERS),redis=$(if $(OTHER_REDIS),0,1)

test: .venv/test.stamp
	pytest -q -n 4 tests/unit
	pytest -q -n 2 --dist loadfile tests/contract tests/chart

test-docker test-k8s test-faults test-abuse test-docs: test-%: .venv/test.stamp
	pytest -q tests/$*

bench: # AGAINST=FOLDER: compare with that DockerCoins. KUBECONFIG: also on a cluster. QUICK=1: one short run
	@$(PYTHON) bench

lint: .venv/tools.stamp
	pre-commit run --all-files

wheels: .venv/tools.stamp # checks that each package of make run has a wheel; asks the package index
	tools/wheels.sh

audit: .venv/tools.stamp # finds known vulnerabilities in the packages of the images; asks the advisory database
	for s in $(SERVICES); do pip-audit --strict --disable-pip -r $$s/requirements.txt || exit; done

check:
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is missing: install Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"make: Python 3.11 or newer is needed, $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.13 ...")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: $(PYTHON) has no venv: install python3-venv"; exit 1; }

ports:
	@$(PYTHON) -c 'import socket, sys; \
	busy = [p for p in (8000, 8001, 8002, $(if $(OTHER_REDIS),,8003)) if not socket.socket().connect_ex(("127.0.0.1", p))]; \
	busy and sys.exit(f"make: port {busy[0]} is in use: stop what listens there")'

.venv/run.stamp: run/requirements.txt $(SERVICES:%=%/requirements.txt) | check
	@$(PYTHON) -m venv .venv
	@$(PIP) $(foreach file,$^,-r $(file))
	@touch $@

.venv/test.stamp: tests/requirements.txt .venv/run.stamp
	@$(PIP) -r $<
	@touch $@

.venv/tools.stamp: tools/requirements.txt .venv/run.stamp
	@$(PIP) -r $<
	@touch $@

release: # VERSION=v1.1: sets the version in all files
	$(PYTHON) tools/release.py "$(VERSION)"

manifest: # REGISTRY=ghcr.io/alice/dockercoins: prints k8s/*.yaml as one file, with the images from there
	@sed -s 's|127.0.0.1:30500/dockercoins|$(REGISTRY)|; $$a ---' k8s/*.yaml

# Pins all requirements at their newest releases.
LOCK := uv pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11.0 --no-header --no-annotate
lock: .venv/tools.stamp
	for f in $(SERVICES) run tests tools; do \
	  (cd $$f && $(LOCK) requirements.in -o requirements.txt) || exit; done
