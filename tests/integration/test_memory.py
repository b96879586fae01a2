"""200 steps of a run of the shapes world: what it holds in memory stays what it is."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny import grpo_values, write_config, write_shapes

from gotr1_jax import cli
from gotr1_jax.trainer.loop import memory_metrics
from gotr1_jax.trainer.metrics import MetricsWriter, read_metrics

STEPS = 200


def slope(values: np.ndarray) -> float:
    """Change a step over the second half: the median over pairs of steps, so no single jump."""
    third, fourth = np.split(values[len(values) // 2 :], 2)
    return float(np.median(fourth - third) / len(third))


def test_memory_of_200_steps_does_not_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    monkeypatch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)
    arrays: list[tuple[int, int]] = []
    write = MetricsWriter.write

    def watching(writer: MetricsWriter, step: int, values: Mapping[str, Any]) -> None:
        write(writer, step, values)
        for thread in threading.enumerate():
            if thread.name == "checkpoint":
                thread.join()  # a save holds copies
        live = jax.live_arrays()
        arrays.append((len(live), sum(array.nbytes for array in live)))

    monkeypatch.setattr(MetricsWriter, "write", watching)
    run = tmp_path / "run"
    values = grpo_values(write_shapes(tmp_path / "begin"), run)
    values |= {"steps": STEPS, "samples_every": 50, "checkpoint": {"every": 50, "keep": 1}}
    config = write_config(tmp_path / "grpo.yaml", values)
    assert cli.run(["train", "grpo", "--config", str(config)]) == 0

    # On the devices: after the first steps the same arrays, of the same bytes.
    assert len(arrays) == STEPS and len(set(arrays[5:])) == 1, sorted(set(arrays[5:]))
    host = np.array([line["memory/host_bytes"] for line in read_metrics(run / "metrics.jsonl")])
    per_step = slope(host)
    record_property("host_bytes_per_step", per_step)
    print(f"host memory: {host[-1] / 1e6:.0f} MB, {per_step / 1e3:+.1f} kB a step")
    # Generous: the process still takes a piece of 0.8 MB now and then, ever more rarely.
    assert per_step < 100_000, host[:: STEPS // 20]


def test_what_is_allocated_is_seen() -> None:
    before = memory_metrics()
    held = np.ones(50_000_000, np.uint8)
    after = memory_metrics()
    grown = after["memory/host_bytes"] - before["memory/host_bytes"]
    assert held.nbytes * 0.9 < grown < held.nbytes * 1.5
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
