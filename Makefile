# Everything that a person needs. Each target sets up what it needs in .venv; nothing outside this folder changes.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q
NATIVE := CMakeLists.txt pyproject.toml $(shell find src cpu cuda python/bindings -name '*.cc' -o -name '*.h')

.PHONY: demo dev test bench gpu-suite lint format clean help
help:
	@echo "make demo   run a small trained checkpoint: continues a piece of Python, prints speed and expert usage"
	@echo "make test   build and run all tests"
	@echo "make dev    build and install into $(VENV), in place"
	@echo "make bench  kernel and layer benchmarks, with the machine's own limits beside them"
	@echo "make gpu-suite   on a machine with a GPU: all its figures and tests, in under ten minutes"
	@echo "make lint   ruff, mypy, clang-format, clang-tidy, stubs up to date"

$(VENV)/.tools: constraints-dev.txt
	@command -v $${CXX:-c++} >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || \
	  { echo "moerun needs a C++ compiler (on Debian: apt-get install g++), or CXX=its path"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "moerun needs Python 3.10 to 3.13; set PYTHON=python3.x"; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig as s; sys.exit(not os.path.exists(s.get_path("include") + "/Python.h"))' || \
	  { echo "Python's headers are missing (on Debian: apt-get install python3-dev)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "python3 cannot make a virtual environment (on Debian: apt-get install python3-venv)"; exit 1; }
	@echo "installing the pinned tools into $(VENV) (a few minutes the first time)"
	@$(PIP) install -c constraints-dev.txt torch numpy safetensors transformers tokenizers tqdm \
	  scikit-build-core pybind11 cmake ninja pytest pytest-benchmark pytest-xdist hypothesis matplotlib triton ruff mypy clang-format clang-tidy pybind11-stubgen compressed-tensors
	@touch $@

$(VENV)/.built: $(VENV)/.tools $(NATIVE)
	@echo "building the C++ core"
	@PATH="$(abspath $(BIN)):$$PATH" $(PIP) install --no-build-isolation --no-deps -e .
	@touch $@

dev: $(VENV)/.built

demo: dev
	@$(BIN)/python examples/demo.py

test: dev
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: dev
	@$(BIN)/python -m bench.run $(BENCH_ARGS)

gpu-suite: dev
	@$(BIN)/python -m bench.gpu_suite $(GPU_SUITE_ARGS)

lint: dev
	@BIN=$(BIN) sh tests/lint.sh

format: $(VENV)/.tools
	@$(BIN)/ruff format python tests bench examples && $(BIN)/ruff check -q --fix python tests bench examples
	@git ls-files '*.h' '*.cc' | xargs $(BIN)/clang-format -i

clean:
	rm -rf build $(VENV)/.built
