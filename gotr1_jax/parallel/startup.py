"""What has to be said to the process and to JAX before the first device is touched."""

from __future__ import annotations

import ctypes
import os
import sys

import jax

_MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD, _ARENA_MAX = -4, -1, -2, -8


def keep_freed_memory() -> None:
    """Let glibc's malloc keep what it frees; does nothing elsewhere.

    XLA's CPU backend allocates its temporaries anew at every step. By default glibc gives them
    back to the kernel and takes them zeroed again: a quarter of a million page faults a step of
    the embedded model, which take longer than the arithmetic when several processes compete.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # another C library: nothing to tune
    for option, value in (
        (_MMAP_MAX, 0),
        (_TRIM_THRESHOLD, 2**31 - 1),
        (_TOP_PAD, 256 << 20),
        (_ARENA_MAX, 1),
    ):
        mallopt(option, value)


def start_devices(cpu_devices: int = 1) -> None:
    """Call once, before JAX is used: splits the CPU, if that is what the work will run on."""
    only_cpu = os.environ.get("JAX_PLATFORMS", "") == "cpu"
    if only_cpu or not _has_accelerator():
        keep_freed_memory()
    jax.config.update("jax_num_cpu_devices", cpu_devices)


def _has_accelerator() -> bool:
    """Whether a JAX plugin for an accelerator is installed; touches no device."""
    from importlib.util import find_spec

    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin", "libtpu", "jax_rocm7_plugin")
    return any(find_spec(name) is not None for name in plugins)
