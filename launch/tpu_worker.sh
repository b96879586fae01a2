#!/usr/bin/env bash
# One worker's part of launch/tpu_pod.sh, which runs it on every worker of a slice:
#
#   tpu_worker.sh start COMMAND...  installs, then starts the command, unless it runs already
#   tpu_worker.sh running COMMAND...  exit code 0 if it runs
#   tpu_worker.sh follow            prints the log to the end; exits with the command's exit code
#   tpu_worker.sh mount SERVER:/SHARE  mounts a shared file system at /mnt/gotr1
#
# The command outlives the connection. Its log, process id and exit code are in ~/gotr1_job.
set -euo pipefail

# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
job="${HOME:?}/gotr1_job"

runs() {
  [[ -f "$job/pid" ]] && kill -0 "$(cat "$job/pid")" 2>/dev/null
}

# TPU VM images come with Python 3.10.
choose_python() {
  if [[ ! -e "$venv" ]] && ! (find_python) >/dev/null 2>&1; then
    python3 -m pip install --quiet --user uv || fail "pip could not install uv, which gets Python"
    python3 -m uv python install --quiet 3.12 || fail "uv could not install Python 3.12"
    PYTHON="$(python3 -m uv python find 3.12)"
    export PYTHON
  fi
}

start() {
  local command
  command="$(printf '%q ' "$@")"
  if runs; then
    [[ "$(cat "$job/command")" == "$command" ]] ||
      fail "another command runs here: $(cat "$job/command")(stop it: kill -- -$(cat "$job/pid"))"
    return
  fi
  choose_python
  prepare_environment tpu
  mkdir -p "$job"
  rm -f "$job/exit_code"
  printf '%s' "$command" >"$job/command"
  # Its own session: it goes on when this connection ends.
  setsid nohup bash "${BASH_SOURCE[0]}" run "$@" >"$job/log" 2>&1 </dev/null &
  echo $! >"$job/pid"
}

run_job() {
  local code=0
  cd "$project_root"
  export JAX_PLATFORMS=tpu,cpu
  run_to_end "$venv/bin/gotr1" "$@" || code=$?
  echo "$code" >"$job/exit_code"
}

follow() {
  [[ -f "$job/pid" ]] || fail "nothing was started on this worker"
  tail --lines=+1 --follow --pid="$(cat "$job/pid")" "$job/log"
  [[ -f "$job/exit_code" ]] || fail "the command was killed before it could say how it ended"
  exit "$(cat "$job/exit_code")"
}

mount_share() {
  mountpoint -q /mnt/gotr1 && return
  command -v mount.nfs >/dev/null || sudo apt-get install --yes --quiet nfs-common
  sudo mkdir -p /mnt/gotr1
  sudo mount -t nfs "$1" /mnt/gotr1 || fail "could not mount $1 at /mnt/gotr1"
}

verb="${1:-}"
(($#)) && shift
case "$verb" in
  start) start "$@" ;;
  running) runs && [[ "$(cat "$job/command")" == "$(printf '%q ' "$@")" ]] ;;
  follow) follow ;;
  mount) mount_share "$@" ;;
  run) run_job "$@" ;;
  *) fail "'$verb' is not one of start, running, follow, mount" ;;
esac
