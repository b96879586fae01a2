"""Memory in use, as metrics: a leak shows long before the process is killed."""

from __future__ import annotations

import os
from pathlib import Path

import jax

_STATM = Path("/proc/self/statm")


def memory_metrics() -> dict[str, float]:
    """`memory/host_bytes`: resident in this process without memory-mapped files (Linux only).
    `memory/device_bytes`: in use on the fullest of its devices (not on CPU backends).
    """
    values = {}
    if _STATM.exists():
        resident, shared = (int(pages) for pages in _STATM.read_text().split()[1:3])
        values["memory/host_bytes"] = float((resident - shared) * os.sysconf("SC_PAGE_SIZE"))
    known = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    if known:
        values["memory/device_bytes"] = float(max(stats["bytes_in_use"] for stats in known))
    return values
