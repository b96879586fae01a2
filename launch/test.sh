#!/usr/bin/env bash
# Installs gotr1_jax[test] into .venv (first time only) and runs the tests on the CPU.
# Arguments are passed on to pytest, e.g.: bash launch/test.sh tests/unit -x
set -euo pipefail

# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
prepare_environment test

cd "$project_root"
export JAX_PLATFORMS=cpu
# Many tests compile the same programs: a cache on disk saves most of that.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$project_root/.cache/jax}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.5
exec "$venv/bin/python" -m pytest "$@"
