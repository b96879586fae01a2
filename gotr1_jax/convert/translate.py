"""A checkpoint written anew: another naming, another dtype, changed arrays, as a stream.

One tensor after another is viewed in its file, turned, cast and written; nothing goes through a
device, and no more than one tensor is held.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gotr1_jax.convert.config_json import config_to_json
from gotr1_jax.convert.names import NAMING, Format, unused_tensors
from gotr1_jax.convert.opened import PARTS, OpenCheckpoint
from gotr1_jax.convert.port_json import config_to_port_json
from gotr1_jax.convert.reader import STORED, Tensor
from gotr1_jax.convert.rules import Source, sources
from gotr1_jax.convert.text_files import write_text_files
from gotr1_jax.convert.tree import join_pieces, our_view
from gotr1_jax.convert.writer import OutTensor, dtype_code, new_checkpoint, write_weights
from gotr1_jax.errors import InputError
from gotr1_jax.tokenizers.janus import TextTokenizer

Change = Callable[[int | None, np.ndarray], np.ndarray]
"""(layer or None, stored values in our layout) -> the values to write instead."""
_NAMES = {code: np.dtype(kind).name for code, kind in STORED.items()}


@dataclass(frozen=True)
class WrittenCheckpoint:
    """What was written: tensors, bytes and files of weights; known unused ones left out, added."""

    path: Path
    tensors: int
    size: int
    files: int
    dropped: tuple[str, ...]
    added: tuple[str, ...]


def write_checkpoint(
    target: str | Path,
    opened: OpenCheckpoint,
    form: Format,
    *,
    dtype: str | None = None,
    shard_size: int | None = None,
    whole: bool = False,
    changes: Mapping[str, Change] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> WrittenCheckpoint:
    """Writes the checkpoint `opened` in the naming `form`; `target` appears whole or not at all.

    Args:
      target: directory.
      opened: a checkpoint that was checked.
      form: "original" (the released layout) or "hf" (the Hugging Face port's).
      dtype: "float32" or "bfloat16" for all weights; None keeps what each tensor is stored in.
      shard_size: bytes above which weights are split into shards; None keeps one file.
      whole: every part must be there, and "original" gets all released tensors: those that
        nothing uses and the source lacks are zeros.
      changes: by dotted path of our arrays, what to write in their place.
      progress: is told (bytes written, bytes in all) after every tensor.

    Raises InputError for what the source lacks, for sizes that the port has no words for and for
    a target that is somebody's work; RunError if it cannot be written.
    """
    if whole and (lacking := [part for part in PARTS if part not in opened.parts]):
        raise InputError(f"{opened.path} lacks the part {', '.join(lacking)}; all are needed")
    code = None if dtype is None else dtype_code(dtype)
    tensors = translated(opened, form, code, changes or {})
    tensors, dropped, added = _with_unused(tensors, opened, form, code, whole)
    config = _config_json(opened, form, _stored_name(tensors))
    total, done = sum(tensor.size for tensor in tensors), 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(done, total)

    with new_checkpoint(Path(target), config) as temporary:
        write_text_files(opened, temporary, form)
        files = write_weights(temporary, tensors, shard_size, count)
    return WrittenCheckpoint(Path(target), len(tensors), total, files, dropped, added)


def translated(
    opened: OpenCheckpoint, form: Format, code: str | None, changes: Mapping[str, Change]
) -> list[OutTensor]:
    """The used tensors of `opened` under the names of `form`, sorted; values are fetched lazily.

    Stored in `code`, or where that is None in the dtype that they have now.
    """
    pieces: dict[str, list[tuple[Source, Source, str]]] = {}
    for path, shape in opened.leaves.items():
        old = sources(path, shape, opened.naming)
        new = sources(path, shape, NAMING[form])
        for stored, written in zip(old, new):
            pieces.setdefault(written.name, []).append((written, stored, path))
    out = []
    for name, group in sorted(pieces.items()):
        kinds = {opened.tensors[stored.name].dtype for _, stored, _ in group}
        if len(kinds) > 1 and code is None:
            raise InputError(
                f"{name} is made of tensors of different dtypes, {', '.join(sorted(kinds))}; "
                "choose one with --dtype"
            )
        get = partial(_values, group, opened.tensors, changes)
        out.append(OutTensor(name, group[0][0].shape, get, code or next(iter(kinds))))
    return out


def _values(
    group: list[tuple[Source, Source, str]],
    tensors: Mapping[str, Tensor],
    changes: Mapping[str, Change],
) -> np.ndarray:
    """One tensor in its new form from the pieces of ours that it is made of."""
    arrays = []
    for written, stored, path in group:
        array = our_view(stored, tensors)
        if path in changes:
            array = changes[path](stored.layer, array)
        arrays.append((written, array))
    return join_pieces(arrays)


def _with_unused(
    tensors: list[OutTensor], opened: OpenCheckpoint, form: Format, code: str | None, whole: bool
) -> tuple[list[OutTensor], tuple[str, ...], tuple[str, ...]]:
    """Adds what released files hold beside the used tensors; names of those dropped and added."""
    if form == "hf":
        return tensors, opened.unused, ()
    floats = {"F64", "F32", "F16", "BF16"}
    kept = []
    for name in opened.unused:
        tensor = opened.tensors[name]
        if tensor.dtype not in STORED:
            raise InputError(f"{tensor.file}: tensor {name} has the unknown dtype {tensor.dtype}")
        cast = code if code is not None and tensor.dtype in floats else tensor.dtype
        kept.append(OutTensor(name, tensor.shape, tensor.read, cast))
    added = []
    if whole:
        usual = code or _most_common(tensors)
        for name, shape in unused_tensors(opened.config.siglip).items():
            if name not in opened.unused:
                zeros = partial(np.zeros, shape, STORED[usual])
                added.append(OutTensor(name, shape, zeros, usual))
    names = tuple(tensor.name for tensor in added)
    return sorted([*tensors, *kept, *added], key=lambda tensor: tensor.name), (), names


def _config_json(opened: OpenCheckpoint, form: Format, dtype: str) -> dict[str, Any]:
    """config.json: the source's own where the form stays, with the dtype of its weights."""
    if opened.form != form:
        if form == "original":
            data = config_to_json(opened.config, dtype)
            text = opened.data["text_config"]
            if "max_position_embeddings" in text:
                longest = int(text["max_position_embeddings"])
                data["language_config"]["max_position_embeddings"] = longest
            return data
        specials = TextTokenizer.from_dir(opened.path).specials
        longest = int(opened.data["language_config"].get("max_position_embeddings", 2048))
        return config_to_port_json(opened.config, specials, longest, dtype)
    data = json.loads(json.dumps(opened.data))
    for section in (data, data.get("language_config"), data.get("text_config")):
        for key in ("torch_dtype", "dtype"):
            if isinstance(section, dict) and key in section:
                section[key] = dtype
    return data


def _stored_name(tensors: list[OutTensor]) -> str:
    return _NAMES[_most_common(tensors)]


def _most_common(tensors: list[OutTensor]) -> str:
    """The dtype of most of the weights."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + math.prod(tensor.shape)
    return max(sizes, key=lambda kind: sizes[kind])
