#!/usr/bin/env bash
# Installs gotr1_jax into .venv (first time only) and runs GRPO on the shapes world from the
# embedded checkpoint. Arguments are passed on, e.g.: bash launch/demo.sh --seed 1
# Runs from the checkout: relative paths, the run directory's too, are relative to it.
set -euo pipefail

# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
prepare_environment base

cd "$project_root"
exec "$venv/bin/gotr1" train grpo --config configs/shapes_grpo.yaml "$@"
