"""Checkpoints of two processes on two machines, which share nothing but a bucket.

Run as a program this file is one of the processes.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from object_store import served_bucket

from gotr1_jax.errors import RunError, UnreachableError
from gotr1_jax.io import storage
from gotr1_jax.io.object_store import ObjectStore
from gotr1_jax.trainer.checkpoint import Checkpoints

VALUES = {
    "split": np.arange(32, dtype=np.float32).reshape(8, 4),
    "whole": np.arange(6, dtype=np.float32),
    "optimizer/0": np.int32(7),  # a folder by the name of a shard
}


def process(index: int, port: str, url: str) -> None:
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)
    mesh = Mesh(np.array(jax.devices()), ("d",))

    def place(value: Any) -> jax.Array:
        spec = PartitionSpec("d") if np.ndim(value) == 2 else PartitionSpec()
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(np.shape(value), sharding, lambda at: value[at])

    tree = {name: place(np.asarray(value)) for name, value in VALUES.items()}
    run = storage.local_path(url)
    with storage.writing(run, is_owner=index == 0), Checkpoints(run / "checkpoints", 1) as saved:
        for step in (1, 2):
            saved.save(step, tree, {"step": step})
            saved.wait()
        found = saved.restore(tree)
        assert (found.step, found.meta) == (2, {"step": 2})
        for name, leaf in found.tree.items():
            assert leaf.sharding == tree[name].sharding
            for shard in leaf.addressable_shards:
                np.testing.assert_array_equal(shard.data, np.asarray(VALUES[name])[shard.index])

        def fail(*_: Any) -> None:
            raise UnreachableError("the network is down")

        put = ObjectStore.put
        if index == 1:
            ObjectStore.put = fail  # type: ignore[method-assign]
        saved.save(3, tree, {"step": 3})
        with pytest.raises(RunError, match="the network is down"):
            saved.wait()
        ObjectStore.put = put  # type: ignore[method-assign]
    storage._work.end()
    print("done", flush=True)
    os._exit(0)


def test_processes_that_share_no_disk_save_one_checkpoint(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
    root = Path(__file__).resolve().parents[2]
    with served_bucket() as bucket:
        url = f"{bucket.url}/runs/a"
        started = [
            subprocess.Popen(
                [sys.executable, __file__, str(index), port, url],
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")]),
                    "JAX_PLATFORMS": "cpu",
                    "GOTR1_STORAGE": str(tmp_path / f"machine{index}"),
                },
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for index in range(2)
        ]  # fmt: skip
        try:
            said = [child.communicate(timeout=300)[0] for child in started]
        finally:
            for child in started:
                child.kill()
        assert all(text.endswith("done\n") for text in said), "\n".join(said)
        names = bucket.names("runs/a/checkpoints/step_000002/state/split")
        assert names == [".zarray", "0.0", "1.0", "2.0", "3.0"]  # two of each process
        os.environ["GOTR1_STORAGE"] = str(tmp_path / "third")
        with storage.session():
            run = storage.local_path(url)
            found = Checkpoints(run / "checkpoints").restore(VALUES)  # by one process
            assert found.step == 2
            for name, leaf in found.tree.items():
                np.testing.assert_array_equal(leaf, VALUES[name])
            assert {path.name for path in (run / "checkpoints").iterdir()} == {"step_000002"}


if __name__ == "__main__":
    process(int(sys.argv[1]), *sys.argv[2:])
