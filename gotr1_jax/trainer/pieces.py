"""Checkpoints of several processes that share no file system: a run in a bucket.

Each process writes its own shards to a folder of its own, as plain Zarr files, one a shard. Put
together in the bucket, the files of all are a checkpoint as one process writes it, and go on under
any mesh. Names and digests of the others' files reach process 0 through the coordinator; its
manifest names all of them, and comes last. A process that restores fetches and verifies the files
that its own devices need; together they look at every file.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from gotr1_jax.errors import InputError, RunError
from gotr1_jax.io.reading import parse_json_object, read_json_object
from gotr1_jax.io.storage import fetch, upload
from gotr1_jax.parallel.processes import gather, post_text, posted_text, raise_on_all_processes
from gotr1_jax.trainer.manifest import MANIFEST_NAME, hash_files, manifest_problem
from gotr1_jax.trainer.orbax_errors import raise_only

_ASK_SECONDS = 0.2
_log = logging.getLogger(__name__)
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


def fetch_newest(
    folder: Callable[[int], Path], steps: list[int], wanted: Mapping[str, Any], only: bool
) -> int | None:
    """The newest good step, once each process has fetched what it needs of it; None: none is good.

    Every process calls it; process 0 says which steps there are.

    Args:
      folder: of a step.
      steps: in which order it does not matter.
      wanted: arrays or shapes with shardings, by path.
      only: the first of them must be good; RunError says what is wrong with it.

    Raises UnreachableError or RunError in all processes.
    """
    while True:
        step = int(gather(np.asarray([max(steps, default=-1)], np.int32))[0, 0])
        if step < 0:
            return None
        problem = None
        with raise_on_all_processes():
            place = folder(step)
            fetch(place, [MANIFEST_NAME])
            fetch_some = partial(_fetch_needed, place, wanted)
            problem = manifest_problem(place, step, fetch_some)
            if problem is not None and only:
                raise RunError(f"checkpoint {place} cannot be used: {problem}")
        if problem is not None:
            _log.warning("checkpoint %s is skipped: %s", place, problem)
        if not gather(np.asarray([problem is not None], np.int32)).any():
            return step
        steps = [other for other in steps if other < step]


def _fetch_needed(folder: Path, wanted: Mapping[str, Any], names: list[str]) -> list[str]:
    """Fetches, of a checkpoint's files, what is small and what this process's devices need of the
    shards; returns the names."""
    shards = [name for name in names if _SHARD.fullmatch(name)]
    needed = sorted(set(names) - set(shards))
    fetch(folder, needed)
    by_array: dict[str, list[str]] = {}
    for name in shards:
        by_array.setdefault(name.rpartition("/")[0], []).append(name)
    for array, files in by_array.items():
        cells = _cells(folder / array / ".zarray", wanted.get(array.removeprefix("state/")))
        needed += [f for f in files if cells is None or f.rpartition("/")[2] in cells]
    fetch(folder, needed)
    return needed


def _cells(path: Path, leaf: Any) -> set[str] | None:
    """Names of the files of an array that this process's devices need; None: all of them."""
    sharding = getattr(leaf, "sharding", None)
    try:
        record = read_json_object(path)
        shape, sizes = tuple(record["shape"]), record["chunks"]
        if sharding is None or shape != tuple(leaf.shape) or len(sizes) != len(shape):
            return None
        places = sharding.addressable_devices_indices_map(shape).values()
        return {name for place in places for name in _names(place, shape, sizes)}
    except (InputError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return None  # whatever is wrong with it, reading says so


def _names(place: tuple[slice, ...], shape: tuple[int, ...], sizes: list[int]) -> Iterator[str]:
    """Names of the Zarr files that hold a slice of an array: "1.0" is the second of the rows."""
    ranges = []
    for cut, length, size in zip(place, shape, sizes):
        first, last, _ = cut.indices(length)
        ranges.append(range(first // size, -(-last // size)))
    for cell in product(*ranges):
        yield ".".join(map(str, cell)) or "0"
