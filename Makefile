# `make run` runs DockerCoins, `make test` tests it. Both set up what they need in .venv/.
PYTHON ?= python3
WORKERS ?= 1
OWN_REDIS := $(REDIS_URL)
SERVICES := rng hasher webui worker
PIP := .venv/bin/pip install --quiet --disable-pip-version-check
export PATH := $(CURDIR)/.venv/bin:$(PATH)

# Where the processes of `make run` find each other; a Redis of one's own may be named.
run: export RNG_URL = http://127.0.0.1:8001
run: export HASHER_URL = http://127.0.0.1:8002
run: export REDIS_URL ?= redis://127.0.0.1:8003

.PHONY: run test test-docker test-k8s test-faults test-docs bench lint audit lock check ports

run: .venv/run.stamp ports
	@echo "DockerCoins is at http://localhost:8000"
	@honcho start -c worker=$(WORKERS),redis=$(if $(OWN_REDIS),0,1)

test: .venv/test.stamp
	pytest -q tests/unit tests/contract tests/chart

test-docker test-k8s test-faults test-docs: test-%: .venv/test.stamp
	pytest -q tests/$*

bench: # needs Docker, docker-compose and wrk; root for the memory; KUBECONFIG for rng's replicas. QUICK=1: 4 minutes
	@$(PYTHON) bench/bench.py

lint: .venv/test.stamp
	ruff check . && ruff format --check .

audit: .venv/test.stamp # known weaknesses of what is pinned; asks the advisory database
	for s in $(SERVICES); do pip-audit --strict --disable-pip -r $$s/requirements.txt || exit; done

check:
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is missing: install Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"make: Python 3.11 or newer is needed, $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.13 ...")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: $(PYTHON) has no venv: install python3-venv"; exit 1; }

ports:
	@$(PYTHON) -c 'import socket, sys; \
	busy = [p for p in (8000, 8001, 8002, $(if $(OWN_REDIS),,8003)) if not socket.socket().connect_ex(("127.0.0.1", p))]; \
	busy and sys.exit(f"make: port {busy[0]} is in use: stop what listens there")'

.venv/run.stamp: run/requirements.txt $(SERVICES:%=%/requirements.txt) | check
	@$(PYTHON) -m venv .venv
	@$(PIP) $(foreach file,$^,-r $(file))
	@touch $@

.venv/test.stamp: tests/requirements.txt .venv/run.stamp
	@$(PIP) -r $<
	@touch $@

# The pinned requirements, anew: needs uv (pip install uv).
LOCK := uv pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11.0 --no-header --no-annotate
lock:
	for s in $(SERVICES); do (cd $$s && $(LOCK) requirements.in -o requirements.txt) || exit; done
	for f in run tests; do \
	  (cd $$f && $(LOCK) -c ../webui/requirements.txt -c ../worker/requirements.txt requirements.in -o requirements.txt) || exit; done
