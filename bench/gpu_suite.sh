#!/usr/bin/env bash
# Builds moerun into the machine's own Python, runs bench/gpu_suite.py, leaves everything in $OUT (default
# ./gpu_suite). For a machine with a GPU and no network: installs nothing else. One call, under ten minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-gpu_suite}
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 MOERUN_CACHE="${MOERUN_CACHE:-$PWD/bench/.cache/moerun}"
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
  echo "gpu_suite: needs an NVIDIA GPU and a torch that can use it" >&2
  exit 1
}
mkdir -p "$out"
"$python" -m pip install -q --no-build-isolation --no-deps --no-index . \
  >"$out/build.log" 2>&1 || {
  tail -n 30 "$out/build.log" >&2
  exit 1
}
# what is left of ten minutes, less what the last section may overrun
"$python" -m bench.gpu_suite --out "$out" --seconds $((570 - 40 - SECONDS)) "$@" 2>&1 | tee "$out/gpu_suite.log"
