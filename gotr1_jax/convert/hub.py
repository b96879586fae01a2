"""What a user calls a checkpoint: a directory, a training run, or an id of the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from gotr1_jax.errors import InputError, RunError

EMBEDDED = Path(__file__).resolve().parent.parent / "assets" / "shapes"
"""The checkpoint that the package brings along."""
CONFIG_FILE = "config.json"
RUN_CONFIG, RUN_MODEL = "config.yaml", "model"  # of a training run's directory
# Files of a hub repository that are fetched: weights in either form, sizes, text and pictures.
NEEDED_FILES = (
    "*.json",
    "*.jinja",
    "model*.safetensors",
    "pytorch_model*.bin",
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def find_checkpoint(path: str | Path | None, revision: str | None = None) -> Path:
    """The checkpoint directory that a user means.

    Args:
      path: None for the embedded one, a directory, the directory of a training run (its
        finished model is meant), or where no such directory exists an id "org/name" of the hub.
        A hub checkpoint lies in the hub's own cache, and is fetched only if it is not there;
        HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE and HF_TOKEN are honored.
      revision: branch, tag or commit of a hub id.

    Raises InputError for a run that has no finished model, for an id that cannot be fetched, and
    for a revision of what is no hub id; RunError for a full disk.
    """
    if path is None:
        return EMBEDDED
    folder = Path(path)
    if not folder.exists() and _HUB_ID.fullmatch(str(path)):
        return _fetched(str(path), revision)
    if revision is not None:
        raise InputError(f"a revision belongs to an id of the hub; {path} is a directory")
    if not (folder / RUN_CONFIG).is_file() or (folder / CONFIG_FILE).is_file():
        return folder
    if not (folder / RUN_MODEL / CONFIG_FILE).is_file():
        raise InputError(f"the run {folder} has no {RUN_MODEL}/ yet: let it finish first")
    return folder / RUN_MODEL


def _fetched(hub_id: str, revision: str | None) -> Path:
    # Imported late: a local checkpoint needs no network library.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what = f"{hub_id}" if revision is None else f"{hub_id} at revision {revision}"
    try:
        found = snapshot_download(hub_id, revision=revision, allow_patterns=list(NEEDED_FILES))
    except GatedRepoError as error:
        raise InputError(
            f"{hub_id} asks for its terms to be accepted on the hub; do so, then set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"no checkpoint at {hub_id}: there is no such directory, and the hub has no such "
            "model (a private one needs HF_TOKEN)"
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(f"{hub_id} has no revision {revision}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError) as error:
        raise InputError(
            f"no checkpoint at {what}: there is no such directory, it is not in the hub's cache, "
            "and the hub cannot be reached (is HF_HUB_OFFLINE set?)"
        ) from error
    except OSError as error:
        raise RunError(f"{what} cannot be fetched: {error.strerror or error}") from error
    folder = Path(found)
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(f"{what} is no checkpoint: it holds no {CONFIG_FILE}")
    return folder
