"""What a user may call a checkpoint: directories, runs, ids of a hub that is never asked here."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from gotr1_jax.convert.find import EMBEDDED, NEEDED_FILES, find_checkpoint
from gotr1_jax.errors import InputError, RunError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with one model, as the hub's library lays it out, and no network."""
    root = tmp_path / "hub"
    model = root / "models--org--name"
    snapshot = model / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    (model / "refs" / "v2").write_text(COMMIT)
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return snapshot


def test_an_id_is_found_in_the_cache_without_a_network(cache: Path) -> None:
    assert find_checkpoint("org/name") == cache
    assert find_checkpoint("org/name", revision="v2") == cache
    assert find_checkpoint("org/name", revision=COMMIT) == cache
    assert find_checkpoint("org/name") == cache
    assert find_checkpoint("embedded") == EMBEDDED


@pytest.mark.parametrize(("name", "revision"), [("org/other", None), ("org/name", "v3")])
def test_what_is_not_in_the_cache_is_one_clear_line(
    cache: Path, name: str, revision: str | None
) -> None:
    with pytest.raises(InputError, match="not in the hub's cache") as error:
        find_checkpoint(name, revision)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_a_directory_goes_before_an_id(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert find_checkpoint("org/name") == Path("org/name")
    with pytest.raises(InputError, match="org/name is a directory"):
        find_checkpoint("org/name", revision="main")


@pytest.mark.parametrize("path", ["/no/such", "a/b/c", "../x", "name", "./org/name"])
def test_a_path_is_no_id(cache: Path, path: str) -> None:
    assert find_checkpoint(path) == Path(path)


def test_a_snapshot_without_config_is_no_checkpoint(cache: Path) -> None:
    (cache / "config.json").unlink()
    with pytest.raises(InputError, match="org/name is not a checkpoint: it holds no config.json"):
        find_checkpoint("org/name")


def test_only_needed_files_are_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = {}

    def download(name: str, **named: object) -> str:
        asked.update(name=name, **named)
        (tmp_path / "config.json").write_text("{}")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_checkpoint("some/model", "main") == tmp_path
    assert asked == {
        "name": "some/model",
        "revision": "main",
        "allow_patterns": [*NEEDED_FILES],
        "repo_type": "model",
    }


def test_failures_of_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_with(error: Exception) -> None:
        def download(*_: object, **__: object) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    fail_with(LocalEntryNotFoundError("nothing\nhere"))
    with pytest.raises(InputError, match="cannot be reached"):
        find_checkpoint("some/model")
    fail_with(OSError(28, "No space left on device"))
    with pytest.raises(RunError, match="some/model cannot be fetched: No space left"):
        find_checkpoint("some/model")
