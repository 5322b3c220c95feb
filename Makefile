# make demo   train, prune and export a real network (a few minutes, no network access at run time)
# make test   lint, type check and the test suite
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint clean

demo: $(VENV)/.installed
	$(BIN)/sensprune demo --output demo-output --overwrite

test: $(VENV)/.installed lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m slow

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The stamp is written last, so an interrupted installation is done again.
$(VENV)/.installed: setup.cfg setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[demo,test,tfmot]"
	touch $@

clean:
	rm -rf $(VENV) build dist demo-output *.egg-info
