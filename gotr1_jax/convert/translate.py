"""Writing a checkpoint again, with other names, another dtype or changed values, as a stream.

One tensor after another is viewed in its file, transposed, cast and written; no device is used,
and no more than one tensor is in memory.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gotr1_jax.convert.config_json import config_to_json
from gotr1_jax.convert.generation_config import GenerationConfig
from gotr1_jax.convert.hf_json import config_to_hf_json
from gotr1_jax.convert.names import NAMING, Format, unused_tensors
from gotr1_jax.convert.open_checkpoint import PARTS, OpenCheckpoint
from gotr1_jax.convert.reader import FLOAT_DTYPES, STORED_DTYPES, Tensor
from gotr1_jax.convert.rules import Source, sources
from gotr1_jax.convert.text_files import write_text_files
from gotr1_jax.convert.tree import join_pieces, model_view
from gotr1_jax.convert.writer import OutTensor, dtype_code, write_checkpoint
from gotr1_jax.errors import InputError
from gotr1_jax.io.storage import check_unchanged
from gotr1_jax.tokenizers.janus import TextTokenizer

Change = Callable[[int | None, np.ndarray], np.ndarray]
"""(layer or None, stored values in the model's layout) -> the values to write instead."""
_NAMES = {code: np.dtype(kind).name for code, kind in STORED_DTYPES.items()}


@dataclass(frozen=True)
class WrittenCheckpoint:
    """What was written: tensors, bytes and files of weights; known unused ones left out, added."""

    path: Path
    tensors: int
    size: int
    files: int
    dropped: tuple[str, ...]
    added: tuple[str, ...]


def translate_checkpoint(
    target: str | Path,
    opened: OpenCheckpoint,
    form: Format,
    *,
    dtype: str | None = None,
    part_dtypes: Mapping[str, str] | None = None,
    shard_size: int | None = None,
    whole: bool = False,
    changes: Mapping[str, Change] | None = None,
    generation: GenerationConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> WrittenCheckpoint:
    """Writes the checkpoint `opened` in the naming `form`; `target` appears whole or not at all.

    Args:
      target: directory.
      opened: the source.
      form: "original" (the released layout) or "hf" (the Hugging Face port's).
      dtype: "float32" or "bfloat16" for all weights; None keeps what each tensor is stored in.
      part_dtypes: the same for single parts ("policy", "vq", "understanding"), if `dtype` is None.
      shard_size: bytes above which weights are split into shards; None keeps one file.
      whole: every part must be there, and "original" gets all released tensors: those that
        nothing uses and the source lacks are zeros.
      changes: by dotted path of a parameter, what to write in its place.
      generation: how the changed weights want to be sampled; what it leaves open is the source's.
      progress: called with (bytes written, all bytes) after every tensor.

    Raises InputError for what the source lacks, for sizes that the port cannot express and for a
    target that holds something else; RunError if it cannot be written, and where a source in
    a bucket, of which parts were read before, is another one by now.
    """
    if whole and (lacking := [part for part in PARTS if part not in opened.parts]):
        raise InputError(f"{opened.path} lacks the part {', '.join(lacking)}; all are needed")
    code = None if dtype is None else dtype_code(dtype)
    codes = {part: dtype_code(kind) for part, kind in (part_dtypes or {}).items()}
    tensors = translate_tensors(opened, form, code, changes or {}, codes)
    tensors, dropped, added = _with_unused(tensors, opened, form, code, whole)
    config = _config_json(opened, form, _NAMES[_most_common(tensors)])
    total = sum(tensor.size for tensor in tensors)
    files = write_checkpoint(
        Path(target),
        config,
        tensors,
        write_files=partial(write_text_files, opened, form, generation=generation),
        shard_size=shard_size,
        progress=progress,
        check=partial(check_unchanged, opened.path),  # a run opened it long ago
    )
    return WrittenCheckpoint(Path(target), len(tensors), total, files, dropped, added)


def translate_tensors(
    opened: OpenCheckpoint, form: Format, code: str | None, changes: Mapping[str, Change],
    part_codes: Mapping[str, str] | None = None,
) -> list[OutTensor]:  # fmt: skip
    """The used tensors of `opened` under the names of `form`, sorted; values are fetched lazily.

    Stored in `code`, or where that is None in that of their part in `part_codes`, or else in the
    dtype that they have now.
    """
    of_part = part_codes or {}
    pieces: dict[str, list[tuple[Source, Source, str]]] = {}
    for path, shape in opened.leaves.items():
        old = sources(path, shape, opened.naming)
        new = sources(path, shape, NAMING[form])
        for stored, written in zip(old, new):
            pieces.setdefault(written.name, []).append((written, stored, path))
    out = []
    for name, group in sorted(pieces.items()):
        kinds = {opened.tensors[stored.name].dtype for _, stored, _ in group}
        chosen = code or of_part.get(group[0][2].split(".")[0])
        if len(kinds) > 1 and chosen is None:
            raise InputError(
                f"{name} is made of tensors of different dtypes, {', '.join(sorted(kinds))}; "
                "choose one with --dtype"
            )
        get = partial(_values, group, opened.tensors, changes)
        out.append(OutTensor(name, group[0][0].shape, get, chosen or next(iter(kinds))))
    return out


def _values(
    group: list[tuple[Source, Source, str]],
    tensors: Mapping[str, Tensor],
    changes: Mapping[str, Change],
) -> np.ndarray:
    """One tensor in its new form from the parameters that it is made of."""
    arrays = []
    for written, stored, path in group:
        array = model_view(stored, tensors)
        if path in changes:
            array = changes[path](stored.layer, array)
        arrays.append((written, array))
    return join_pieces(arrays)


def _with_unused(
    tensors: list[OutTensor], opened: OpenCheckpoint, form: Format, code: str | None, whole: bool
) -> tuple[list[OutTensor], tuple[str, ...], tuple[str, ...]]:
    """Adds the unused tensors that released files hold; names of those dropped and added."""
    if form == "hf":
        return tensors, opened.unused, ()
    kept = []
    for name in opened.unused:
        tensor = opened.tensors[name]
        if tensor.dtype not in STORED_DTYPES:
            raise InputError(f"{tensor.file}: tensor {name} has the unknown dtype {tensor.dtype}")
        cast = code if code is not None and tensor.dtype in FLOAT_DTYPES else tensor.dtype
        kept.append(OutTensor(name, tensor.shape, tensor.read, cast))
    added = []
    if whole:
        usual = code or _most_common(tensors)
        for name, shape in unused_tensors(opened.config.siglip).items():
            if name not in opened.unused:
                zeros = partial(np.zeros, shape, STORED_DTYPES[usual])
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
        return config_to_hf_json(opened.config, specials, longest, dtype)
    data = copy.deepcopy(dict(opened.data))
    for section in (data, data.get("language_config"), data.get("text_config")):
        for key in ("torch_dtype", "dtype"):
            if isinstance(section, dict) and key in section:
                section[key] = dtype
    return data


def _most_common(tensors: list[OutTensor]) -> str:
    """The dtype of most of the weights."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + math.prod(tensor.shape)
    return max(sizes, key=lambda kind: sizes[kind])
