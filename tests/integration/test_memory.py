"""200 steps of a run of the shapes world: what it holds in memory stays what it is.

What is measured is measured in a process of its own (this file run as a script): the one of pytest
also holds what other tests left behind, and gives it back at any time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny import grpo_values, write_config, write_shapes

from gotr1_jax import cli
from gotr1_jax.parallel import startup
from gotr1_jax.trainer.loop import memory_metrics
from gotr1_jax.trainer.metrics import MetricsWriter, read_metrics

STEPS = 200
HELD = 50_000_000


def slope(values: np.ndarray) -> float:
    """Change a step over the second half: the median over pairs of steps, so no single jump."""
    third, fourth = np.split(values[len(values) // 2 :], 2)
    return float(np.median(fourth - third) / len(third))


def measure(folder: Path) -> None:
    """The script: `measured.json` of what is seen of an allocation, and of arrays a step."""
    startup.start_devices = lambda *_: None  # memory is asked of devices before the job
    before = memory_metrics()
    held = np.ones(HELD, np.uint8)
    after = memory_metrics()
    del held
    arrays: list[tuple[int, int]] = []
    write = MetricsWriter.write

    def watching(writer: MetricsWriter, step: int, values: Mapping[str, Any]) -> None:
        write(writer, step, values)
        for thread in threading.enumerate():
            if thread.name == "checkpoint":
                thread.join()  # a save holds copies
        live = jax.live_arrays()
        arrays.append((len(live), sum(array.nbytes for array in live)))

    MetricsWriter.write = watching  # type: ignore[method-assign]
    assert cli.run(["train", "grpo", "--config", str(folder / "grpo.yaml")]) == 0
    measured = {"before": before, "after": after, "arrays": arrays}
    (folder / "measured.json").write_text(json.dumps(measured))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the script has measured."""
    folder = tmp_path_factory.mktemp("memory")
    values = grpo_values(write_shapes(folder / "begin"), folder / "run")
    values |= {"steps": STEPS, "samples_every": 50, "checkpoint": {"every": 50, "keep": 1}}
    write_config(folder / "grpo.yaml", values)
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(root), str(root / "tests")])
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_memory_of_200_steps_does_not_grow(folder: Path, record_property: Any) -> None:
    arrays = [tuple(pair) for pair in json.loads((folder / "measured.json").read_text())["arrays"]]
    # On the devices: after the first steps the same arrays, of the same bytes.
    assert len(arrays) == STEPS and len(set(arrays[5:])) == 1, sorted(set(arrays[5:]))
    lines = read_metrics(folder / "run" / "metrics.jsonl")
    host = np.array([line["memory/host_bytes"] for line in lines])
    per_step = slope(host)
    record_property("host_bytes_per_step", per_step)
    print(f"host memory: {host[-1] / 1e6:.0f} MB, {per_step / 1e3:+.1f} kB a step")
    # Generous: the process still takes a piece of 0.8 MB now and then, ever more rarely.
    assert per_step < 100_000, host[:: STEPS // 20]


def test_what_is_allocated_is_seen(folder: Path) -> None:
    measured = json.loads((folder / "measured.json").read_text())
    before, after = measured["before"], measured["after"]
    grown = after["memory/host_bytes"] - before["memory/host_bytes"]
    assert HELD * 0.9 < grown < HELD * 1.5
    # The backend of CPUs does not tell.
    assert "memory/device_bytes" not in after


def test_the_fullest_device_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Device:
        def __init__(self, used: int) -> None:
            self.used = used

        def memory_stats(self) -> dict[str, int]:
            return {"bytes_in_use": self.used, "bytes_limit": 100}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(7), Device(9), Device(8)])
    assert memory_metrics()["memory/device_bytes"] == 9


if __name__ == "__main__":
    measure(Path(sys.argv[1]))
