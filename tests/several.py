"""Runs of the real command in several processes, and what they left."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from gotr1_jax.trainer.checkpoint import Checkpoints

ROOT = Path(__file__).resolve().parents[1]
WAIT = 600.0  # seconds: for a run on a machine that has other work


class Group:
    """The processes of one run; each one's output goes to a file."""

    def __init__(
        self, words: Sequence[str], folder: Path, processes: int = 2,
        own: Sequence[Sequence[str]] = ((), ()),
    ) -> None:  # fmt: skip
        """words: of `gotr1`; own: further words of each process; folder: of what they compile."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self.logs = [folder / f"{port}_{i}.log" for i in range(processes)]
        self.children: list[subprocess.Popen[bytes]] = []
        for index in range(processes):
            place = {"coordinator": f"127.0.0.1:{port}", "processes": processes, "process": index}
            given = [f"--distributed.{name}={value}" for name, value in place.items()]
            command = [sys.executable, "-m", "gotr1_jax.cli", *words, *given, *own[index]]
            with open(self.logs[index], "wb") as log:
                self.children.append(
                    subprocess.Popen(
                        command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=folder
                    )
                )

    def said(self, index: int) -> str:
        """What a process wrote so far."""
        return self.logs[index].read_text(encoding="utf-8", errors="replace")

    def end(self) -> list[int]:
        """Exit codes, when all have ended."""
        return [child.wait(WAIT) for child in self.children]

    def wait_for(self, path: Path, lines: int) -> None:
        """Until `path` has so many lines; AssertionError where a process ends before."""
        stop = time.monotonic() + WAIT
        while not (path.is_file() and path.read_bytes().count(b"\n") >= lines):
            for index, child in enumerate(self.children):
                assert child.poll() is None, self.said(index)
            assert time.monotonic() < stop
            time.sleep(0.01)

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.children:
            if child.poll() is None:
                child.kill()
            child.wait()


def saved_arrays(run: Path, step: int) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint by their paths, whatever mesh they were saved from."""
    checkpoints = Checkpoints(run / "checkpoints")
    args = ocp.args.Composite(meta=ocp.args.JsonRestore())
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        shapes = reader.restore(checkpoints.folder(step), args=args).meta["arrays"]
    target = {
        path: jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype))
        for path, (shape, dtype) in shapes.items()
    }
    tree = checkpoints.restore(target, step).tree
    return {path: np.asarray(x) for path, x in tree.items()}
