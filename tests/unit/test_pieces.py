"""Checkpoints and weights of two processes on two machines, which share nothing but a bucket.

Run as a program this file is one of the processes.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from object_store import served_bucket

from gotr1_jax.convert import shared_load
from gotr1_jax.convert.find import find_checkpoint
from gotr1_jax.convert.open_checkpoint import open_checkpoint
from gotr1_jax.convert.reader import open_tensors
from gotr1_jax.convert.rules import LINEAR, Naming, Rule
from gotr1_jax.convert.shared_load import exchange
from gotr1_jax.convert.translate import translate_checkpoint
from gotr1_jax.convert.tree import load_tree
from gotr1_jax.errors import RunError, UnreachableError
from gotr1_jax.io import storage
from gotr1_jax.io.digests import identify_weights
from gotr1_jax.io.object_store import ObjectStore, StoredObject
from gotr1_jax.io.partial_file import PartialFile
from gotr1_jax.io.reading import read_bytes
from gotr1_jax.parallel.placement import move_to_mesh
from gotr1_jax.trainer.checkpoint import Checkpoints

VALUES = {
    "split": np.arange(32, dtype=np.float32).reshape(8, 4),
    "whole": np.arange(6, dtype=np.float32),
    "optimizer/0": np.int32(7),  # a folder by the name of a shard
}
# Stored (out, in), as two layers; divided below by columns of what is stored.
KERNELS = np.arange(2 * 512 * 256, dtype=np.float32).reshape(2, 512, 256)
EMBED = np.arange(512 * 128, dtype=np.float32).reshape(512, 128)
WEIGHTS = {"layers.0.w": KERNELS[0], "layers.1.w": KERNELS[1], "embed": EMBED, "norm": EMBED[0]}
MODEL = {"kernel": KERNELS.transpose(0, 2, 1), "embed": EMBED, "norm": EMBED[0]}
NAMING = Naming((Rule("m.kernel", "layers.{l}.w", LINEAR), Rule("m.{x}", "{x}")))


def load_weights(url: str, mesh: Mesh, read: dict[str, int]) -> None:
    """Each process reads half of the rows, and its devices get the columns that are theirs."""
    shared_load.DIVIDED = 1 << 16
    storage.read_in_parts()
    folder = storage.local_path(url)
    state = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in MODEL.items()}
    specs = {"kernel": PartitionSpec(None, "d"), "embed": PartitionSpec("d"), "norm": None}
    placed = {name: NamedSharding(mesh, spec or PartitionSpec()) for name, spec in specs.items()}
    tensors = open_tensors(folder)
    loaded = exchange(load_tree("m", state, NAMING, tensors, np.float32, placed, share=True))
    for name, leaf in loaded.items():
        assert leaf.sharding == placed[name]
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, MODEL[name][shard.index])
    # From the first device of both processes to the second ones, divided otherwise.
    devices = mesh.devices.reshape(2, 2)
    one, other = (
        NamedSharding(Mesh(devices[:, i], ("d",)), PartitionSpec(*spec))
        for i, spec in enumerate((("d",), (None, "d")))
    )
    x = jax.make_array_from_callback(EMBED.shape, one, lambda at: EMBED[at])
    moved = move_to_mesh(x, other)
    assert moved.sharding == other
    for shard in moved.addressable_shards:
        np.testing.assert_array_equal(shard.data, EMBED[shard.index])
    # The header comes with 128 KiB of what is behind it.
    size = sum(x.nbytes for x in WEIGHTS.values())
    assert 0.4 * size < sum(read.values()) < 0.5 * size + 2**17 + 2**12, read
    assert identify_weights("init", folder).keys() == {"init (its files in the bucket)"}
    # Whoever does not know of parts gets the whole file.
    content = safetensors.numpy.load(read_bytes(folder / "model.safetensors"))
    np.testing.assert_array_equal(content["layers.1.w"], KERNELS[1])


def process(index: int, port: str, url: str, weights: str) -> None:
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)
    mesh = Mesh(np.array(jax.devices()), ("d",))
    read: dict[str, int] = {}
    get, get_range = ObjectStore.get, ObjectStore.get_range

    def count(store: ObjectStore, name: str, target: Path, stored: StoredObject) -> bool:
        read[name] = stored.size
        return get(store, name, target, stored)

    def count_range(store: ObjectStore, name: str, begin: int, end: int) -> bytes:
        read[f"{name} {begin}"] = end - begin
        return get_range(store, name, begin, end)

    ObjectStore.get, ObjectStore.get_range = count, count_range  # type: ignore[method-assign]
    load_weights(weights, mesh, read)
    read.clear()

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
        folder = "a/checkpoints/step_000002/state/split/"
        own = sorted(name.removeprefix(folder) for name in read if name.startswith(folder))
        assert own == [".zarray", *(f"{2 * index + i}.0" for i in range(2))], "its own shards"
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
        bucket.write("models/m/model.safetensors", safetensors.numpy.save(WEIGHTS))
        started = [
            subprocess.Popen(
                [sys.executable, __file__, str(index), port, url, f"{bucket.url}/models/m"],
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


def test_ranges_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes(range(256)) * 40
    with served_bucket() as bucket:
        bucket.write("m/weights", content)
        store = ObjectStore(f"{bucket.url}/m")
        asked: list[tuple[int, int]] = []
        get_range = ObjectStore.get_range

        def count(store: ObjectStore, name: str, begin: int, end: int) -> bytes:
            asked.append((begin, end))
            return get_range(store, name, begin, end)

        monkeypatch.setattr(ObjectStore, "get_range", count)
        monkeypatch.setattr("gotr1_jax.io.partial_file._PIECE", 4096)
        stored = store.listing("weights")["weights"]
        part = PartialFile(store, "weights", stored, tmp_path / "weights")
        for begin, end in ((100, 200), (150, 300), (0, 50), (0, 300)):
            part.ensure(begin, end)
        assert asked == [(100, 200), (200, 300), (0, 50), (50, 100)]
        here = (tmp_path / "weights").read_bytes()
        assert here == content[:300] + bytes(len(content) - 300) and not part.is_whole
        part.check_unchanged()
        part.ensure()
        assert (tmp_path / "weights").read_bytes() == content and part.is_whole
        part.ensure(5, 10**9)
        assert sorted(asked[4:]) == [(300, 4396), (4396, 8492), (8492, 10240)]

        bucket.write("m/weights", content[::-1])
        with pytest.raises(RunError, match="m/weights was replaced while it was read"):
            part.check_unchanged()


def test_threads_that_read_a_file_in_parts(tmp_path: Path) -> None:
    """Other ranges at once, the same one once; where that fails the next thread tries."""
    content = bytes(range(256)) * 40
    stored, both = StoredObject(len(content), "1", ""), threading.Barrier(2, timeout=60)
    asked: list[int] = []

    def get_range(name: str, begin: int, end: int) -> bytes:
        asked.append(begin)
        if begin < 6000:
            both.wait()
        elif len(asked) == 3:
            raise UnreachableError("the network is down")
        return content[begin:end]

    store: Any = SimpleNamespace(get_range=get_range)
    part = PartialFile(store, "weights", stored, tmp_path / "weights")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(part.ensure, (100, 5000), (200, 6000)))
        failed = [
            read.exception() for read in [pool.submit(part.ensure, 6000, 10000) for _ in range(8)]
        ]
    assert asked[2:] == [6000, 6000] and sum(error is not None for error in failed) == 1
    there = (tmp_path / "weights").read_bytes()
    assert (there[100:200], there[5000:10000]) == (content[100:200], content[5000:10000])


def test_weights_that_are_replaced_while_they_are_read_are_not_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever reads them: a model that is loaded, or a digest of the whole file."""
    monkeypatch.setenv("GOTR1_STORAGE", str(tmp_path))
    monkeypatch.setattr(storage._work, "in_parts", True)
    state = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in MODEL.items()}
    with served_bucket() as bucket, storage.session():
        bucket.write("m/model.safetensors", safetensors.numpy.save(WEIGHTS))
        folder = storage.local_path(f"{bucket.url}/m")
        tensors = open_tensors(folder)
        new = {name: x + 1 for name, x in WEIGHTS.items()}
        bucket.write("m/model.safetensors", safetensors.numpy.save(new))
        with pytest.raises(RunError, match="m/model.safetensors was replaced while it was read"):
            read_bytes(folder / "model.safetensors")
        with pytest.raises(RunError, match="m/model.safetensors was replaced while it was read"):
            load_tree("m", state, NAMING, tensors, np.float32)


