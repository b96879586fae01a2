"""The scripts for GPU hosts, Slurm, TPU VMs and GKE, with stand-ins for what they call."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ["train", "grpo", "--config", "my configs/it's.yaml", "--steps", "3"]
POD = ["--name", "mine", "--zone", "us-west4-a", "--type", "v5litepod-16"]

# Each writes "its name|arguments" to $LOG; `srun` and `gcloud` also do what is asked below.
LOGGED = '#!/usr/bin/env bash\nprintf "%s" "${0##*/}" >>"$LOG"\nprintf "|%s" "$@" >>"$LOG"\n'
SRUN = (
    LOGGED
    + """echo >>"$LOG"
trap 'echo "srun killed its tasks" >>"$LOG"; exit 137' TERM
trap 'echo "srun told its tasks" >>"$LOG"; exit 75' USR1
touch "$LOG.started"
while [[ -n "${SRUN_WAITS:-}" && ! -e "$LOG.go" ]]; do sleep 0.05; done
sleep 0.3
exit 3
"""
)
# States of the slice are the lines of $LOG.states, the last one for good; a worker's command is
# run here, in $HOME.
GCLOUD = (
    LOGGED
    + """echo >>"$LOG"
if [[ "$4" == list ]]; then
  head -n 1 "$LOG.states"
  [[ $(wc -l <"$LOG.states") == 1 ]] || sed -i 1d "$LOG.states"
elif [[ "$4" == scp ]]; then
  cp "$5" "$HOME/gotr1_jax.tar.gz"
elif [[ "$4" == ssh ]]; then
  for word in "$@"; do command="${word#--command=}"; done
  [[ "$command" != *follow ]] || touch "$LOG.follow"
  cd "$HOME" && exec bash -c "$command"
fi
"""
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the scripts, and programs/ with stand-ins, that come first in PATH."""
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "launch", root / "launch")
    (root / "setup.py").touch()
    venv, programs = root / ".venv" / "bin", tmp_path / "programs"
    venv.mkdir(parents=True)
    programs.mkdir()
    (venv / "python").symlink_to(sys.executable)
    # All extras count as installed already.
    (venv.parent / "installed-base").touch()
    for name in ("cuda12", "cuda13", "tpu"):
        (venv.parent / f"installed-{name}").write_text(checksum(root))
    for path, text in {
        venv / "gotr1": LOGGED + 'echo "|$PWD|$JAX_PLATFORMS" >>"$LOG"\necho out\nexit 3\n',
        programs / "nvidia-smi": '#!/bin/sh\necho "GPU 0: NVIDIA"\n',
        programs / "srun": SRUN,
        programs / "scontrol": LOGGED + 'echo >>"$LOG"\n',
        programs / "gcloud": GCLOUD,
    }.items():
        path.write_text(text)
        path.chmod(0o755)
    return root


def checksum(root: Path) -> str:
    setup = root / "setup.py"
    return hashlib.sha256(setup.read_bytes() + str(setup).encode()).hexdigest()


def environment(root: Path, **more: str) -> dict[str, str]:
    path = f"{root.parent / 'programs'}:/usr/bin:/bin"
    home = root.parent / "home"
    home.mkdir(exist_ok=True)
    return {"PATH": path, "LOG": str(root.parent / "log"), "HOME": str(home), **more}


def launch(root: Path, script: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(root / "launch" / script), *args],
        cwd=root.parent,
        env=environment(root, **env),
        capture_output=True,
        text=True,
        timeout=60,
    )


def log(root: Path) -> list[list[str]]:
    path = root.parent / "log"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [line.split("|") for line in lines]


def printed(done: subprocess.CompletedProcess[str]) -> list[list[str]]:
    """The commands of a dry run, as a shell would read them."""
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    return [shlex.split(line) for line in lines]


