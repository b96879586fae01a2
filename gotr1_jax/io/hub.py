"""Files of a Hugging Face hub repository, from the local cache or downloaded into it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from gotr1_jax.errors import InputError, RunError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_CONTENT = {"model": "checkpoint", "dataset": "data"}


def is_hub_id(name: str) -> bool:
    """Whether a name has the form "org/name" (a path may have it too)."""
    return _HUB_ID.fullmatch(name) is not None


def fetch_snapshot(
    hub_id: str, revision: str | None, patterns: Sequence[str], kind: Literal["model", "dataset"]
) -> Path:
    """The local folder of a repository, with the files that fit `patterns`.

    It is downloaded into the hub's cache if it is not there yet; HF_HOME, HF_HUB_CACHE,
    HF_HUB_OFFLINE and HF_TOKEN are honored. `revision` is a branch, tag or commit; None is main.

    Raises InputError in one line if it cannot be found or reached; RunError for a full disk.
    """
    # Imported late: local files need no network library.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    content = _CONTENT[kind]
    what = hub_id if revision is None else f"{hub_id} at revision {revision}"
    try:
        found = snapshot_download(
            hub_id, revision=revision, allow_patterns=list(patterns), repo_type=kind
        )
    except GatedRepoError as error:
        raise InputError(
            f"{hub_id} asks for its terms to be accepted on the hub; do so, then set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"no {content} at {hub_id}: there is no such directory, and the hub has no such "
            f"{kind} (a private one needs HF_TOKEN)"
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(f"{hub_id} has no revision {revision}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError) as error:
        raise InputError(
            f"no {content} at {what}: there is no such directory, it is not in the hub's cache, "
            "and the hub cannot be reached (is HF_HUB_OFFLINE set?)"
        ) from error
    except OSError as error:
        raise RunError(f"{what} cannot be fetched: {error.strerror or error}") from error
    return Path(found)