def test_a_base_that_was_replaced_since_the_start_is_not_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a run reads what its start left in the bucket."""
    monkeypatch.setenv("GOTR1_STORAGE", str(tmp_path))
    monkeypatch.setattr(storage._work, "in_parts", True)
    source = find_checkpoint("embedded")
    with served_bucket() as bucket, storage.session():
        for path in source.iterdir():
            bucket.write(f"m/{path.name}", path.read_bytes())
        opened = open_checkpoint(storage.local_path(f"{bucket.url}/m"))
        bucket.write("m/model.safetensors", bytes((source / "model.safetensors").stat().st_size))
        with pytest.raises(RunError, match="m/model.safetensors was replaced while it was read"):
            translate_checkpoint(tmp_path / "model", opened, "original")
        assert not (tmp_path / "model").exists()


def test_files_that_are_here_in_part_are_not_uploaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOTR1_STORAGE", str(tmp_path))
    monkeypatch.setattr(storage._work, "in_parts", True)
    content = bytes(range(256)) * 5000
    with served_bucket() as bucket:
        for name in ("read", "replaced", "removed"):
            bucket.write(f"m/{name}.safetensors", content)
        with storage.session():
            folder = storage.local_path(f"{bucket.url}/m")
            with storage.writing(folder):
                part = storage.partial_file(folder / "read.safetensors")
                assert part is not None
                part.ensure(10, 20)
                (folder / "new").write_bytes(b"other")
                (folder / "new").rename(folder / "replaced.safetensors")
                assert read_bytes(folder / "replaced.safetensors") == b"other"
                (folder / "removed.safetensors").unlink()
        assert bucket.names("m") == ["read.safetensors", "replaced.safetensors"]
        assert bucket.read("m/read.safetensors") == content
        assert bucket.read("m/replaced.safetensors") == b"other"


if __name__ == "__main__":
    process(int(sys.argv[1]), *sys.argv[2:])
