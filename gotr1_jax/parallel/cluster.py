"""Detection of the cluster: is this process one of several of a Slurm step or a TPU slice?

`jax.distributed` finds addresses and indices itself. Its detection of whether there are other
processes is not reliable enough to call it always: it counts the tasks of Slurm's allocation
instead of the step (in the shell of `salloc`), starts TPU clusters even if JAX_PLATFORMS excludes
TPUs, fails without a metadata server, and reads variables of MPI.
"""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

# Variables by which `jax.distributed` detects a task of a Slurm step.
_SLURM = (
    "SLURM_JOB_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
)
_METADATA_SECONDS = 5.0


@dataclass(frozen=True)
class Cluster:
    """Processes that were started together as one job."""

    name: str
    processes: int
    # Whether this is the only process on its host; it then uses all devices of the host.
    alone_on_host: bool


def find_cluster(environment: Mapping[str, str] | None = None) -> Cluster | None:
    """The cluster of this process; None if it is the only one.

    environment: variables; None: os.environ. On a TPU VM outside Kubernetes the VM's metadata
    server is queried too.
    """
    variables = os.environ if environment is None else environment
    cluster = _slurm(variables) or _kubernetes_tpu(variables) or _tpu_vm(variables)
    return cluster if cluster is not None and cluster.processes > 1 else None


def _slurm(variables: Mapping[str, str]) -> Cluster | None:
    """A task of `srun`; None for a batch script or an interactive shell."""
    if not all(name in variables for name in _SLURM):
        return None
    # The shell of `salloc` is a step of one task, with SLURM_NTASKS of the whole allocation.
    processes = int(variables.get("SLURM_STEP_NUM_TASKS") or variables["SLURM_NTASKS"])
    counts = _tasks_per_node(variables.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = int(variables.get("SLURM_NODEID", "0"))
    return Cluster("Slurm", processes, node < len(counts) and counts[node] == 1)


def _tasks_per_node(text: str) -> list[int]:
    """Slurm's "8(x2),4" -> [8, 8, 4]."""
    counts: list[int] = []
    for tasks, nodes in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(tasks)] * int(nodes or 1)
    return counts


def _may_use_tpu(variables: Mapping[str, str]) -> bool:
    platforms = variables.get("JAX_PLATFORMS", "")
    return not platforms or "tpu" in platforms.split(",")


def _kubernetes_tpu(variables: Mapping[str, str]) -> Cluster | None:
    """A GKE pod with TPUs: GKE sets variables for the hosts of a slice and the number of slices."""
    hosts = variables.get("TPU_PROCESS_ADDRESSES") or variables.get("TPU_WORKER_HOSTNAMES")
    if not hosts or not _may_use_tpu(variables):
        return None
    slices = int(variables.get("MEGASCALE_NUM_SLICES") or 1)
    return Cluster("GKE TPU", len(hosts.split(",")) * slices, True)


def _tpu_vm(variables: Mapping[str, str]) -> Cluster | None:
    """A worker of a Cloud TPU VM slice.

    TPU_SKIP_MDS_QUERY disables the query; `import jax` sets it on machines without TPU chips.
    """
    if not _may_use_tpu(variables) or "TPU_SKIP_MDS_QUERY" in variables:
        return None
    if find_spec("libtpu") is None:
        return None
    endpoints = _metadata(variables, "worker-network-endpoints")
    if not endpoints:
        return None
    slices = variables.get("MEGASCALE_NUM_SLICES")
    if slices is None:
        found = re.search(
            r"MEGASCALE_NUM_SLICES\s*:\s*'?(\d+)", _metadata(variables, "tpu-env") or ""
        )
        slices = found.group(1) if found else "1"
    return Cluster("Cloud TPU", len(endpoints.split(",")) * int(slices), True)


def _metadata(variables: Mapping[str, str], key: str) -> str | None:
    """An attribute of this VM from Google's metadata server; None if there is none."""
    server = variables.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/attributes/{key}",
        headers={"Metadata-Flavor": "Google"},
    )
    # The server is link-local: proxies of the environment are not used.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_METADATA_SECONDS) as answer:
            return str(answer.read().decode())
    except (urllib.error.URLError, TimeoutError):
        return None
