"""What trackers stored, read from the files of the real packages; a stand-in for trackio's.

Trackio 0.43 asks for an older Pillow than this project's tests use, so they run on a stand-in. Its
calls and their keywords are those of `trackio.init`, `Run.log`, `Run.finish` and `trackio.Image` of
that version, with which the same code was run into a local store.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Row = tuple[int, dict[str, float], int]  # step, numbers, how many images
_BLOCK = 32768  # bytes; records of W&B's files lie in blocks, as in LevelDB's logs


def wandb_rows(root: Path) -> list[Row]:
    """The history in the offline runs of a folder, in the order of their files."""
    rows: list[Row] = []
    for path in sorted(root.glob("wandb/offline-run-*/*.wandb")):
        for record in _wandb_records(path):
            if record.WhichOneof("record_type") != "history":
                continue
            items = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
            numbers = {
                name: float(value)
                for name, value in items.items()
                if not name.startswith(("_", "samples/"))
            }
            rows.append((record.history.step.num, numbers, int(items.get("samples/count", 0))))
    return rows


def _wandb_records(path: Path) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, found = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part = data[at + 7 : at + 7 + size]
        at += 7 + size
        found = part if kind in (1, 2) else found + part  # 1: whole; 2, 3, 4: first to last part
        if kind in (1, 4):
            yield Record.FromString(found)


def mlflow_rows(root: Path) -> list[Row]:
    """The metrics in the only run of a file store."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(root / "mlruns").as_uri())
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    (run,) = client.search_runs([experiment.experiment_id])
    folder = root / "mlruns" / experiment.experiment_id / run.info.run_id / "artifacts" / "images"
    steps: dict[int, dict[str, float]] = {}
    for name in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, name):
            values = steps.setdefault(metric.step, {})
            assert name not in values, f"{name} is there twice for step {metric.step}"
            values[name] = metric.value
    return [
        (step, steps[step], len(list(folder.glob(f"*+step+{step}+*.png"))))
        for step in sorted(steps)
    ]


class FakeTrackio(types.ModuleType):
    """The module trackio with runs in memory."""

    def __init__(self) -> None:
        super().__init__("trackio")
        self.__spec__ = importlib.machinery.ModuleSpec("trackio", None)
        self.runs: dict[str, list[Row]] = {}
        self.finished = 0

    class Image:
        def __init__(self, value: np.ndarray, caption: str | None = None) -> None:
            assert value.dtype == np.uint8 and value.ndim == 3

    def init(
        self, project: str, name: str | None = None, resume: str = "never",
        config: dict[str, Any] | None = None, embed: bool = True,
        auto_log_gpu: bool | None = None, auto_log_cpu: bool | None = None,
        server_url: str | None = None,
    ) -> Any:  # fmt: skip
        assert resume == "allow" and name is not None and not embed
        rows, fake = self.runs.setdefault(name, []), self

        class Run:
            def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
                assert step is not None
                images = [v for v in metrics.values() if isinstance(v, FakeTrackio.Image)]
                numbers = {k: v for k, v in metrics.items() if isinstance(v, float)}
                assert len(images) + len(numbers) == len(metrics)
                rows.append((step, numbers, len(images)))

            def finish(self) -> None:
                fake.finished += 1

        return Run()

    def rows(self) -> list[Row]:
        (rows,) = self.runs.values()
        return rows


def fake_trackio(monkeypatch: pytest.MonkeyPatch) -> FakeTrackio:
    """Puts the stand-in in the place of the package."""
    fake = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", fake)
    return fake
