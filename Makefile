# Every target makes the virtual environment itself when it is missing or out of date.
#
#   VENV       where the environment lives                            (default .venv)
#   PYTHON     the interpreter it is made from, 3.11 or newer         (default python3)
#   PIP_FLAGS  passed to pip install, for example an index with CPU-only builds of torch
#   PYTEST_ARGS  passed to pytest, for example PYTEST_ARGS="tests/search -k beam"

VENV ?= .venv
PYTHON ?= python3
PIP_FLAGS ?=
PYTEST_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
OLDEST := $(VENV)-oldest
CLIENTS := $(VENV)-clients
SERVERS := $(VENV)-servers

# Small models on few cores: more threads than cores make everything slower.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
# Compiled files are kept: else each worker, and each program that a test starts, compiles anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help install demo serve-demo test test-all test-slow test-oldest test-clients test-servers test-random test-serving test-real soak coverage lint format docs bench-engine bench-gpu soak-serving clean

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

install: $(STAMP)  ## Make the environment

# torch is named and pinned in the same command as everything else, so pip never picks another one.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade -c constraints.txt "pip>=25.1"
	$(PIP) install --quiet $(PIP_FLAGS) -c constraints.txt --group test --group lint -e ".[all]" torch
	$(PIP) install --quiet --no-deps mctx==0.0.71  # its test data alone is read: no jax
	touch $@

$(DOCS_STAMP): $(STAMP)
	$(PIP) install --quiet $(PIP_FLAGS) -c constraints.txt --group docs
	touch $@

demo: $(STAMP)  ## Solve rendered problems with the packaged models; draws one search
	$(BIN)/vprm-search demo

serve-demo: $(STAMP)  ## The production set-up on this machine: two vLLM servers and a search
	$(BIN)/python examples/serve_demo.py

test: $(STAMP)  ## Run the tests (about five minutes on two cores)
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow" $(PYTEST_ARGS)

test-all: test test-slow test-real test-oldest test-clients test-servers test-random  ## Run all of it, as CI does

# One process for the servers: each worker would start some of its own, 3 GB each.
test-slow: $(STAMP)  ## Run the slow tests, those against a real vLLM server among them
	$(BIN)/python -m pytest -n 0 -m slow tests/serving $(PYTEST_ARGS)
	$(BIN)/python -m pytest -n auto --dist worksteal -m slow --ignore=tests/serving \
		--ignore=tests/clients --ignore=tests/real_models $(PYTEST_ARGS)

# Over $(VENV): only what tests/oldest.txt names is installed anew, everything else is found there.
test-oldest: $(STAMP)  ## Run what touches LangChain and LangGraph on the oldest versions of them
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet $(PIP_FLAGS) --no-deps -r tests/oldest.txt
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> "$$($(OLDEST)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/newer.pth"
	$(OLDEST)/bin/python -m pytest -n auto --dist worksteal -m "not slow and not hypothesis" \
		tests/agents tests/chat tests/graph tests/guided tests/policy tests/corpus tests/testing tests/tiny/test_chat_model.py \
		tests/tiny/test_chat_model_standard.py $(PYTEST_ARGS)

# Over $(VENV) like the oldest versions, with the chat clients of many providers, and deepagents.
test-clients: $(STAMP)  ## Run every common chat client against a double of its provider
	test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet $(PIP_FLAGS) --no-deps -r tests/clients/requirements.txt
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> "$$($(CLIENTS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/newer.pth"
	$(CLIENTS)/bin/python -m pytest -n auto --dist worksteal tests/clients $(PYTEST_ARGS)
	$(CLIENTS)/bin/python -m pytest -n 0 tests/servers/test_openai_server.py -k litellm
	$(CLIENTS)/bin/python -m pytest -n 0 tests/agents/test_rubric.py tests/agents/test_search.py -k "rubric or deep"

# Over $(VENV), with LangGraph's server and the newer line of MCP's SDK.
test-servers: $(STAMP)  ## Run the servers for other protocols against their real clients
	test -x $(SERVERS)/bin/python || $(PYTHON) -m venv $(SERVERS)
	$(SERVERS)/bin/python -m pip install --quiet $(PIP_FLAGS) --no-deps -r tests/servers/requirements.txt
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> "$$($(SERVERS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/newer.pth"
	$(SERVERS)/bin/python -m pytest -n 0 tests/servers $(PYTEST_ARGS)

test-random: $(STAMP)  ## Run the properties on examples drawn anew (make test draws the same ones)
	HYPOTHESIS_PROFILE=random $(BIN)/python -m pytest -n auto --dist worksteal \
		-m "hypothesis and not slow" --ignore=tests/serving $(PYTEST_ARGS)

test-serving: $(STAMP)  ## Run the tests against a real vLLM server (built once: 3 minutes, 2.5 GB)
	$(BIN)/python -m pytest -n 0 tests/serving $(PYTEST_ARGS)

# In the environment of the serving tests; converts the weights (a minute, 270 MB) the first time.
test-real: $(STAMP)  ## Run a real pretrained language model as policy, judge and reward model
	$(BIN)/python -m pytest -n 0 -m "slow and not soak" tests/real_models $(PYTEST_ARGS)

soak: $(STAMP)  ## The same on all its problems, with a report (half an hour on two cores)
	$(BIN)/python -m pytest -n 0 -s -m soak tests/real_models $(PYTEST_ARGS)

coverage: $(STAMP)  ## Run the tests and say which lines they missed
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -m "not slow" $(PYTEST_ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: $(STAMP)  ## Check style, types and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict vprm_search
	$(BIN)/mypy --strict --explicit-package-bases -p examples.tiny_models
	$(BIN)/lint-imports --no-cache

format: $(STAMP)  ## Write the code in the project's style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(DOCS_STAMP)  ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f .mkdocs.yml

bench-engine: $(STAMP)  ## Measure the in-process scorer
	$(BIN)/python -m tests.benchmarks.engine

bench-gpu: $(STAMP)  ## Measure it at the 8B shape on a GPU, in ten minutes
	$(BIN)/python -m tests.benchmarks.gpu --out gpu.json

soak-serving: $(STAMP)  ## A real vLLM server's memory over 500 rounds of new pictures
	$(BIN)/python -m tests.benchmarks.served_soak --out soak.json

clean:  ## Remove the environment and everything generated
	rm -rf $(VENV) $(OLDEST) $(CLIENTS) site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
