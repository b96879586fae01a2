"""Which names are URLs of buckets, which are not, and where copies of them lie."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import fsspec
import pytest

from gotr1_jax.errors import InputError, RunError
from gotr1_jax.io import storage
from gotr1_jax.io.local_copy import LocalCopy, storage_folder
from gotr1_jax.io.object_store import ObjectStore
from gotr1_jax.trainer.config import JobConfig


def test_paths_with_colons_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:").mkdir()
    for name in ("C:\\runs\\a", "C://runs", "a:b", "12:30/run", "x/s3://y", "s3:/here", "s3:"):
        assert storage.local_path(name) == Path(name)
        assert not storage.is_copy(Path(name))
    assert storage.local_path("file:///tmp/x") == Path("/tmp/x")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> Any:
        raise ImportError("Install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(
        InputError, match=r"gs:// needs another package: pip install 'gotr1_jax\[gcs"
    ):
        storage.local_path("gs://bucket/run")


def test_addresses_of_servers_are_not_asked() -> None:
    addresses = {"server": "sqlite:///x.db", "url": "grpc://h:1", "list": ["http://h/x", "text"]}
    storage.check_urls({"tracking": addresses, "run_dir": "runs/a"})
    with pytest.raises(InputError, match="the scheme sqlite:// is not known"):
        storage.check_urls({"source": ["a", "sqlite:///x.db"]})


def test_the_run_directory_may_be_a_url() -> None:
    assert JobConfig(run_dir="gs://bucket/run").run_dir == "gs://bucket/run"


def test_other_ways_to_write_a_url(tmp_path: Path) -> None:
    """A path with file:// is made as any other; S3:// is s3://."""
    values = {"run_dir": f"file://{tmp_path}/new/run", "source": "FILE:///nowhere/x"}
    storage.check_urls(values, written=[values["run_dir"]])
    assert not list(tmp_path.iterdir())
    ObjectStore("MEMORY://spelled").put("x", b"1")
    assert ObjectStore("memory://spelled").listing("x")["x"].size == 1


def test_a_name_of_a_temporary_file_is_refused(tmp_path: Path, monkeypatch) -> None:
    """Nothing below it would be uploaded."""
    monkeypatch.setenv("GOTR1_STORAGE", str(tmp_path))
    for name in ("memory://a/.runs", "memory://a/.runs/checkpoints", "memory://a/b/.x/"):
        with pytest.raises(InputError, match="begins with a dot"):
            storage.local_path(name)
    with storage.session():
        assert storage.local_path("memory://a/.b/runs").name == "runs"


def test_a_user_without_a_home_folder_names_one(tmp_path: Path, monkeypatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("GOTR1_STORAGE", str(tmp_path))
    assert storage_folder() == tmp_path
    monkeypatch.delenv("GOTR1_STORAGE")
    with pytest.raises(InputError, match="no home folder .*set GOTR1_STORAGE"):
        storage.local_path("memory://a/b")
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")  # as one that may not be written
    with pytest.raises(RunError, match="cannot write /dev/null/.*GOTR1_STORAGE names another"):
        storage.local_path("memory://a/b")


@pytest.mark.parametrize(
    "error, raised",
    [(RuntimeError("at shutdown"), RunError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_whatever_ends_the_last_upload_the_files_stay(
    error: BaseException, raised: type[BaseException], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("GOTR1_STORAGE", str(tmp_path))

    def fail(*_: Any) -> None:
        raise error

    with pytest.raises(raised), storage.session():
        run = storage.local_path("memory://kept/run")
        with storage.writing(run):
            (run / "a").mkdir(parents=True, exist_ok=True)
            (run / "a/x").write_bytes(b"x")
        monkeypatch.setattr(LocalCopy, "upload", fail)
    assert [path.read_bytes() for path in tmp_path.glob("unsaved/*/*/run/a/x")] == [b"x"]
    assert not list(tmp_path.glob("work/*"))


def test_a_disk_that_is_full_of_copies_is_told_at_once(tmp_path: Path, monkeypatch) -> None:
    """And not as a bucket that does not answer, which is asked again for a while."""
    store = ObjectStore("memory://full")
    store.put("x", b"12")
    asked: list[str] = []

    def get_file(name: str, _: str) -> None:
        asked.append(name)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store._files, "get_file", get_file)
    with pytest.raises(RunError, match="disk full: a local copy of memory://full/x .*GOTR1_STOR"):
        store.get("x", tmp_path / "x", store.listing("x")["x"])
    assert len(asked) == 1
