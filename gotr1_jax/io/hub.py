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


def upload_folder(folder: Path, hub_id: str, private: bool, message: str) -> str:
    """Uploads the files of `folder` in one commit and returns its address; the model repository is
    made if it is not there, `private` or not.

    The token is the hub library's: HF_TOKEN or that of `hf auth login`. Raises InputError in one
    line where it is missing or not allowed to, RunError where the hub cannot be reached.
    """
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    api = HfApi()
    try:
        api.create_repo(hub_id, private=private, repo_type="model", exist_ok=True)
        commit = api.upload_folder(repo_id=hub_id, folder_path=folder, commit_message=message)
    except LocalTokenNotFoundError as error:
        raise InputError(f"uploading to {hub_id} needs a token: set HF_TOKEN") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise InputError(
                f"the hub does not let this token write to {hub_id} (status {status}); check "
                "HF_TOKEN and its rights"
            ) from error
        raise RunError(f"{hub_id} cannot be uploaded: {' '.join(str(error).split())}") from error
    except OfflineModeIsEnabled as error:
        raise InputError("HF_HUB_OFFLINE is set: nothing is uploaded") from error
    except (httpx2.HTTPError, OSError) as error:
        raise RunError(f"the hub cannot be reached: {error}") from error
    return str(commit.commit_url)
