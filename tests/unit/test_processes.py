"""Several processes: detection, joining, exchanges."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jax
import pytest

from gotr1_jax import cli
from gotr1_jax.config import from_dict
from gotr1_jax.errors import InputError, RunError
from gotr1_jax.parallel import cluster, startup
from gotr1_jax.parallel.cluster import Cluster, find_cluster
from gotr1_jax.parallel.config import DistributedConfig

ROOT = Path(__file__).resolve().parents[2]
STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
}
POD = {"TPU_WORKER_HOSTNAMES": "t-0.t,t-1.t,t-2.t,t-3.t", "TPU_WORKER_ID": "3"}
NO_CHIPS = {"TPU_SKIP_MDS_QUERY": "1"}


def changed(variables: dict[str, str], **values: str | None) -> dict[str, str]:
    """`variables` with some of another value, or, where it is None, without them."""
    return {k: v for k, v in (variables | values).items() if v is not None}


@pytest.mark.parametrize(
    "variables, expected",
    [
        (NO_CHIPS, None),
        (STEP, Cluster("Slurm", 2, True)),
        # A task a GPU on one node, and nodes that differ.
        (
            changed(STEP, SLURM_STEP_TASKS_PER_NODE="8", SLURM_NODEID="0"),
            Cluster("Slurm", 2, False),
        ),
        (changed(STEP, SLURM_STEP_TASKS_PER_NODE="2,1"), Cluster("Slurm", 2, True)),
        (
            changed(STEP, SLURM_STEP_TASKS_PER_NODE="2,1", SLURM_NODEID="0"),
            Cluster("Slurm", 2, False),
        ),
        # A batch script is no step; `salloc` gives a shell that is a step of one task.
        (changed(STEP, SLURM_STEP_NODELIST=None) | NO_CHIPS, None),
        (changed(STEP, SLURM_STEP_NUM_TASKS="1"), None),
        (changed(STEP, SLURM_NTASKS="1", SLURM_STEP_NUM_TASKS=None), None),
        (POD, Cluster("GKE TPU", 4, True)),
        (POD | {"MEGASCALE_NUM_SLICES": "2"}, Cluster("GKE TPU", 8, True)),
        ({"TPU_WORKER_HOSTNAMES": "localhost"} | NO_CHIPS, None),
        (
            {"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"},
            Cluster("GKE TPU", 2, True),
        ),
        (POD | {"JAX_PLATFORMS": "cpu"}, None),
        (POD | {"JAX_PLATFORMS": "tpu,cpu"}, Cluster("GKE TPU", 4, True)),
    ],
)
def test_detection(variables: dict[str, str], expected: Cluster | None) -> None:
    assert find_cluster(variables) == expected


@pytest.fixture
def metadata() -> Iterator[dict[str, str]]:
    """A metadata server; put attributes in. Key "server" is its address, "asked" what was asked."""
    attributes = {"asked": ""}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            key = self.path.removeprefix("/computeMetadata/v1/instance/attributes/")
            attributes["asked"] += f"{key} "
            known = self.headers["Metadata-Flavor"] == "Google" and key in attributes
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(attributes.get(key, "").encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    attributes["server"] = f"127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
    yield attributes
    server.shutdown()
    server.server_close()


def test_tpu_vms_are_asked_for_their_slice(
    metadata: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = {"GCE_METADATA_IP": metadata["server"]}
    monkeypatch.setattr(cluster, "find_spec", lambda name: name)
    assert find_cluster(vm) is None  # no slice

    metadata["worker-network-endpoints"] = "unknown:unknown:10.0.0.2"
    assert find_cluster(vm) is None  # a slice of one host
    metadata["tpu-env"] = "ACCELERATOR_TYPE: 'v5litepod-8'\nMEGASCALE_NUM_SLICES: '2'\n"
    assert find_cluster(vm) == Cluster("Cloud TPU", 2, True)
    del metadata["tpu-env"]
    metadata["worker-network-endpoints"] = "a:b:10.0.0.2,c:d:10.0.0.3,e:f:10.0.0.4,g:h:10.0.0.5"
    assert find_cluster(vm) == Cluster("Cloud TPU", 4, True)

    metadata["asked"] = ""
    assert find_cluster(vm | NO_CHIPS) is None
    assert find_cluster(vm | {"JAX_PLATFORMS": "cpu"}) is None
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    assert find_cluster(vm) is None  # no libtpu
    assert metadata["asked"] == ""


def test_a_silent_metadata_server_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: name)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = f"127.0.0.1:{taken.getsockname()[1]}"
    assert find_cluster({"GCE_METADATA_IP": closed}) is None


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Arguments of the calls of jax.distributed.initialize; the environment is bare."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: calls.append(given))
    for name in (*STEP, *POD, "MEGASCALE_NUM_SLICES", "JAX_LOCAL_DEVICE_IDS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    return calls


def set_variables(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_a_process_alone_joins_nothing(joined: list[dict[str, Any]]) -> None:
    assert startup.start_processes() == 1
    assert startup.start_processes(DistributedConfig("localhost:1", 1, 0)) == 1
    assert joined == []


def test_detected_processes_are_joined_with_all_devices_of_their_host(
    joined: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_variables(monkeypatch, STEP)
    assert startup.start_processes(DistributedConfig(heartbeat_seconds=7)) == 2
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "2")
    monkeypatch.setenv("SLURM_NODEID", "0")
    assert startup.start_processes() == 2
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "1(x2)")
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "0,1")
    startup.start_processes()

    alone, a_task_a_gpu, restricted = joined
    assert alone == {
        "coordinator_address": None,
        "num_processes": None,
        "process_id": None,
        "local_device_ids": [],
        "cluster_detection_method": None,
        "heartbeat_timeout_seconds": 7,
    }
    assert a_task_a_gpu == alone | {"local_device_ids": None, "heartbeat_timeout_seconds": 100}
    assert restricted["local_device_ids"] is None


def test_what_is_given_goes_before_what_is_detected(
    joined: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_variables(monkeypatch, STEP)
    assert startup.start_processes(DistributedConfig("10.0.0.1:8476", 3, 2, 30)) == 3
    assert joined == [
        {
            "coordinator_address": "10.0.0.1:8476",
            "num_processes": 3,
            "process_id": 2,
            "local_device_ids": None,
            "cluster_detection_method": "deactivate",
            "heartbeat_timeout_seconds": 30,
        }
    ]


def test_processes_that_do_not_meet_are_an_error(
    joined: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(**_: Any) -> None:
        raise RuntimeError("DEADLINE_EXCEEDED: barrier timed out")

    monkeypatch.setattr(jax.distributed, "initialize", late)
    with pytest.raises(RunError, match=r"3 processes \(coordinator host:1\) could not be joined"):
        startup.start_processes(DistributedConfig("host:1", 3, 2))


def test_training_joins_before_it_touches_devices(
    joined: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def touch(*_: object) -> None:
        raise InputError(f"devices after {len(joined)} calls")

    monkeypatch.setattr(startup, "start_devices", touch)
    given = ["coordinator=h:9", "processes=2", "process=1", "heartbeat_seconds=9"]
    arguments = ["train", "sft", "--config", str(ROOT / "configs" / "shapes_sft.yaml")]
    assert cli.run(arguments + [f"--distributed.{pair}" for pair in given]) == 2
    assert joined[0]["coordinator_address"] == "h:9"
    assert joined[0]["heartbeat_timeout_seconds"] == 9
    assert "devices after 1 calls" in capsys.readouterr().err


@pytest.mark.parametrize(
    "values, message",
    [
        ({"processes": 2}, "coordinator is None, processes 2, .* give all three"),
        ({"coordinator": "h:1", "processes": 2}, "process None; give all three or none"),
        ({"coordinator": "h", "processes": 2, "process": 0}, "is 'h'; give host:port"),
        ({"coordinator": "h:99999", "processes": 2, "process": 0}, "give host:port"),
        ({"coordinator": "h:1", "processes": 0, "process": 0}, "processes is 0; it must be in"),
        ({"coordinator": "h:1", "processes": 2, "process": 2}, "process is 2, .* use 0 to 1"),
        ({"heartbeat_seconds": 0}, "heartbeat_seconds is 0"),
    ],
)
def test_fields_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_dict(DistributedConfig, values, "distributed.")


CHILD = """
import sys, time
from gotr1_jax.parallel.config import DistributedConfig
from gotr1_jax.parallel.startup import start_devices, start_processes
given = sys.argv[1:]
place = (given[0], int(given[1]), int(given[2])) if given else (None, None, None)
count = start_processes(DistributedConfig(*place, heartbeat_seconds=5))
start_devices(2)
import jax
import numpy as np
from jax.experimental import multihost_utils
indices = multihost_utils.process_allgather(np.int32(jax.process_index())).tolist()
seen = [count, jax.process_index(), jax.local_device_count(), jax.device_count(), indices]
print("seen", seen, flush=True)
time.sleep(600)
"""


AGREE = """
import sys
from gotr1_jax.parallel.config import DistributedConfig
from gotr1_jax.parallel.startup import start_devices, start_processes
start_processes(DistributedConfig(sys.argv[1], 2, int(sys.argv[3]), heartbeat_seconds=5))
start_devices(2)
import jax
import numpy as np
from gotr1_jax.errors import InputError, RunError
from gotr1_jax.parallel import mesh
from gotr1_jax.parallel.processes import broadcast_from_main, check_same_on_all_processes
from gotr1_jax.parallel.processes import exit_process, gather, raise_on_all_processes
from gotr1_jax.parallel.placement import put_addressable_rows, take_on_mesh, gather_to_main
index = jax.process_index()
def say(*what): print("seen", *what, flush=True)
by_rows, by_tensor = mesh.make_mesh(1, 2, 2), mesh.make_mesh(1, 1, 4)
for there in (by_rows, by_tensor):
    say(mesh.assigned_rows(4, there).tolist(), mesh.addressable_rows(4, there).tolist())
