# Everything a user or a developer types. `setup` makes .venv with all that the others need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: setup demo test check bench fmt demo-models clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Modelyard needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/modelyard demo $(ARGS)

test: setup
	$(BIN)/python -m pytest $(ARGS)

check: setup
	$(BIN)/ruff check src tests bench training
	$(BIN)/ruff format --check src tests bench training
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: setup
	$(BIN)/ruff check --fix src tests bench training
	$(BIN)/ruff format src tests bench training

bench: setup
	$(BIN)/python bench/gateway.py $(ARGS)
	$(BIN)/python bench/startup.py

demo-models:
	$(PYTHON) -m venv $(VENV)-training
	$(VENV)-training/bin/python -m pip install --quiet --requirement training/requirements.txt
	$(VENV)-training/bin/python -m training.train $(ARGS)
	$(VENV)-training/bin/python -m training.evaluate

clean:
	rm -rf $(VENV) $(VENV)-training .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
