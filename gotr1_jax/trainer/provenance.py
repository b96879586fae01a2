"""Where a run comes from: provenance.json, to which every start of the run adds an entry."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

import gotr1_jax
from gotr1_jax.errors import InputError
from gotr1_jax.io.files import write_json_atomic
from gotr1_jax.io.reading import read_json_object

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_KEPT = 50  # starts in the file
_SECONDS = 10.0  # that git may take


def describe_start(seed: int, from_step: int) -> dict[str, Any]:
    """An entry: date (UTC), command, seed, commit of the code, versions and machine as text.

    from_step: the step that the start goes on from.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "from_step": from_step,
        "command": command_line(sys.argv),
        "seed": seed,
        "commit": _commit(Path(gotr1_jax.__file__).resolve().parents[1]),
        "versions": _versions(),
        "machine": _machine(),
    }


def add_start(path: Path, entry: Mapping[str, Any]) -> None:
    """Adds an entry to the file, which is begun again where it cannot be read."""
    try:
        starts = read_json_object(path, missing_ok=True).get("starts")
    except InputError:
        starts = None
    kept = starts if isinstance(starts, list) else []
    write_json_atomic(path, {"starts": [*kept, dict(entry)][-_KEPT:]})


def command_line(arguments: Sequence[str]) -> str:
    """A command as one line, without the folder of the program and passwords in addresses."""
    name = Path(arguments[0]).name if arguments and arguments[0] else "python"
    line = shlex.join([name, *arguments[1:]])
    return re.sub(r"://[^/@\s'\"]+@", "://…@", line)


def _commit(root: Path) -> str:
    """The commit of a checkout, and whether its files differ from it; empty outside of one."""
    if not (root / ".git").exists():
        return ""
    try:
        found = [
            subprocess.run(
                ["git", "-C", str(root), *words],
                capture_output=True, text=True, timeout=_SECONDS, check=True,
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        ]  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return found[0] + (" with changes" if found[1] else "")


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """The versions of those packages that are installed, by name."""
    found = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _versions() -> str:
    found = [f"gotr1_jax {gotr1_jax.__version__}", f"Python {platform.python_version()}"]
    found += [f"{name} {number}" for name, number in installed_versions(_PACKAGES).items()]
    return ", ".join(found)


def _machine() -> str:
    kinds = sorted({device.device_kind for device in jax.devices()})
    devices = f"{jax.device_count()} x {' / '.join(kinds)}"
    processes = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores; {devices}{processes}"
