"""Finding the checkpoint that a user names: a directory, a run directory, or a hub id."""

from __future__ import annotations

from pathlib import Path

from gotr1_jax.errors import InputError
from gotr1_jax.io.hub import fetch_snapshot, is_hub_id
from gotr1_jax.io.storage import local_path

_ASSETS = Path(__file__).resolve().parent.parent / "assets"
EMBEDDED = _ASSETS / "shapes"
"""The policy that comes with the package."""
EMBEDDED_NAME, EMBEDDED_JUDGE_NAME = "embedded", "embedded_judge"  # what settings call them
EMBEDDED_CHECKPOINTS = {EMBEDDED_NAME: EMBEDDED, EMBEDDED_JUDGE_NAME: _ASSETS / "shapes_judge"}
CONFIG_FILE = "config.json"
RUN_CONFIG, RUN_MODEL = "config.yaml", "model"  # of a training run's directory
_NO_MODEL = ("samples", "tensorboard", "judge_cache")  # of such a one
# Files of a hub repository that are fetched: weights in either form, sizes, text and images.
NEEDED_FILES = (
    "*.json",
    "*.jinja",
    "model*.safetensors",
    "pytorch_model*.bin",
    "merges.txt",
)


def find_checkpoint(path: str | Path | None, revision: str | None = None) -> Path:
    """The checkpoint directory that a user means.

    Args:
      path: None or "embedded" for the embedded policy, "embedded_judge" for the embedded judge, a
        directory, the directory of a training run (its finished model is meant), the URL of either
        in a bucket, or where no such directory exists an id "org/name" of the hub, which is
        fetched into the hub's cache (see `io.hub.fetch_snapshot`).
      revision: branch, tag or commit of a hub id.

    Raises InputError for a run without a finished model, for an id that cannot be fetched, and
    for a revision of something else than a hub id; RunError for a full disk.
    """
    name = EMBEDDED_NAME if path is None else str(path)
    if name in EMBEDDED_CHECKPOINTS:
        if revision is not None:
            raise InputError(f"a revision belongs to an id of the hub, not to {name}")
        return EMBEDDED_CHECKPOINTS[name]
    assert path is not None
    folder = local_path(path, _NO_MODEL)
    if not folder.exists() and is_hub_id(str(path)):
        return _fetched(str(path), revision)
    if revision is not None:
        raise InputError(f"a revision belongs to an id of the hub; {path} is a directory")
    if not (folder / RUN_CONFIG).is_file() or (folder / CONFIG_FILE).is_file():
        return folder
    if not (folder / RUN_MODEL / CONFIG_FILE).is_file():
        raise InputError(f"the run {folder} has no {RUN_MODEL}/ yet: let it finish first")
    return folder / RUN_MODEL


def run_of_model(source: Path) -> Path | None:
    """The directory of the run whose finished model the checkpoint directory `source` is."""
    source = source.resolve()
    is_model = source.name == RUN_MODEL and (source.parent / RUN_CONFIG).is_file()
    return source.parent if is_model else None


def _fetched(hub_id: str, revision: str | None) -> Path:
    folder = fetch_snapshot(hub_id, revision, NEEDED_FILES, "model")
    what = hub_id if revision is None else f"{hub_id} at revision {revision}"
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(f"{what} is not a checkpoint: it holds no {CONFIG_FILE}")
    return folder
