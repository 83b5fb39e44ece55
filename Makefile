# One set of verbs for people and CI; every verb installs what it needs first.
#
#   make serve ARGS="--port 9000"        ARGS goes to the verb's command
#   make setup PYTHON=python3.12         PYTHON makes .venv; default: the first Python >= 3.11 on the PATH

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?=
ARGS ?=
SECONDS ?= 60
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
NATIVE_SOURCES := $(shell find csrc -type f 2>/dev/null)
NATIVE_CODE := $(filter %.h %.cpp,$(NATIVE_SOURCES)) $(wildcard tests/native/*.cpp)
PYTHON_CODE := octavo tests benchmarks

# --- people -----------------------------------------------------------------------------------------------------------

.PHONY: help
help: ## this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(VENV)/.installed ## make .venv and build octavo into it; quick when nothing changed
	@:

.PHONY: serve
serve: setup ## start the server on http://127.0.0.1:8080
	@exec $(BIN)/octavo serve $(ARGS)

.PHONY: chat
chat: setup ## talk to the model in the terminal
	@exec $(BIN)/octavo chat $(ARGS)

.PHONY: test
test: setup ## run the tests; ARGS="tests/api -k stream" for some
	@$(BIN)/python -m pytest $(ARGS)

.PHONY: qa
qa: setup ## a real server against bad inputs, faults, kills and floods, seen from outside; minutes
	@$(BIN)/python -m pytest -m qa tests/qa $(ARGS)
	@$(BIN)/python tests/qa/kill_storm.py
	@$(BIN)/python tests/qa/flood.py
	@$(BIN)/python tests/qa/batch_kills.py

.PHONY: clients
clients: setup build/clients/.installed ## the official clients, unchanged, against a real server; minutes; ARGS="openai_node"
	@$(BIN)/python tests/clients/run.py $(ARGS)

.PHONY: soak
soak: setup ## mixed load with kills for MINUTES=30; the books must balance, memory must be flat; ARGS="--help"
	@$(BIN)/python tests/qa/soak.py --minutes $(or $(MINUTES),30) $(ARGS)

.PHONY: simulate
simulate: setup ## the core under random schedules and faults for SECONDS=60, then with seeded bugs
	@PYTHONPATH=tests $(BIN)/python -m simulation --seconds $(SECONDS) $(ARGS)

.PHONY: fuzz
fuzz: setup ## requests, frames and model files with something wrong; SECONDS=600 for longer
	@$(BIN)/python tests/fuzz/long_run.py --seconds $(SECONDS) $(ARGS)

.PHONY: check-grammars
check-grammars: setup ## 1,000 random JSON schemas followed by the embedded model, every answer validated; minutes
	@PYTHONPATH=tests $(BIN)/python -m grammars.check $(ARGS)

.PHONY: check
check: setup ## lint, formatting, types, import directions
	@$(BIN)/ruff check $(PYTHON_CODE)
	@$(BIN)/ruff format --check --quiet $(PYTHON_CODE) || { echo "run 'make format'" >&2; exit 1; }
	@$(BIN)/mypy
	@$(if $(NATIVE_CODE),$(BIN)/clang-format --dry-run --Werror $(NATIVE_CODE))
	@$(BIN)/python -m pytest tests/test_imports.py tests/test_repository.py

.PHONY: check-page
check-page: $(VENV)/.page ## the web page in a real, headless Chromium: use, accessibility, hostile answers
	@$(BIN)/python -m pytest -m page tests/page $(ARGS)

.PHONY: check-quality
check-quality: setup ## perplexity of few-bit weights against float32, at most 0.5 % apart; minutes
	@$(BIN)/python benchmarks/quality.py $(ARGS)

.PHONY: check-gpu-kernels
check-gpu-kernels: setup ## every GPU kernel compiled for sm_80, sm_90, sm_100 and gfx942, without a GPU; ARGS="--help"
	@$(BIN)/python tests/kernels/triton/compiling.py $(ARGS)

.PHONY: sanitize
sanitize: $(VENV)/.requirements ## the kernels on random shapes under ASan, UBSan and TSan; minutes
	@export PATH="$(abspath $(BIN)):$$PATH"; \
	for kind in thread address,undefined; do \
		cmake -S . -B build/sanitize-$$kind -G Ninja -DOCTAVO_SANITIZE=$$kind >/dev/null; \
		cmake --build build/sanitize-$$kind; \
		export TSAN_OPTIONS=die_after_fork=0; \
		build/sanitize-$$kind/check_pool 1000; \
		build/sanitize-$$kind/check_kernels $(or $(ARGS),100); \
	done

.PHONY: format
format: setup ## rewrite Python and C++ in the one style
	@$(BIN)/ruff check --fix --quiet $(PYTHON_CODE) || true
	@$(BIN)/ruff format $(PYTHON_CODE)
	@$(if $(NATIVE_CODE),$(BIN)/clang-format -i $(NATIVE_CODE))

.PHONY: bench
bench: setup ## compare with transformers, side by side on this machine
	@$(BIN)/python benchmarks/versus_transformers.py $(ARGS)

.PHONY: bench-peers
bench-peers: setup ## compare with llama.cpp and vLLM, side by side; ARGS="--help" tells more
	@$(BIN)/python benchmarks/versus_peers.py $(ARGS)

.PHONY: bench-kernels
bench-kernels: setup ## the product and attention alone, against what this machine can do
	@$(BIN)/python benchmarks/kernels.py $(ARGS)

.PHONY: bench-step
bench-step: setup ## where a step's time goes, by kind of operation
	@$(BIN)/python benchmarks/breakdown.py $(ARGS)

.PHONY: bench-gpu
bench-gpu: setup ## on a GPU: every kernel against float64, then speed as shares of the roofline; ARGS="--help"
	@$(BIN)/python -m benchmarks.gpu $(ARGS)

.PHONY: bench-grammars
bench-grammars: setup ## what following a grammar costs in a step
	@$(BIN)/python benchmarks/grammars.py $(ARGS)

.PHONY: size
size: ## lines by folder
	@git ls-files --cached --others --exclude-standard -- '*.py' '*.pyi' '*.h' '*.cpp' '*.html' '*.css' '*.js' | xargs wc -l | awk ' \
		$$2 == "total" { next } \
		{ n = split($$2, part, "/"); folder = part[1] == "octavo" && n > 2 ? part[1] "/" part[2] : n > 1 ? part[1] : "."; \
		  lines[folder] += $$1; files[folder]++; all += $$1; count++ } \
		END { for (folder in lines) printf "%8d lines %4d files  %s\n", lines[folder], files[folder], folder | "sort -k5"; \
		      close("sort -k5"); printf "%8d lines %4d files\n", all, count }'

.PHONY: docs
docs: setup ## the documentation as a site, in build/site
	@$(PIP) install --constraint constraints.txt mkdocs-material
	@$(BIN)/python docs/make_reference.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

.PHONY: clean
clean: ## remove the environment and everything built
	@rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find octavo tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the environment ----------------------------------------------------------------------------------------------------

# Python files are imported from the checkout, so only what is compiled or declared calls for another installation.
$(VENV)/.installed: $(VENV)/.requirements $(NATIVE_SOURCES) $(wildcard CMakeLists.txt) pyproject.toml constraints.txt
	@echo "installing octavo into $(VENV)"
	@if command -v c++ >/dev/null; then echo "compiling the kernels (about a minute)"; fi
	@$(PIP) install --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@if ! compgen -G '$(VENV)/lib/python*/site-packages/octavo/kernels/*.so' >/dev/null; then \
		if command -v c++ >/dev/null; then \
			$(BIN)/python -m pip install --verbose --no-deps --no-build-isolation --editable . | tail -n 60; \
			echo "the kernels did not compile; the reason stands above" >&2; exit 1; \
		fi; \
		echo "no C++ compiler: octavo will compute in plain torch, slower"; \
	fi
	@touch $@

build/clients/.installed: tests/clients/requirements.txt tests/clients/openai_node.mjs
	@echo "installing the clients into build/clients"
	@test -x build/clients/venv/bin/python || $(BIN)/python -m venv build/clients/venv
	@build/clients/venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@build/clients/venv/bin/python -m pip install --quiet --disable-pip-version-check -r tests/clients/requirements.txt
	@mkdir -p build/clients/node && cp tests/clients/openai_node.mjs build/clients/node/
	@cd build/clients/node && npm install --silent --no-save --no-audit --no-fund --prefix . openai@7.57.0
	@touch $@

$(VENV)/.page: $(VENV)/.installed constraints.txt
	@$(PIP) install --constraint constraints.txt playwright axe-playwright-python
	@touch $@

# torch comes first and alone: it is the largest download, and a wheel at hand (PIP_FIND_LINKS) is taken as it is.
$(VENV)/.requirements: $(BIN)/python constraints.txt
	@echo "installing torch and the build tools into $(VENV)"
	@$(PIP) install --constraint constraints.txt torch
	@$(PIP) install --constraint constraints.txt scikit-build-core nanobind \
		$$(command -v cmake >/dev/null || echo cmake) $$(command -v ninja >/dev/null || echo ninja)
	@touch $@

$(BIN)/python:
	@for python in $(or $(PYTHON),python3 python3.11 python3.12 python3.13); do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$${found:-}" ]; then \
		echo "octavo needs Python 3.11 or newer$(if $(PYTHON),; $(PYTHON) is not; say), for example: make setup PYTHON=python3.11" >&2; exit 1; \
	fi; \
	$$found -m venv $(VENV) || { \
		rm -rf $(VENV); echo "$$found cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 1; }
