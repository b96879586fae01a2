"""Runs, checkpoints and data in a bucket, against an object store on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import jax.numpy as jnp
import numpy as np
import pytest
from object_store import Bucket, served_bucket

from gotr1_jax import cli
from gotr1_jax.convert.find import find_checkpoint
from gotr1_jax.data.captions import read_captions
from gotr1_jax.errors import InputError, RunError, UnreachableError
from gotr1_jax.io import object_store, storage
from gotr1_jax.io.files import atomic_folder, atomic_write
from gotr1_jax.io.local_copy import LocalCopy
from gotr1_jax.io.lock import folder_lock
from gotr1_jax.io.object_store import ObjectStore
from gotr1_jax.trainer.checkpoint import Checkpoints
from gotr1_jax.trainer.resume import mark_followed, resolve_resume, restore_path
from gotr1_jax.trainer.run_dir import RunDir

TREE = {"w": jnp.arange(12.0).reshape(3, 4), "n": jnp.int32(7)}


@pytest.fixture(scope="module")
def store() -> Iterator[Bucket]:
    with served_bucket() as bucket:
        yield bucket


@pytest.fixture
def bucket(store: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty bucket, for a machine that has not been there yet."""
    monkeypatch.setenv("GOTR1_STORAGE", str(tmp_path / "storage"))
    for name in store.names():
        store.remove(name)
    with storage.session():
        yield store


def save(run: Path, *steps: int, keep: int = 2) -> None:
    with storage.writing(run), Checkpoints(run / "checkpoints", keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, {**TREE, "n": jnp.int32(step)}, {"step": step})


def restored(url: str) -> int:
    """The step that another machine goes on from; its arrays are those that were saved."""
    with storage.session():
        found = restore_path(resolve_resume("auto", url), TREE)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found.tree["w"], TREE["w"])
        assert found.tree["n"] == found.step == found.meta["step"]
        return found.step


