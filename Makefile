# One word per chore. `make run` and `make test` set up all they need in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PORT   ?= 8501

.PHONY: run test check bench test-faults test-servers test-security test-scale test-slow clean help

help:            ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 16

run: $(VENV)/ready          ## install if needed, then serve the dashboard on 127.0.0.1
	$(BIN)/tuner webui --port $(PORT)

# In the order of their names: the browser files come first, which have few tests and take longest.
test: $(VENV)/ready-dev     ## the fast, honest suite
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not faults"

test-slow: $(VENV)/ready-dev   ## everything that takes minutes
	TUNER_EXAMPLES=all $(BIN)/python -m pytest -m "slow and not faults"
	TUNER_EXAMPLES=all $(BIN)/python -m pytest -m "hypothesis and not slow and not faults"

test-servers: $(VENV)/ready-dev ## the way of a run through real tracking servers: on SQLite, on PostgreSQL with S3
	$(BIN)/python -m pytest -rs -m slow tests/test_servers.py

test-faults: $(VENV)/ready-dev ## the long form of the fault tests; ends with one line of JSON
	$(BIN)/python -m pytest -m faults
	$(BIN)/python -m tests.faults.long

test-security: $(VENV)/ready-dev ## the threats of docs/security.md, the slow ones too; ends with one line of JSON
	$(BIN)/python -m tests.security.long

test-scale: $(VENV)/ready-dev ## the slow tests of scale, then its figures as one line of JSON (half an hour)
	$(BIN)/python -m pytest -m slow tests/test_scale.py
	$(BIN)/python -m tests.scale.long

check: $(VENV)/ready-dev    ## lint and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: $(VENV)/ready-dev    ## speed as ratios against the peers, one line of JSON a case
	$(BIN)/python tests/bench/data.py
	$(BIN)/python tests/bench/tracking.py
	$(BIN)/python tests/bench/preference.py
	$(BIN)/python tests/bench/tokens.py

clean:           ## remove the environment; runs and data stay
	rm -rf $(VENV)

$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "tuner needs Python 3.11 or later; run 'make PYTHON=python3.12 run' with the one you have."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --use-pep517 -c constraints.txt -e .
	touch $@

$(VENV)/ready-dev: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --use-pep517 -c constraints.txt -e '.[dev]'
	touch $@
