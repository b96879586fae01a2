"""Compiled programs are kept on the disk from run to run, in the user's cache folder.

A program is found again by its text, its options, the versions of JAX and of the compiler, and the
kind of device: versions share the folder. Nothing here happens on import.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import math
import os
import platform
import re
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax

from gotr1_jax.errors import InputError
from gotr1_jax.io.reading import read_text

AUTO, NONE = "auto", "none"
_MOST_BYTES = 4 << 30  # of a folder; beyond, the programs that were used longest ago are deleted
_LEAST_FREE = 256 << 20  # bytes on the disk; with less, programs are read and none is added
_LOG = logging.getLogger(__name__)


def use_compile_cache(folder: str = AUTO, processes: int = 1) -> None:
    """Let JAX keep compiled programs; call before the first of them.

    What is set in JAX itself wins, be it by the environment or by a caller: nothing happens if
    `JAX_COMPILATION_CACHE_DIR` is set, also if it is empty, or if the cache is switched off by
    `JAX_ENABLE_COMPILATION_CACHE`. A folder that cannot be written is read; one that cannot be made
    is done without. Processes may share a folder.

    Args:
      folder: "auto": see `user_folder`; "none": none; else a folder, or a URL that JAX can use.
      processes: of the run. Process 0 alone writes, so several need a folder that all of them see:
        for them "auto" is "none".
    """
    config: Any = jax.config
    if config.jax_compilation_cache_dir is not None or not config.jax_enable_compilation_cache:
        return
    if folder == NONE or (folder == AUTO and processes > 1):
        return
    writable = True
    if "://" not in folder:
        path = user_folder() if folder == AUTO else Path(folder).expanduser().absolute()
        if path is None:
            return
        try:
            writable = _prepare(path)
            if folder == AUTO and path.stat().st_uid not in (os.getuid(), 0):
                raise PermissionError(errno.EPERM, "its programs are another user's")
        except OSError as error:
            _LOG.info("compiled programs are not kept: %s: %s", path, error.strerror)
            return
        folder = str(path)
    # A cache that fails is no failure of the run, which compiles instead.
    message = "Error (reading|writing) persistent compilation cache entry"
    warnings.filterwarnings("ignore", message=message)
    if not writable:
        config.update("jax_persistent_cache_min_compile_time_secs", math.inf)
    elif "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # Small programs too: there are tens of them in a start, of some kilobytes each.
        config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES" not in os.environ:
        # XLA's own caches in the folder are an error where it cannot be written.
        config.update("jax_persistent_cache_enable_xla_caches", "none")
    config.update("jax_compilation_cache_dir", folder)


def user_folder() -> Path | None:
    """`$XDG_CACHE_HOME/gotr1/programs/CPU`, by default in `~/.cache`; None without a home.

    CPU stands for the features of this machine's CPU: programs for another one may not run here,
    and homes are shared by unlike machines.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        cache = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    except RuntimeError:
        return None
    return cache / "gotr1" / "programs" / _cpu_name()


def _cpu_name() -> str:
    try:
        cpus = read_text(Path("/proc/cpuinfo"))
    except InputError:  # not Linux
        cpus = platform.processor()
    features = re.search(r"^(flags|Features)\s*:.*$", cpus, re.MULTILINE)
    text = features.group() if features else cpus
    return f"{platform.machine()}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _prepare(folder: Path) -> bool:
    """Make the folder, for its owner alone, and room in it: whether it can be written.

    OSError if there is none to read either.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            pass
        _delete_oldest(folder)
        return shutil.disk_usage(folder).free >= _LEAST_FREE
    except OSError:
        if not os.access(folder, os.R_OK | os.X_OK) or not folder.is_dir():
            raise
        return False


def _delete_oldest(folder: Path) -> None:
    """Deletes programs until the folder holds three quarters of its most bytes, if it has more.

    Nothing but programs: the folder may be any that a user names.
    """
    found = []
    for entry in os.scandir(folder):
        if not entry.name.endswith("-cache") or not entry.is_file(follow_symlinks=False):
            continue
        try:
            stat = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # another process deletes, too
            continue
        found.append((max(stat.st_atime, stat.st_mtime), stat.st_size, entry.path))
    total = sum(size for _, size, _ in found)
    if total <= _MOST_BYTES:
        return
    for _, size, path in sorted(found):
        if total <= _MOST_BYTES * 3 // 4:
            return
        Path(path).unlink(missing_ok=True)
        total -= size
