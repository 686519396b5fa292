# Every chore has one name; `make` alone lists them. Needs Python 3.11 to 3.13 with venv, and nothing else.

.DEFAULT_GOAL := help
SHELL := /bin/sh
BIN := .venv/bin
UV := UV_PYTHON_DOWNLOADS=never $(BIN)/uv
# Extras of pyproject.toml that `make install` brings; add providers with EXTRAS="embedded redis dev stripe chain".
EXTRAS ?= embedded redis dev
# Each test worker starts its own engines: more than the cores of a small machine only slows them all down.
WORKERS ?= 2
# Runs of `make simulate`, two at a time: 500 are meant to take under five minutes.
SEEDS ?= 100

.PHONY: help install demo up test check simulate chaos proofs test-servers bench bench-log format lock clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-14s %s\n", $$1, $$2 }'

install: .venv/.installed ## make .venv: every package pinned by version and hash

demo: install ## a real shop's year through the whole system (ARGS="--exit", ARGS="--until 2011-01-31")
	@$(BIN)/counterfoil demo $(ARGS)

up: install ## start engines, API, relay and workers; one Ctrl-C stops them all
	@$(BIN)/counterfoil up $(ARGS)

test: install ## every test but chaos, proofs, servers and bench (ARGS="-k money")
	$(BIN)/pytest -n $(WORKERS) --dist loadfile $(ARGS)

check: install ## style, types, the import law, and drift of the generated documents
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/counterfoil docs --check

simulate: install ## the whole system on one seeded loop, SEEDS=500 runs of it; ARGS="--seed 415" replays one
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) $(ARGS)

chaos: install ## kill, freeze and lie to real processes; the figures must not move
	$(BIN)/pytest -m chaos $(ARGS)

proofs: install ## the log's proofs in every order of six writers; the suite has those of four
	$(BIN)/pytest -m proofs $(ARGS)

test-servers: install ## the end-to-end tests against Apache Kafka and Debian's PostgreSQL (Java, Maven)
	$(BIN)/pytest -m servers $(ARGS)

bench: install ## measure, interleaved with floors, into docs/benchmarks.md (ARGS=--quick)
	$(BIN)/python -m tests.benchmarks $(ARGS)

bench-log: install ## race the log against its floor and its peers, into build/bench/log.json (ARGS=--quick)
	$(BIN)/python -m tests.benchmarks.log $(ARGS)

format: install ## put imports and layout in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: ## write requirements.lock anew; LOCK_ARGS=--upgrade takes newer releases
	@test -x $(BIN)/uv || $(MAKE) install  # it cannot be installed first where a new name is not locked yet
	$(UV) pip compile --quiet --universal --python-version 3.11 --all-extras --generate-hashes \
	    --no-header --no-emit-index-url --no-emit-find-links $(LOCK_ARGS) --output-file requirements.lock pyproject.toml

clean: ## remove .venv and caches; a ledger (.counterfoil) is never touched
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build ./*.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -not -path './.counterfoil/*' -prune -exec rm -rf {} +

# The first two steps need only the standard library: a venv, and the one pinned uv out of the lock.
.venv/.installed: requirements.lock pyproject.toml
	@usable='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; \
	if ! $(BIN)/python -c "$$usable" 2>/dev/null; then \
	    found=; incomplete=; \
	    for candidate in $(PYTHON) python3.13 python3.12 python3.11 python3; do \
	        "$$candidate" -c "$$usable" 2>/dev/null || continue; \
	        if "$$candidate" -c 'import ensurepip, venv' 2>/dev/null; then found=$$candidate; break; fi; \
	        incomplete=$$candidate; \
	    done; \
	    if [ -z "$$found" ] && [ -n "$$incomplete" ]; then \
	        echo "make install: $$incomplete cannot make environments. On Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; \
	    elif [ -z "$$found" ]; then \
	        echo "make install: needs Python 3.11, 3.12 or 3.13. On Debian 12: apt-get install python3 python3-venv" >&2; \
	        echo "If it is somewhere else: make install PYTHON=/where/it/is/python3.12" >&2; exit 1; \
	    fi; \
	    echo "making .venv with $$("$$found" --version)"; \
	    "$$found" -m venv --clear .venv; \
	fi
	@awk '/^uv==/ { on = 1 } on { print; if (!/\\$$/) exit }' requirements.lock > .venv/uv.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.txt
	@$(UV) pip install --python $(BIN)/python --compile-bytecode --require-hashes --constraint requirements.lock \
	    -r pyproject.toml $(EXTRAS:%=--extra %)
	@$(UV) pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation --editable .
	@touch $@
