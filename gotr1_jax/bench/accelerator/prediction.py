"""What `gotr1 compile` says of the same job: peak bytes of its programs, without a device."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from gotr1_jax.errors import RunError
from gotr1_jax.io.reading import parse_json_object

# A measured section -> the program whose peak it has.
PROGRAMS = {
    "update": "update", "log-probs": "old log-probabilities",
    "rollout": "image loop, last bucket", "decode": "image decoder",
}  # fmt: skip


def predict(options: Sequence[str], timeout: float) -> dict[str, Any]:
    """The report of `gotr1 compile` with these options, from a process that uses no device.

    RunError where it fails, as without the compiler for the chip.
    """
    command = [sys.executable, "-m", "gotr1_jax.cli", "compile", "--json", *options]
    shown = " ".join(["gotr1 compile", *options])
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env=environment, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RunError(f"{shown} took longer than {timeout:.0f} s") from error
    if found.returncode:
        last = (found.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunError(f"{shown}: {last}")
    report = parse_json_object(found.stdout.strip().splitlines()[-1], "the report of gotr1 compile")
    return {
        "command": shown,
        "peak_bytes_of": {p["name"]: p["peak_bytes"] for p in report["programs"]},
        "job_peak_bytes": report["whole_job"]["peak_bytes"],
        "step_seconds_at_least": report["whole_job"]["step_seconds_at_least"],
    }