def test_a_checkpoint_counts_once_its_manifest_is_there(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, order = f"{bucket.url}/runs/a", []
    put, remove = ObjectStore.put, ObjectStore.remove

    def putting(store: ObjectStore, name: str, content: Any) -> None:
        order.append(name)
        put(store, name, content)

    def removing(store: ObjectStore, names: Any) -> None:
        names = list(names)
        order.extend(f"-{name}" for name in names)
        remove(store, names)

    monkeypatch.setattr(ObjectStore, "put", putting)
    monkeypatch.setattr(ObjectStore, "remove", removing)
    save(storage.local_path(url), 1, 2, 3)
    manifests = [name for name in order if name.endswith("manifest.json")]
    assert manifests == [
        f"{sign}a/checkpoints/step_00000{step}/manifest.json"
        for sign, step in (("", 1), ("", 2), ("", 3), ("-", 1))
    ]
    third = [name for name in order if "step_000003" in name]
    assert third[-1].endswith("manifest.json") and len(third) > 5
    # What kept the first step from being removed is gone before its arrays are.
    first = [name for name in order if name.startswith("-")]
    assert first[0].endswith("manifest.json") and len(first) > 5
    assert {name.split("/")[1] for name in bucket.names("runs/a")} == {"step_000002", "step_000003"}
    # The local disk holds nothing of them but the manifests.
    files = [path for path in storage.local_path(url).rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"manifest.json"}
    assert restored(url) == 3


def test_a_flipped_byte_is_passed_over(bucket: Bucket) -> None:
    url = f"{bucket.url}/runs/b"
    save(storage.local_path(url), 1, 2)
    names = [n for n in bucket.names("runs/b") if "step_000002/state" in n]
    large = max(names, key=lambda name: len(bucket.read(f"runs/b/{name}")))
    content = bytearray(bucket.read(f"runs/b/{large}"))
    content[len(content) // 2] ^= 1
    bucket.write(f"runs/b/{large}", bytes(content))
    assert restored(url) == 1
    bucket.remove("runs/b/checkpoints/step_000001/manifest.json")
    with pytest.raises(RunError, match="no checkpoint in .* is good"):
        restored(url)


def test_what_a_killed_save_left_does_not_count_and_is_removed(bucket: Bucket) -> None:
    url = f"{bucket.url}/runs/c"
    save(storage.local_path(url), 1)
    bucket.write("runs/c/checkpoints/step_000002/state/x", b"half")
    assert restored(url) == 1
    with storage.session():
        run = storage.local_path(url)
        save(run, 4)
    assert {name.split("/")[1] for name in bucket.names("runs/c")} == {"step_000001", "step_000004"}


def test_a_run_goes_on_from_a_path_once(bucket: Bucket) -> None:
    url = f"{bucket.url}/runs/d"
    save(storage.local_path(url), 1, 2)
    step = f"{url}/checkpoints/step_000001"
    with storage.session():
        assert restore_path(resolve_resume(step, url), TREE).step == 1  # type: ignore[arg-type]
        run = RunDir(storage.local_path(url))
        with storage.writing(run.root), Checkpoints(run.checkpoints) as checkpoints:
            checkpoints.drop_after(1)
            mark_followed(run, step, 1)
    assert {name.split("/")[1] for name in bucket.names("runs/d/checkpoints")} != {"step_000002"}
    with storage.session():
        found = resolve_resume(step, url)
        assert found is not None and found.name == "checkpoints"
        assert storage.name_urls(str(found)) == f"{url}/checkpoints"
    with pytest.raises(InputError, match="holds no checkpoint|does not exist"):
        resolve_resume(f"{bucket.url}/runs/none", url)


def test_outputs_are_there_when_the_block_ends(bucket: Bucket) -> None:
    out = storage.local_path(f"{bucket.url}/out")
    with folder_lock(out, "--out"):
        atomic_write(out / "a.json", "{}")
        (out / "images").mkdir()
        (out / "images" / "0.png").write_bytes(b"png")
        (out / ".hidden").write_bytes(b"x")
        sibling = out.with_name("out_plans")
        with folder_lock(sibling, "--out"):
            atomic_write(sibling / "b.json", "{}")
        storage.upload(out)
        (out / "images" / "0.png").unlink()
    assert bucket.names() == ["out/a.json", "out_plans/b.json"]
    scores = storage.local_path(f"{bucket.url}/scores.jsonl")
    bucket.write("scores.jsonl.partial", b"line\n")  # of an earlier start
    with storage.writing(scores):
        assert scores.with_name("scores.jsonl.partial").read_text() == "line\n"
        scores.with_name("scores.jsonl.partial").unlink()
        atomic_write(scores, "line\n")
    assert bucket.names()[-1] == "scores.jsonl"


def test_a_model_that_is_replaced_is_none_in_between(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def write(text: str) -> None:
        with storage.session():
            target = storage.local_path(f"{bucket.url}/model")
            with atomic_folder(target, "config.json") as folder:
                for name in ("config.json", "model.safetensors"):
                    (folder / name).write_text(text)

    write("1")
    put = ObjectStore.put

    def failing(store: ObjectStore, name: str, content: Any) -> None:
        if name.endswith(".safetensors"):
            raise UnreachableError("the network is down")
        put(store, name, content)

    monkeypatch.setattr(ObjectStore, "put", failing)
    with pytest.raises(RunError, match="network is down"):
        write("2")
    assert bucket.names() == ["model/model.safetensors"]
    text = caplog.messages[-1]
    assert "the network is down; what was not uploaded is in" in text
    kept = Path(text.rpartition(" ")[2])
    assert [p.read_text() for p in kept.rglob("config.json")] == ["2"]
    monkeypatch.undo()


def test_models_and_captions_are_read(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("runs/a/config.yaml", "runs/a/model/config.json", "runs/a/model/large.bin")
    bucket.write("runs/a/samples/step_000001/0.png", b"png")
    for name in names:
        bucket.write(name, bytes(2**20 if name.endswith(".bin") else 10))
    got: list[str] = []
    get = ObjectStore.get

    def getting(store: ObjectStore, name: str, *rest: Any) -> bool:
        got.append(name)
        return get(store, name, *rest)

    monkeypatch.setattr(ObjectStore, "get", getting)

    def find() -> bytes:
        with storage.session():
            found = find_checkpoint(f"{bucket.url}/runs/a/")
            content = (found / "large.bin").read_bytes()
            with storage.writing(found), open(found / "large.bin", "r+b") as file:
                file.write(b"what is kept for others does not change")
            return content

    content = find()
    assert "a/samples/step_000001/0.png" not in got
    bucket.write(names[2], content)
    assert find() == content == bytes(2**20)
    assert got.count("a/model/large.bin") == 1
    bucket.write(names[2], b"1" * 2**20)
    assert find() == b"1" * 2**20 and got.count("a/model/large.bin") == 2
    with storage.session():
        run = find_checkpoint(f"{bucket.url}/runs/a").parent
        assert not (run / "samples").exists()
        assert storage.local_path(f"{bucket.url}/runs/a") == run
        with storage.writing(run):
            assert (run / "samples/step_000001/0.png").read_bytes() == b"png"
    assert "samples/step_000001/0.png" in bucket.names("runs/a")
    bucket.write("text/one.txt", b"a red circle\n")
    bucket.write("text/two.txt", b"a blue square\n")
    bucket.write("text/other.md", b"no caption\n")
    assert read_captions(f"{bucket.url}/text/*.txt") == ("a red circle", "a blue square")
    assert read_captions(f"{bucket.url}/text/two.txt") == ("a blue square",)
    with pytest.raises(InputError, match="no file fits"):
        read_captions(f"{bucket.url}/text/*.jsonl")


@pytest.mark.parametrize(
    "name, message",
    [
        ("s3://nowhere/run", "s3://nowhere/run cannot be read: there is no such bucket"),
        ("g3://bucket/run", "the scheme g3:// is not known; gs:// and s3:// are"),
        ("s3:/bucket/run", "neither a URL nor a path; write s3://bucket/run"),
        ("s3://", "no URL of a bucket: write s3://BUCKET/NAME"),
        ("s3://bucket/../run", "no URL of a bucket"),
        ("az://bucket/run", "az:// needs another package: Install adlfs"),
    ],
)
def test_urls_that_cannot_be_used(bucket: Bucket, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        storage.local_path(name)


def test_a_store_that_does_not_answer_and_one_that_refuses(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def ask(error: Exception, times: int = 99) -> Any:
        def answer(*_: Any, **__: Any) -> Any:
            asked.append("")
            if len(asked) <= times:
                raise error
            return {}

        return answer

    monkeypatch.setattr(object_store, "_PATIENCE", (0.0, 0.0))
    store = ObjectStore(bucket.url)
    monkeypatch.setattr(store._files, "find", ask(ConnectionError("reset"), 2))
    assert store.listing("x") == {} and len(asked) == 3
    monkeypatch.setattr(store._files, "find", ask(ConnectionError("reset")))
    with pytest.raises(UnreachableError, match="s3://bucket/x cannot be read: ConnectionError"):
        store.listing("x")
    asked.clear()
    monkeypatch.setattr(store._files, "pipe_file", ask(PermissionError("Forbidden")))
    with pytest.raises(InputError, match="may not be written: .*check the credentials") as caught:
        store.check_writable("x")
    assert len(asked) == 1 and caught.value.exit_code == 2


def test_commands_name_what_is_wrong_before_they_begin(
    bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*words: str) -> tuple[int, str]:
        code = cli.run(list(words))
        return code, capsys.readouterr().err

    train = ("train", "sft", "--config", "shapes_sft", "--run_dir")
    code, text = said(*train, "s3://nowhere/run")
    assert code == 2 and text.startswith("gotr1: error: s3://nowhere/run cannot be written")
    code, text = said(*train, str(tmp_path), "--data.source", "g3://x/y", "--vq", "embedded")
    assert code == 2 and "the scheme g3:// is not known" in text
    code, text = said(*train, str(tmp_path / "x"), "--data.cache_dir", "s3://bucket/cache")
    assert code == 2 and "cache_dir is s3://bucket/cache; it must be a folder" in text
    code, text = said("generate", "a red circle", "--out", "s3://nowhere/out")
    assert code == 2 and "s3://nowhere/out" in text
    code, text = said("report", f"{bucket.url}/none")
    assert code == 2 and f"error: no run at {bucket.url}/none: there is no such" in text
    assert not list((tmp_path / "storage" / "work").iterdir())


def test_a_file_that_grows_is_uploaded_as_it_was_seen(bucket: Bucket) -> None:
    """Lines that come while others are uploaded may tell of files that are not there yet."""
    out = storage.local_path(f"{bucket.url}/grow")
    with storage.writing(out):
        out.mkdir()
        (out / "lines.jsonl").write_text("1\n")
        look = LocalCopy._look
        copy = storage._work.find(out)
        assert copy is not None

        def looking(copy: LocalCopy) -> Any:
            found = look(copy)
            with open(out / "lines.jsonl", "a") as file:
                file.write("2\n")
            return found

        LocalCopy._look = looking  # type: ignore[method-assign]
        try:
            storage.upload(out)
        finally:
            LocalCopy._look = look  # type: ignore[method-assign]
        assert bucket.read("grow/lines.jsonl") == b"1\n"
    assert bucket.read("grow/lines.jsonl") == b"1\n2\n2\n"


def test_buckets_of_google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gcp_storage_emulator.server import create_server

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="mine")
    server.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("GOTR1_STORAGE", str(tmp_path))
    try:
        with storage.session():
            save(storage.local_path("gs://mine/runs/a"), 1, 2, 3)
            with pytest.raises(InputError, match="gs://nowhere/x .*there is no such bucket"):
                storage.local_path("gs://nowhere/x")
        assert restored("gs://mine/runs/a") == 3
        files = fsspec.filesystem("gs")
        files.invalidate_cache()
        names = {path.split("/")[4] for path in files.find("mine/runs/a")}
        assert names == {"step_000002", "step_000003"}
        damaged = next(p for p in files.find("mine/runs/a/checkpoints/step_000003/state"))
        files.pipe_file(damaged, b"other")
        assert restored("gs://mine/runs/a") == 2
    finally:
        server.stop()


def test_copies_of_killed_processes_are_removed(bucket: Bucket, tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from gotr1_jax.io import storage\n"
        "print(storage.local_path(sys.argv[1]))\n"
        "sys.stdout.flush()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    bucket.write("left/x", b"x")
    done = subprocess.run(
        [sys.executable, "-c", program, f"{bucket.url}/left"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True, text=True,
    )  # fmt: skip
    left = Path(done.stdout.strip())
    assert left.is_dir(), done.stderr
    storage.local_path(f"{bucket.url}/left")
    assert not left.exists() and len(list((tmp_path / "storage" / "work").iterdir())) == 1