whole_groups = [mesh.assigned_groups(4, size).tolist() for size in (1, 2, 4)]
x = put_addressable_rows(10 * mesh.assigned_rows(4, by_rows)[:, None], 4, by_rows)
say(*whole_groups, mesh.fetch_any_rows(x, mesh.assigned_groups(4, 4)).tolist())
say(dict(mesh.local_mesh(by_rows).shape))
own = mesh.assigned_rows(4, by_rows)
x = put_addressable_rows(10 * own[:, None], 4, by_rows)
turned = take_on_mesh(x, np.array([3, 2, 1, 0]))
say(mesh.fetch_rows(turned, own).tolist())
whole = gather_to_main(x)
say(None if whole is None else whole.tolist())
say(gather(np.float32([index])).tolist(), broadcast_from_main(index == 0))
for kind in (RunError, InputError):
    try:
        with raise_on_all_processes():
            if index == 1:
                raise kind("the disk is full")
    except kind as error:
        say(error)
try:
    check_same_on_all_processes(str(index), "configuration")
except RunError as error:
    say(error)
try:
    mesh.make_mesh(2, 1, 1)
except InputError as error:
    say(error)
exit_process(3 + index)
"""


def start_two(slurm: bool, program: str = CHILD) -> list[subprocess.Popen[str]]:
    """Processes 0 and 1 of a pair that finds itself by explicit values, or by Slurm's variables."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    pair = []
    for index in range(2):
        variables = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        arguments = [f"127.0.0.1:{port}", "2", str(index)]
        if slurm:
            place = {"SLURM_STEP_NODELIST": "127.0.0.1", "JAX_COORDINATOR_PORT": str(port)}
            variables |= changed(STEP, SLURM_STEP_TASKS_PER_NODE="2", SLURM_NODEID="0") | place
            variables |= {"SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)}
            arguments = []
        command = [sys.executable, "-c", program, *arguments]
        pipe = subprocess.PIPE
        pair.append(subprocess.Popen(command, env=variables, stdout=pipe, stderr=pipe, text=True))
    return pair


@pytest.mark.parametrize("slurm, victim", [(False, 1), (True, 0)])
def test_two_processes_see_each_other_and_do_not_outlive_each_other(
    slurm: bool, victim: int
) -> None:
    pair = start_two(slurm)
    try:
        for index, child in enumerate(pair):
            # gloo writes lines of its own before ours.
            lines = iter(child.stdout.readline, "")  # type: ignore[union-attr]
            line = next((line for line in lines if line.startswith("seen")), "ended before that")
            assert line == f"seen [2, {index}, 2, 4, [0, 1]]\n"
        pair[victim].kill()
        _, said = pair[1 - victim].communicate(timeout=60)
        assert pair[1 - victim].returncode not in (0, None)
        assert "another task died" in said
    finally:
        for child in pair:
            child.kill()
            child.communicate()


def test_two_processes_agree() -> None:
    pair = start_two(False, AGREE)
    try:
        for index, child in enumerate(pair):
            said, errors = child.communicate(timeout=240)
            assert child.returncode == 3 + index, errors
            lines = [line[5:] for line in said.splitlines() if line.startswith("seen")]
            own = [[0, 1], [2, 3]][index]
            column = [[0], [10], [20], [30]]
            disk = "the disk is full" if index else "process 1: the disk is full"
            assert lines == [
                f"{own} {own}",
                # All devices hold all rows: they are dealt out.
                f"{own} [0, 1, 2, 3]",
                # Four samples of one caption go to one process, with the rows of the other.
                "[2, 3] [2, 3] [] []" if index else f"{own} {own} [0, 1, 2, 3] {column}",
                "{'data': 1, 'fsdp': 1, 'tensor': 2}",
                str([[[30], [20]], [[10], [0]]][index]),
                "None" if index else "[[0], [10], [20], [30]]",
                "[[0.0], [1.0]] True",
                disk,
                disk,
                "process 1 has another configuration than process 0; start all processes with the "
                "same command, on the same files",
                "mesh {'data': 2, 'fsdp': 1, 'tensor': 1} takes 2 of 4 devices and leaves process 1"
                " without any; use all devices, or start fewer processes",
            ]
    finally:
        for child in pair:
            child.kill()
            child.communicate()
