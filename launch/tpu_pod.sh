#!/usr/bin/env bash
# Runs a command of gotr1 on a Cloud TPU slice, the same on all of its workers, with gcloud:
#
#   bash launch/tpu_pod.sh --name NAME --zone ZONE --type TYPE [OPTIONS] COMMAND...
#   bash launch/tpu_pod.sh --name mine --zone us-west4-a --type v5litepod-16 --spot \
#     --bucket gs://BUCKET/runs train grpo --config configs/shapes_grpo.yaml
#
#   --name NAME       of the queued resource and of its TPU VM; made unless it exists
#   --zone, --type    as `gcloud compute tpus accelerator-types list --zone ZONE` lists them
#   --project ID      default: gcloud's own setting
#   --runtime VERSION software of the VM; default: what Google names for the TPU's generation
#   --spot, --reserved  how the slice is paid for; default: on demand
#   --bucket gs://BUCKET/FOLDER  adds `--run_dir gs://BUCKET/FOLDER/NAME` to the command
#   --nfs SERVER:/SHARE  mounted at /mnt/gotr1 on all workers, for those who have no bucket
#   --dry-run         prints what would be executed
#
# The same command again goes on: it follows a run that is still there, and after a preemption it
# asks for the slice anew and starts from the last checkpoint, which is in the bucket: the VMs' own
# disks go with them. Their service account must be allowed to write objects there (the role
# roles/storage.objectUser). Interrupting the script leaves the run alone. The slice costs until it
# is deleted; the last line says how.
#
# A spot slice is told about 30 s before it is taken away. Where a step and its save take longer, set
# --checkpoint.every_minutes to what may be lost, and --checkpoint.grace_seconds to 30 less the time
# of a save.
set -euo pipefail

# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

name="" zone="" type="" runtime="" nfs="" bucket=""
place=() price=()
while [[ "${1:-}" == -* ]]; do
  case "$1" in
    --dry-run) dry_run=yes ;;
    --spot | --reserved) price=("$1") ;;
    --name | --zone | --type | --project | --runtime | --nfs | --bucket)
      [[ -n "${2:-}" ]] || fail "$1 has no value"
      case "$1" in
        --name) name="$2" ;;
        --zone) zone="$2" ;;
        --type) type="$2" ;;
        --project) place+=("--project=$2") ;;
        --runtime) runtime="$2" ;;
        --nfs) nfs="$2" ;;
        --bucket) bucket="${2%/}" ;;
      esac
      shift
      ;;
    *) fail "unknown option $1; the first lines of $0 name the options" ;;
  esac
  shift
done
[[ -n "$name" && -n "$zone" && -n "$type" ]] || fail "give --name, --zone and --type"
(($#)) || fail "no command; for example: train grpo --config FILE"
place+=("--zone=$zone")
if [[ -z "$runtime" ]]; then
  case "$type" in
    v5lite*) runtime=v2-alpha-tpuv5-lite ;;
    v5p*) runtime=v2-alpha-tpuv5 ;;
    v6e*) runtime=v2-alpha-tpuv6e ;;
    v[234]*) runtime=tpu-ubuntu2204-base ;;
    *) fail "no runtime is known for --type $type; name one with --runtime" ;;
  esac
fi

if [[ -n "$bucket" ]]; then
  [[ "$bucket" == gs://?* ]] || fail "--bucket is $bucket; give gs://BUCKET or gs://BUCKET/FOLDER"
  [[ " $* " != *" --run_dir"* ]] || fail "give --bucket or --run_dir, not both"
  set -- "$@" --run_dir "$bucket/$name"
elif [[ -z "$nfs" && "$*" != *gs://* ]]; then
  echo "warning: nothing names a bucket (--bucket gs://BUCKET/FOLDER): what is written to the VMs'" \
    "own disks is lost with them, and the hosts of a slice do not share them" >&2
fi

queued=(gcloud compute tpus queued-resources)
find_state=(
  "${queued[@]}" list "${place[@]}" "--filter=name~(^|/)$name\$" "--format=value(state.state)"
)
create=(
  "${queued[@]}" create "$name" "--node-id=$name" "${place[@]}"
  "--accelerator-type=$type" "--runtime-version=$runtime" ${price[@]+"${price[@]}"}
)
delete=("${queued[@]}" delete "$name" "${place[@]}" --force --quiet)

# Waits until the slice is there; asks for it if it is not, and again if it was taken away.
get_slice() {
  local state asked=no last=""
  while true; do
    state="$("${find_state[@]}")" || fail "gcloud could not list the queued resources of $zone"
    [[ "$state" == "$last" ]] || echo "$name: ${state:-not there}"
    last="$state"
    case "$state" in
      ACTIVE) return ;;
      "")
        "${create[@]}" || fail "gcloud could not ask for $name"
        asked=yes
        ;;
      FAILED | SUSPENDED)
        [[ "$asked" == no ]] || fail "the request for $name ended as $state; see: \
${queued[*]} describe $name ${place[*]}"
        "${delete[@]}" || fail "gcloud could not delete $name, which is $state"
        ;;
    esac
    sleep "${POLL_SECONDS:-20}"
  done
}

# on_workers COMMAND: runs a shell command on all workers at once.
on_workers() {
  run gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=all --quiet "--command=$1"
}

# copy_project ARCHIVE: the checkout to all workers; their .venv and runs stay.
copy_project() {
  run tar --create --gzip --file "$1" --directory "$project_root" \
    --exclude-vcs --exclude=./.venv --exclude=./runs --exclude=__pycache__ . &&
    run gcloud compute tpus tpu-vm scp "$1" "$name:gotr1_jax.tar.gz" "${place[@]}" \
      --worker=all --quiet &&
    on_workers "mkdir -p gotr1_jax && tar --extract --file gotr1_jax.tar.gz --directory gotr1_jax"
}

worker="bash gotr1_jax/launch/tpu_worker.sh"
command="$(printf '%q ' "$@")"
folder=/tmp
if [[ "${dry_run:-}" == yes ]]; then
  echo "# the state of the slice; what follows is for one that is not there yet"
  run "${find_state[@]}"
  run "${create[@]}"
  echo "# repeat the first line until it says ACTIVE, then"
else
  command -v gcloud >/dev/null || fail "gcloud is not installed: cloud.google.com/sdk/docs/install"
  get_slice
  folder="$(mktemp -d)"
  trap 'rm -rf "$folder"' EXIT
fi
if [[ "${dry_run:-}" == yes ]] || ! on_workers "$worker running $command" 2>/dev/null; then
  copy_project "$folder/gotr1_jax.tar.gz" || fail "the project could not be copied to $name"
  if [[ -n "$nfs" ]]; then
    on_workers "$worker mount $(printf '%q' "$nfs")" || fail "$nfs could not be mounted"
  fi
  on_workers "$worker start $command" || fail "the command could not be started on $name"
fi
code=0
on_workers "$worker follow" || code=$?
if ((code)); then
  echo "error: the run or the connection to it ended with code $code; if $name was preempted or" \
    "the connection was lost, the same command goes on" >&2
fi
echo "# when all is done: ${delete[*]}"
exit "$code"
