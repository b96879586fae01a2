"""Digests of models: every byte counts, the path does not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from gotr1_jax.errors import InputError
from gotr1_jax.io import digests
from gotr1_jax.io.digests import model_digest


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in two files of several pieces."""
    monkeypatch.setattr(digests, "_PIECE", 1000)
    folder = tmp_path / "judge"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for name in ("a", "b"):
        (folder / f"model-{name}.safetensors").write_bytes(bytes(range(250)) * 10)
    return folder


@pytest.mark.parametrize("place", [0, 999, 1000, 1777, 2499])
def test_weights_of_the_same_size_and_time_are_others(folder: Path, place: int) -> None:
    """Written to the same file, its time set back."""
    first = model_digest(folder)
    assert model_digest(folder) == first
    file = folder / "model-b.safetensors"
    old = file.stat()
    with open(file, "r+b") as stream:
        stream.seek(place)
        stream.write(b"\xff")
    os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (old.st_size, old.st_mtime_ns)
    assert model_digest(folder) != first


def test_names_and_all_files_of_a_model_count_and_its_path_does_not(folder: Path) -> None:
    first = model_digest(folder)
    (folder / "README.md").write_text("hello")
    (folder / ".cache").mkdir()
    moved = folder.parent / "moved"
    shutil.copytree(folder, moved)
    assert model_digest(moved) == first
    (moved / "chat_template.jinja").write_text("x")
    assert model_digest(moved) != first
    os.rename(folder / "model-a.safetensors", folder / "model-c.safetensors")
    assert model_digest(folder) != first


def test_single_files_and_what_is_no_file(folder: Path, tmp_path: Path) -> None:
    one, other = folder / "config.json", tmp_path / "other.json"
    other.write_text("{}")
    assert model_digest(one, None) == model_digest(other, None) != model_digest(None, one)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path / "absent"):
        with pytest.raises(InputError, match=path.name):
            model_digest(path)
