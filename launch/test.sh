#!/usr/bin/env bash
# Installs gotr1_jax[test] into .venv (first time only) and runs the tests on the CPU.
# Arguments are passed on to pytest, e.g.: bash launch/test.sh tests/unit -x
# Without any the whole suite runs, in one process a core, four at most (up to 6 GB each).
set -euo pipefail

# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
prepare_environment test

cd "$project_root"
export JAX_PLATFORMS=cpu
# Many tests compile the same programs: a cache on disk saves most of that.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$project_root/.cache/jax}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.5
if (($# == 0)); then
  # A file's tests stay together: they share what was made for them.
  set -- -n auto --maxprocesses 4 --dist loadfile
fi
exec "$venv/bin/python" -m pytest "$@"