SCRIPTS = sorted(p.name for p in (ROOT / "launch").iterdir() if p.suffix in (".sh", ".sbatch"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck(script: str) -> None:
    beside = Path(sys.executable).parent / "shellcheck"
    program = str(beside) if beside.exists() else shutil.which("shellcheck")
    assert program, "shellcheck is missing; it comes with the extra 'test'"
    done = subprocess.run(
        [program, "--external-sources", f"launch/{script}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "script, options",
    [("gpu_host.sh", []), ("slurm.sbatch", []), ("tpu_pod.sh", POD)],
)
def test_dry_runs_execute_nothing(checkout: Path, script: str, options: list[str]) -> None:
    shutil.rmtree(checkout / ".venv")
    before = sorted(checkout.parent.rglob("*"))
    commands = printed(launch(checkout, script, "--dry-run", *options, *COMMAND))
    if script == "tpu_pod.sh":  # a worker's command is one argument of ssh
        words = [word for line in commands for word in line]
        commands = [shlex.split(word) for word in words if "tpu_worker.sh start" in word]
    assert commands[-1][-len(COMMAND) :] == COMMAND
    (checkout.parent / "home").rmdir()
    assert sorted(checkout.parent.rglob("*")) == before


def test_gpu_host_runs_the_command_on_the_gpus(checkout: Path) -> None:
    dry = printed(launch(checkout, "gpu_host.sh", "--dry-run", *COMMAND))
    gotr1 = str(checkout / ".venv" / "bin" / "gotr1")
    assert dry == [
        ["cd", str(checkout)],
        ["exec", "env", "JAX_PLATFORMS=cuda,cpu", gotr1, *COMMAND],
    ]
    assert launch(checkout, "gpu_host.sh", *COMMAND).returncode == 3
    assert log(checkout) == [["gotr1", *COMMAND, str(checkout), "cuda,cpu"]]


def test_gpu_host_says_what_is_missing(checkout: Path) -> None:
    (checkout.parent / "programs" / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    assert "no NVIDIA GPU is visible" in launch(checkout, "gpu_host.sh", *COMMAND).stderr
    assert "no command" in launch(checkout, "gpu_host.sh").stderr
    assert "unknown option --gpus" in launch(checkout, "gpu_host.sh", "--gpus", "2").stderr
    assert "--extra is 'rocm'" in launch(checkout, "gpu_host.sh", "--extra", "rocm", "x").stderr
    assert log(checkout) == []


def slurm(root: Path, **more: str) -> subprocess.Popen[str]:
    """The batch script as Slurm runs it: a copy in a folder of its own."""
    spool = root.parent / "slurm_script"
    shutil.copy(root / "launch" / "slurm.sbatch", spool)
    variables = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(root)}
    return subprocess.Popen(
        ["bash", str(spool), *COMMAND],
        env=environment(root, **variables, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path) -> None:
    for _ in range(1200):
        if path.exists():
            return
        time.sleep(0.05)
    pytest.fail(f"{path} did not appear")


def test_slurm_runs_one_step_and_passes_on_its_exit_code(checkout: Path) -> None:
    job = slurm(checkout)
    out, err = job.communicate(timeout=60)
    assert job.returncode == 3, out + err
    (step,) = log(checkout)
    assert step[0] == "srun"
    assert step[-len(COMMAND) - 2 :] == [
        "JAX_PLATFORMS=cuda,cpu",
        str(checkout / ".venv" / "bin" / "gotr1"),
        *COMMAND,
    ]


def test_slurm_stops_the_run_near_the_time_limit_and_queues_it_again(checkout: Path) -> None:
    job = slurm(checkout, SRUN_WAITS="yes")
    wait_for(checkout.parent / "log.started")
    job.send_signal(signal.SIGUSR1)
    out, err = job.communicate(timeout=60)
    assert job.returncode == 75, out + err
    assert log(checkout)[1:] == [["srun told its tasks"], ["scontrol", "requeue", "7"]]


def test_slurm_leaves_preemption_to_slurm(checkout: Path) -> None:
    job = slurm(checkout, SRUN_WAITS="yes")
    wait_for(checkout.parent / "log.started")
    job.send_signal(signal.SIGTERM)  # the tasks get their own from Slurm
    (checkout.parent / "log.go").touch()
    out, err = job.communicate(timeout=60)
    assert job.returncode == 3, out + err
    assert log(checkout)[1:] == []


def test_slurm_refuses_what_cannot_work(checkout: Path) -> None:
    outside = launch(checkout, "slurm.sbatch", *COMMAND)
    assert (outside.returncode, "submit it: sbatch" in outside.stderr) == (1, True)
    elsewhere = launch(checkout, "slurm.sbatch", *COMMAND, SLURM_JOB_ID="7", SLURM_SUBMIT_DIR="/")
    assert (elsewhere.returncode, "submit this from the checkout" in elsewhere.stderr) == (2, True)
    assert log(checkout) == []


def test_slurm_asks_to_be_told_before_it_is_killed() -> None:
    text = (ROOT / "launch" / "slurm.sbatch").read_text()
    for option in ("--requeue", "--signal=B:USR1@300", "--open-mode=append", "--nodes=1"):
        assert f"\n#SBATCH {option}\n" in text
    # sbatch reads no options after the first command.
    assert text.index("set -euo") > text.rindex("#SBATCH ")


def verbs(root: Path) -> list[str]:
    """What gcloud was asked for: the verb, and for ssh what follows the worker's script."""
    found = []
    for words in log(root):
        if words[0] == "gcloud":
            verb = words[4]
            if verb == "ssh":
                command = words[-1].removeprefix("--command=")
                verb = command.split("tpu_worker.sh ")[-1].split()[0]
            found.append(verb)
    return found


def pod(root: Path, states: str, *more: str) -> subprocess.CompletedProcess[str]:
    (root.parent / "log.states").write_text(states)
    return launch(root, "tpu_pod.sh", *POD, *more, *COMMAND, POLL_SECONDS="0")


def make_worker(root: Path) -> None:
    """The stand-in's worker has an environment already."""
    home = root.parent / "home" / "gotr1_jax"
    shutil.copytree(root / ".venv", home / ".venv", symlinks=True)
    (home / "setup.py").touch()
    (home / ".venv" / "installed-tpu").write_text(checksum(home))


def test_tpu_pod_makes_the_slice_copies_starts_and_follows(checkout: Path) -> None:
    environment(checkout)
    make_worker(checkout)
    done = pod(checkout, "\nWAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n", "--spot")
    words = [line for line in (checkout.parent / "log").read_text().splitlines()]
    assert done.returncode == 3, done.stdout + done.stderr
    create = next(line for line in words if "|create|" in line).split("|")
    assert create[4:] == [
        *("create", "mine", "--node-id=mine", "--zone=us-west4-a"),
        *("--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"),
    ]
    home = checkout.parent / "home"
    job = next(line for line in words if line.startswith("gotr1|")).split("|")
    assert job == ["gotr1", *COMMAND, str(home / "gotr1_jax"), "tpu,cpu"]
    assert verbs(checkout) == [
        *("list", "create", "list", "list", "list"),
        *("running", "scp", "mkdir", "start", "follow"),
    ]
    assert "\nout\n" in done.stdout  # the worker's log
    assert "queued-resources delete mine" in done.stdout
    assert (home / "gotr1_job" / "exit_code").read_text() == "3\n"


def test_tpu_pod_keeps_the_run_in_a_bucket(checkout: Path) -> None:
    done = launch(checkout, "tpu_pod.sh", *POD, "--dry-run", "--bucket", "gs://b/runs/", *COMMAND)
    assert done.returncode == 0 and done.stderr == ""
    assert "--run_dir gs://b/runs/mine" in done.stdout
    bare = launch(checkout, "tpu_pod.sh", *POD, "--dry-run", *COMMAND)
    assert bare.stderr.startswith("warning: nothing names a bucket (--bucket gs://BUCKET/FOLDER)")


def test_tpu_pod_asks_anew_for_a_slice_that_was_taken_away(checkout: Path) -> None:
    environment(checkout)
    make_worker(checkout)
    done = pod(checkout, "SUSPENDED\n\nACTIVE\n", "--project", "p")
    assert done.returncode == 3, done.stderr
    assert verbs(checkout)[:6] == ["list", "delete", "list", "create", "list", "running"]

    done = pod(checkout, "\nFAILED\n")
    assert done.returncode == 1
    assert "ended as FAILED" in done.stderr
    assert verbs(checkout) == ["list", "create", "list"]


def test_tpu_pod_follows_a_run_that_is_still_there(checkout: Path) -> None:
    environment(checkout)
    make_worker(checkout)
    home = checkout.parent / "home"
    gotr1 = home / "gotr1_jax" / ".venv" / "bin" / "gotr1"
    gotr1.write_text(
        '#!/bin/sh\ntouch "$LOG.started"\nwhile [ ! -e "$LOG.go" ]; do sleep 0.05; done\n'
    )
    shutil.copytree(checkout / "launch", home / "gotr1_jax" / "launch")
    worker = ["bash", str(home / "gotr1_jax" / "launch" / "tpu_worker.sh")]
    subprocess.run([*worker, "start", *COMMAND], env=environment(checkout), check=True, timeout=60)
    wait_for(checkout.parent / "log.started")
    try:
        other = subprocess.run(
            [*worker, "start", "train", "sft"],
            env=environment(checkout), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert other.returncode == 1
        assert "another command runs here: train grpo" in other.stderr
        (checkout.parent / "log.states").write_text("ACTIVE\n")
        follower = subprocess.Popen(
            ["bash", str(checkout / "launch" / "tpu_pod.sh"), *POD, *COMMAND],
            env=environment(checkout, POLL_SECONDS="0"), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_for(checkout.parent / "log.follow")
    finally:
        (checkout.parent / "log.go").touch()
    follower.communicate(timeout=60)
    assert follower.returncode == 0
    assert verbs(checkout) == ["list", "running", "follow"]


def test_a_worker_that_is_told_to_stop_says_how_its_run_ended(checkout: Path) -> None:
    gotr1 = checkout / ".venv" / "bin" / "gotr1"
    gotr1.write_text(
        "#!/usr/bin/env bash\ntrap 'echo told; sleep 0.3; exit 75' TERM\n"
        'touch "$LOG.started"\nwhile true; do sleep 0.05; done\n'
    )
    assert launch(checkout, "tpu_worker.sh", "start", *COMMAND).returncode == 0
    wait_for(checkout.parent / "log.started")
    pid = int((checkout.parent / "home" / "gotr1_job" / "pid").read_text())
    os.killpg(pid, signal.SIGTERM)
    ended = launch(checkout, "tpu_worker.sh", "follow")
    assert (ended.returncode, ended.stdout.count("told")) == (75, 1), ended.stdout + ended.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--name", "mine", *COMMAND], "give --name, --zone and --type"),
        ([*POD], "no command"),
        ([*POD[:-1], "tpu9", "train"], "no runtime is known for --type tpu9"),
        (["--zone"], "--zone has no value"),
        (["--chips", "4"], "unknown option --chips"),
        ([*POD, "--bucket", "s3://mine", "train"], "--bucket is s3://mine; give gs://BUCKET"),
        ([*POD, "--bucket", "gs://mine", "train", "--run_dir", "x"], "--bucket or --run_dir"),
    ],
)
def test_tpu_pod_names_what_is_wrong(checkout: Path, arguments: list[str], message: str) -> None:
    done = launch(checkout, "tpu_pod.sh", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert log(checkout) == []


def test_jobset_restarts_all_but_bad_input() -> None:
    jobset: dict[str, Any] = yaml.safe_load((ROOT / "launch" / "gke_jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0
    (rule,) = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    (slices,) = jobset["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert job["backoffLimit"] == 0
    assert job["parallelism"] == job["completions"]
    (container,) = job["template"]["spec"]["containers"]
    (refused,) = job["podFailurePolicy"]["rules"]
    assert refused["onExitCodes"]["containerName"] == container["name"]
    assert refused["onExitCodes"]["values"] == [2]
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # a pod failure policy needs it

    topology = job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    columns, rows = map(int, topology.split("x"))
    assert columns * rows == container["resources"]["limits"]["google.com/tpu"] * job["completions"]
    assert container["args"][container["args"].index("--run_dir") + 1].startswith("gs://")
