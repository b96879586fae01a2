"""What a run holds in memory, as metrics: a run that leaks shows it long before it is killed."""

from __future__ import annotations

import os
from pathlib import Path

import jax

_STATM = Path("/proc/self/statm")


def memory_metrics() -> dict[str, float]:
    """`memory/host_bytes`, resident in this process, mapped files apart, which the system reads
    and drops as it likes; `memory/device_bytes`, live on the fullest of its devices. Each where
    the system tells: Linux, and every backend but CPUs.
    """
    values = {}
    if _STATM.exists():
        resident, shared = (int(pages) for pages in _STATM.read_text().split()[1:3])
        values["memory/host_bytes"] = float((resident - shared) * os.sysconf("SC_PAGE_SIZE"))
    told = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    if told:
        values["memory/device_bytes"] = float(max(stats["bytes_in_use"] for stats in told))
    return values
