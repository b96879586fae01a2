#!/usr/bin/env bash
# Runs a command of gotr1 on all GPUs of this host, in one process that sees every GPU:
#
#   bash launch/gpu_host.sh [--dry-run] [--extra cuda12|cuda13] COMMAND...
#   bash launch/gpu_host.sh train grpo --config configs/shapes_grpo.yaml --run_dir runs/mine
#
# --dry-run prints what would be executed. --extra is the installation: cuda12 (default) or cuda13,
# whichever the driver supports. CUDA_VISIBLE_DEVICES restricts the GPUs, as always. After a stop or
# a crash the same command goes on from the last checkpoint.
# Runs from the checkout: relative paths, the run directory's too, are relative to it.
set -euo pipefail

# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

extra=cuda12
while [[ "${1:-}" == -* ]]; do
  case "$1" in
    --dry-run) dry_run=yes ;;
    --extra) shift && extra="${1:-}" ;;
    *) fail "unknown option $1; the options are --dry-run and --extra cuda12|cuda13" ;;
  esac
  shift
done
[[ "$extra" == cuda1[23] ]] || fail "--extra is '$extra'; choose cuda12 or cuda13"
(($#)) || fail "no command; for example: bash $0 train grpo --config FILE"

if [[ "${dry_run:-}" == yes ]]; then
  echo "# unless done before: make $venv and install gotr1_jax[$extra] into it"
else
  nvidia-smi --list-gpus 2>/dev/null | grep -q GPU ||
    fail "no NVIDIA GPU is visible here (nvidia-smi --list-gpus names none)"
  prepare_environment "$extra"
fi
run cd "$project_root"
# Named, so that a broken driver is an error and not a run on the CPU.
run exec env JAX_PLATFORMS=cuda,cpu "$venv/bin/gotr1" "$@"
