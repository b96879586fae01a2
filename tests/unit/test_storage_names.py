"""Which names are URLs of buckets, and which are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pytest

from gotr1_jax.errors import InputError
from gotr1_jax.io import storage
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
