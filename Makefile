# The commands of the project. Each does its own set-up: python3, g++ and make are enough (nvcc adds the CUDA library).

PYTHON ?= python3
VENV ?= .venv
# The torch that the tests and the demo run on. The package itself takes any torch from 2.10 on.
TORCH ?= 2.13.0
TRITON ?= 3.7.1

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(TORCH)
NATIVE := $(shell find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h' -o -name build.py)

.PHONY: help setup build demo test gpu sanitize lint format docs wheel other-torch mutate clean

help:  ## list these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# torch first, so that nothing else chooses its version; then Triton, unless this torch brought its own. timm, which the
# tests replace layers in, comes without torchvision, whose wheels are each tied to one torch.
$(STAMP): pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "warpwright needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip 'setuptools>=77' 'wheel>=0.45' 'ninja>=1.11'
	$(BIN)/python -m pip install --quiet 'torch==$(TORCH)' 'numpy>=1.26'
	$(BIN)/python -c 'import triton' 2>/dev/null || $(BIN)/python -m pip install --quiet 'triton==$(TRITON)'
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps 'timm>=1.0'
	touch $@

setup: $(STAMP)  ## a virtual environment with torch, the tools and an editable install

# The editable install has built the libraries once; this keeps them up to date.
python/warpwright/lib/build_info.json: $(STAMP) $(NATIVE)
	$(BIN)/python csrc/build.py

build: python/warpwright/lib/build_info.json  ## compile the native libraries in place

demo: build  ## check, train and measure on this machine; writes warpwright-report/
	$(BIN)/warpwright demo

test: build  ## the whole test suite
	$(BIN)/python -m pytest -q -n auto tests

# On the python and the torch that are there, without a virtual environment: GPU machines often have no network.
gpu:  ## everything that only a GPU can answer, in parts of BUDGET=540 seconds; writes gpu-results/
	$(PYTHON) bench/gpu.py

# SANITIZE=--cpu-only leaves out the emulated CUDA kernels.
sanitize: $(STAMP)  ## the kernels under AddressSanitizer and UndefinedBehaviorSanitizer
	$(BIN)/python tests/sanitize.py $(SANITIZE)

lint: build  ## formatters, linters and types, without changing anything
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	find csrc tests examples -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/mypy

format:  ## apply the formatters
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	find csrc tests examples -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format -i

docs: build  ## regenerate the tables in README.md and docs/
	$(BIN)/python docs/generate.py

wheel: $(STAMP)  ## dist/*.whl, one for every Python and every torch from 2.10 on
	rm -f dist/*.whl
	$(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .

# A wheel built against one torch, beside another: several GB of downloads, so it is not part of `make test`.
OTHER_TORCH ?= 2.10.0
other-torch: wheel  ## install the wheel beside torch $(OTHER_TORCH) and run `warpwright check` there
	$(PYTHON) -m venv $(VENV)-$(OTHER_TORCH)
	$(VENV)-$(OTHER_TORCH)/bin/python -m pip install --quiet 'torch==$(OTHER_TORCH)' 'numpy>=1.26' typer rich
	$(VENV)-$(OTHER_TORCH)/bin/python -m pip install --quiet --no-deps --force-reinstall dist/*.whl
	$(VENV)-$(OTHER_TORCH)/bin/warpwright check --backend native

mutate: build  ## plant bugs in the kernels, one at a time, and see that the tests notice
	$(BIN)/python tests/mutate.py

clean:  ## remove what was built, keep the virtual environment
	rm -rf build dist python/warpwright/lib python/*.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	rm -f $(VENV)/.installed-*
