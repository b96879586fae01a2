# shellcheck shell=bash
# Sourced by the scripts beside it: makes .venv in the checkout and installs the project into it.
#
# PYTHON=/path/to/python chooses the interpreter that makes the environment (3.11 or newer).

project_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$project_root/.venv"

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# run COMMAND...: runs it; with dry_run=yes prints it, quoted for a shell, and does nothing.
run() {
  local word line=""
  if [[ "${dry_run:-}" != yes ]]; then
    "$@"
    return
  fi
  for word in "$@"; do
    if [[ -z "$word" || "$word" == *[!A-Za-z0-9_./:=,@+-]* ]]; then
      word="'${word//\'/\'\\\'\'}'"
    fi
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}

# run_to_end COMMAND...: runs it as process $child, waits for its end and returns its exit code.
# SIGTERM does not end the wait, and is not handed on: who announces that a machine is taken away
# tells every process, and a run that is told twice ends at once, without saving.
run_to_end() {
  local code
  "$@" &
  child=$!
  trap 'interrupted=yes' TERM
  while true; do
    # A trap ends `wait` early, with a code that is not the child's.
    interrupted=no code=0
    wait "$child" || code=$?
    [[ "$interrupted" == no ]] && return "$code"
  done
}

# hand_on SIGNAL: for a trap on a signal that only this shell gets.
hand_on() {
  interrupted=yes
  kill -"$1" "$child" 2>/dev/null || true
}

is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# Prints the interpreter to use: PYTHON, or the first of the usual names that is new enough.
find_python() {
  local candidate
  if [[ -n "${PYTHON:-}" ]]; then
    command -v "$PYTHON" >/dev/null 2>&1 || fail "PYTHON=$PYTHON is not an executable"
    is_new_enough "$PYTHON" ||
      fail "PYTHON=$PYTHON is $("$PYTHON" --version 2>&1); Python 3.11 or newer is needed"
    printf '%s\n' "$PYTHON"
    return
  fi
  for candidate in python3 python3.11 python3.12 python3.13 python3.14 python; do
    if is_new_enough "$candidate"; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  fail "no Python 3.11 or newer found; install one, or name it: PYTHON=/path/to/python bash $0"
}

make_venv() {
  local python
  python="$(find_python)" || exit 1
  "$python" -c 'import venv, ensurepip' >/dev/null 2>&1 ||
    fail "$python has no venv module; install it (Debian, Ubuntu: apt install python3-venv)"
  echo "Making the virtual environment $venv with $("$python" --version)"
  if ! "$python" -m venv "$venv"; then
    rm -rf "$venv"
    fail "could not make the virtual environment $venv"
  fi
}

# A stamp holds the checksum of setup.py and of the checkout's place at the last finished
# installation: a changed setup.py installs again, and so does a checkout that was moved.
is_installed() {
  local stamp
  for stamp in "$@"; do
    if [[ -f "$stamp" && "$(cat "$stamp")" == "$checksum" ]]; then
      return 0
    fi
  done
  return 1
}

# prepare_environment base|EXTRA: after it, $venv/bin has the project, installed in place.
prepare_environment() {
  local extra="$1" target="$project_root" stamp="$venv/installed-$1" checksum
  if [[ ! -e "$venv" ]]; then
    make_venv
  fi
  is_new_enough "$venv/bin/python" ||
    fail "$venv holds no working Python 3.11 or newer; delete that folder and run this again"
  checksum="$("$venv/bin/python" -c 'import hashlib, sys
print(hashlib.sha256(open(sys.argv[1], "rb").read() + sys.argv[1].encode()).hexdigest())' \
    "$project_root/setup.py")"
  if [[ "$extra" == base ]]; then
    # Every extra includes the base installation.
    is_installed "$venv"/installed-* && return
  else
    is_installed "$stamp" && return
    target="${project_root}[$extra]"
  fi
  echo "Installing $target into $venv (once; takes some minutes)"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$target" ||
    fail "pip could not install $target; its messages are above"
  printf '%s\n' "$checksum" >"$stamp"
}
