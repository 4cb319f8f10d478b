#!/bin/sh
# What `make lint` runs. BIN is the folder of the pinned tools.
set -eu
cd "$(dirname "$0")/.."
"$BIN/ruff" check python tests bench examples
"$BIN/ruff" format --check python tests bench examples
"$BIN/mypy"
git ls-files '*.h' '*.cc' | xargs "$BIN/clang-format" --dry-run -Werror
"$BIN/python" tests/check_stubs.py
build=$(ls -d build/*/ | head -n 1)
git ls-files 'src/*.cc' 'cpu/*.cc' 'cuda/*.cc' | grep -v '/kernels.cc' |
  xargs "$BIN/clang-tidy" --quiet -p "$build" --warnings-as-errors='*'
