"""Checkpoints of several processes that share no file system: a run in a bucket.

Each process writes its own shards to a folder of its own, as plain Zarr files, one a shard. Put
together in the bucket, the files of all are a checkpoint as one process writes it, and go on under
any mesh. Names and digests of the others' files reach process 0 through the coordinator; its
manifest names all of them, and comes last.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from gotr1_jax.errors import RunError
from gotr1_jax.io.reading import parse_json_object
from gotr1_jax.io.storage import upload
from gotr1_jax.parallel.processes import post_text, posted_text
from gotr1_jax.trainer.manifest import hash_files
from gotr1_jax.trainer.orbax_errors import raise_only

_ASK_SECONDS = 0.2
_SHARD = re.compile(r"state/.+/[0-9]+(\.[0-9]+)*")


def new_writer(in_pieces: bool) -> ocp.AsyncCheckpointer:
    """A writer of checkpoints; in pieces it waits for no other process and writes the shards of
    this one alone."""
    # Folders are made at once: if that fails in the background, Orbax's threads wait for them for
    # 300 s.
    raise_only()
    options = ocp.AsyncOptions(create_directories_asynchronously=False)
    if not in_pieces:
        return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), async_options=options)
    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=None, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
    )
    arrays = ocp.type_handlers.ArrayHandler(primary_host=None)
    handler = ocp.CompositeCheckpointHandler(
        state=ocp.PyTreeCheckpointHandler(
            use_ocdbt=False,
            multiprocessing_options=alone,
            type_handler_registry=ocp.type_handlers.create_type_handler_registry(
                (jax.Array, arrays)
            ),
        ),
        meta=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
        # Without its own options it makes folders in the background, and the handlers do not wait.
        composite_options=ocp.CompositeOptions(
            multiprocessing_options=alone, async_options=options
        ),
    )
    return ocp.AsyncCheckpointer(handler, async_options=options, multiprocessing_options=alone)


def save_args(
    arrays: Mapping[str, Any], record: Mapping[str, Any], in_pieces: bool
) -> ocp.args.Composite:
    """What that writer saves."""
    # The files are of one format; only this one takes the handler of pieces.
    state = ocp.args.PyTreeSave(arrays) if in_pieces else ocp.args.StandardSave(arrays)
    return ocp.args.Composite(state=state, meta=ocp.args.JsonSave(record))


def join_pieces(folder: Path, key: str, failure_key: str) -> dict[str, str]:
    """In process 0, once all others have uploaded theirs: the SHA-256 of their files, by name.

    In the others: uploads the shards and leaves their digests under `key`; the result is empty.
    Raises RunError where another process has left an error under `failure_key`.
    """
    own = jax.process_index()
    if own == 0:
        return _await_digests(key, failure_key)
    shards = []
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        name = path.relative_to(folder).as_posix()
        if _SHARD.fullmatch(name):
            shards.append(name)
        else:
            path.unlink()  # process 0 has it too
    upload(folder, pieces=folder)
    post_text(f"{key}/{own}", json.dumps(hash_files(folder, shards)))
    return {}


def _await_digests(key: str, failure_key: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for process in range(1, jax.process_count()):
        while (text := posted_text(f"{key}/{process}")) is None:
            if (failure := posted_text(failure_key)) is not None:
                raise RunError(failure)
            time.sleep(_ASK_SECONDS)
        found |= parse_json_object(text, f"what process {process} has written")
    return found
