# Two commands do everything: `make app` opens the studio, `make test` runs every check.
# Each makes .venv and installs what it needs the first time; later starts skip that.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
ARGS ?=
PYTEST_ARGS ?=
MINUTES ?= 60
SEED ?= 0

.PHONY: app test test-long chaos bench demo-model lint types browser clean

app: $(VENV)/.app
	$(RUN) app.py --open $(ARGS)

test: $(VENV)/.test browser
	$(MAKE) --no-print-directory lint types
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses 3 --dist loadfile $(PYTEST_ARGS)

chaos: $(VENV)/.test
	OMP_NUM_THREADS=1 $(RUN) -m tests.chaos --minutes $(MINUTES) --seed $(SEED)

test-long:
	$(MAKE) --no-print-directory test PYTEST_ARGS="--long $(PYTEST_ARGS)"

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.test
	$(VENV)/bin/basedpyright

bench: $(VENV)/.test
	$(RUN) -m benchmarks $(ARGS)

demo-model: $(VENV)/.app
	$(RUN) -m vqdq.demo.train --output assets/demo --work .demo-work $(ARGS)

browser:
	@.ci/browser

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis test-artifacts

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.app: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(RUN) -m pip install --quiet -r requirements.txt
	$(RUN) -m pip install --quiet --no-deps -e .
	$(RUN) -m vqdq doctor --warm
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.app
	$(RUN) -m pip install --quiet -e '.[test]'
	@touch $@
