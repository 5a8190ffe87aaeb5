# HyperGPU: every target works as the first command in a fresh clone. `make help` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

TORCH ?= cpu#     cpu | cuda: the build of PyTorch that is installed
ARGS  ?=#         passed on by demo, test, soak, bench and mutants, as in `make demo ARGS="--rounds 5"`
N     ?= 5#       node containers for `make up` and `make scale`

BIN     := .venv/bin
READY   := .venv/.ready-$(TORCH)#  stamps: what runs is installed,
TOOLS   := .venv/.tools#           what develops,
DOCS    := .venv/.docs#            and what builds the documentation
PROTOS  := $(wildcard protos/*.proto)
LOCK    := deploy/constraints.txt
# The first Python that is new enough; PYTHON=/path/to/python chooses another.
PYTHON  ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3 python; do \
  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)

.PHONY: help install proto lock demo cluster test containers soak lint docs bench mutants up down scale clean

help: ## This list
	@printf 'HyperGPU: train through networks that you do not trust\n\nusage: make TARGET [TORCH=cpu|cuda] [ARGS="..."] [N=nodes]\n\n'
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  \033[1m%-8s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\nStart with `make demo` (no Docker needed), then look around with $(BIN)/hypergpu --help\n'

install: $(TOOLS) ## Make .venv with all that is needed (TORCH=cuda: the CUDA build of PyTorch)

# Installing generates the stubs too, so a fresh clone needs no `make proto`.
$(READY): pyproject.toml setup.py deploy/install-torch $(LOCK) $(PROTOS)
	@[[ -n "$(PYTHON)" ]] || { echo "HyperGPU needs Python 3.11 or newer and found none: install one, or say PYTHON=/path/to/python" >&2; exit 2; }
	@[[ "$(TORCH)" == cpu || "$(TORCH)" == cuda ]] || { echo "TORCH=$(TORCH) is not known: say TORCH=cpu or TORCH=cuda" >&2; exit 2; }
	@[[ -x $(BIN)/python ]] || $(PYTHON) -m venv .venv || { echo "cannot make .venv: on Debian and Ubuntu, install python3-venv" >&2; exit 2; }
	@echo "installing into .venv; the first time takes a few minutes"
	@deploy/install-torch $(BIN)/python $(TORCH)
	@$(BIN)/python -m pip install -qq --constraint $(LOCK) --editable '.[train]'
	@rm -f .venv/.ready-*; touch $@

$(TOOLS): $(READY) deploy/requirements.py
	@echo "installing the development tools"
	@$(BIN)/python deploy/requirements.py dev >.venv/.dev-requirements
	@$(BIN)/python -m pip install -qq --constraint $(LOCK) --requirement .venv/.dev-requirements
	@touch $@

proto: $(TOOLS) ## Generate the gRPC stubs from protos/*.proto
	@$(BIN)/python -c 'import setup; setup.generate_stubs()'

demo: $(READY) ## Train real digits on five nodes behind five kinds of network, on this machine
	@$(BIN)/hypergpu demo $(ARGS)

cluster: $(READY) ## The same, training until Ctrl-C: inspect and control it from another terminal
	@$(BIN)/hypergpu demo --stay $(ARGS)

test: install ## Run the tests, with real processes (ARGS="-k name" for some of them)
	@$(BIN)/python -m pytest -m 'not containers and not soak' --numprocesses 2 --dist loadfile $(ARGS)

soak: install ## Kill processes for minutes of training, in a thousand seeded runs, and try ten times the examples (an hour)
	@$(BIN)/python -m pytest -m 'soak or hypothesis' --hypothesis-profile=soak $(ARGS)

containers: install ## Run the tests of the cluster in containers (needs a Docker engine with Compose v2)
	@$(BIN)/python -m pytest -m containers $(ARGS)

lint: install ## Check format, style, spelling, types and the arrows between packages
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/codespell
	@$(BIN)/mypy
	@$(BIN)/lint-imports

lock: ## Resolve the newest allowed versions anew, and pin them in deploy/constraints.txt
	@rm -rf .venv/lock && $(PYTHON) -m venv .venv/lock
	@deploy/install-torch .venv/lock/bin/python cpu
	@$(PYTHON) deploy/requirements.py run train dev docs >.venv/lock/requirements
	@.venv/lock/bin/python -m pip install -qq --requirement .venv/lock/requirements
	@deploy/lock .venv/lock/bin/python >.venv/lock/constraints && mv .venv/lock/constraints $(LOCK)

$(DOCS): $(TOOLS) deploy/requirements.py
	@echo "installing what builds the documentation"
	@$(BIN)/python deploy/requirements.py docs >.venv/.docs-requirements
	@$(BIN)/python -m pip install -qq --constraint $(LOCK) --requirement .venv/.docs-requirements
	@touch $@

docs: $(DOCS) ## Build the documentation site into build/site; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs --quiet build
	@echo "the site is in build/site: open build/site/index.html, or $(BIN)/mkdocs serve"

bench: install ## Run the benchmarks
	@shopt -s nullglob; for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script $(ARGS); done

mutants: install ## Change the code in one place after the other, and see whether a test notices (minutes)
	@$(BIN)/python -m tools.mutants $(ARGS)

up: ## Build and start the cluster in containers, with Prometheus and Grafana (N=5 nodes)
	@deploy/up $(N)

scale: ## Change the number of node containers, as in `make scale N=8`, and say how the run stands
	@deploy/scale $(N)

down: ## Stop the containers (runs stay in their volume; `docker compose down --volumes` drops them)
	@docker compose --profile monitoring down

clean: ## Remove what was built; runs/ stays
	@rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache protos/*_pb2*.py protos/*_pb2*.pyi
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
