"""Loading, writing and converting checkpoints of Qwen2.5-VL and Qwen3-VL.

    checkpoint = load_qwen(directory, jnp.bfloat16)
    model = checkpoint.module(jnp.bfloat16)

For a mesh, shardings come from the abstract state first:

    config = read_qwen_config(directory)
    shardings = state_shardings(abstract_state(config, jnp.bfloat16), mesh)
    checkpoint = load_qwen(directory, jnp.bfloat16, shardings)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from gotr1_jax.convert.chat_template import opens_thought
from gotr1_jax.convert.find import CONFIG_FILE
from gotr1_jax.convert.folders import read_config
from gotr1_jax.convert.generation_config import GENERATION_FILE, write_canvas
from gotr1_jax.convert.open_checkpoint import check_vocabulary
from gotr1_jax.convert.qwen_json import parse_preprocessing, parse_qwen_config, qwen_config_to_json
from gotr1_jax.convert.reader import Tensor, model_type_of, open_tensors
from gotr1_jax.convert.rules import Naming, Rule, linear, norm, sources
from gotr1_jax.convert.tree import (
    check_state,
    check_tensors,
    check_tied_head,
    checkpoint_tensors,
    load_tree,
    tree_shapes,
)
from gotr1_jax.convert.writer import OutTensor, copy_files, write_checkpoint
from gotr1_jax.errors import InputError
from gotr1_jax.images.qwen import Geometry, Preprocessing
from gotr1_jax.io.reading import read_json
from gotr1_jax.models.qwen_config import QwenConfig
from gotr1_jax.models.qwen_vl import QwenVL, abstract_qwen
from gotr1_jax.tokenizers.qwen import SYSTEM, QwenTokenizer

# The image settings are in a separate file or in a part of the processor's.
PIXELS_FILE, PROCESSOR_FILE, PIXELS_PART = (
    "preprocessor_config.json", "processor_config.json", "image_processor",
)  # fmt: skip
COPIED_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "chat_template.json", "chat_template.jinja",
    GENERATION_FILE, PIXELS_FILE, PROCESSOR_FILE,
)  # fmt: skip
_TREE, _HEAD = "qwen", "lm_head.weight"
_CONV3D = (1, 2, 3, 4, 0)  # (out, channels, T, H, W) -> (channels, T, H, W, out)


def _scale(path: str, name: str) -> Rule:
    return Rule(f"{path}.scale", f"{name}.weight")


def _tower_rules() -> Iterator[Rule]:
    """Qwen2.5-VL's vision tower."""
    vision = f"{_TREE}.vision."
    yield Rule(f"{vision}patch.kernel", "visual.patch_embed.proj.weight", _CONV3D)
    path, block = f"{vision}blocks.", "visual.blocks.{l}."
    for name in ("norm1", "norm2"):
        yield _scale(f"{path}{name}", f"{block}{name}")
    for third, name in enumerate("qkv"):
        yield from linear(f"{path}{name}", f"{block}attn.qkv.", third)
    yield from linear(f"{path}out", f"{block}attn.proj.")
    for name in ("gate", "up", "down"):
        yield from linear(f"{path}{name}", f"{block}mlp.{name}_proj.")
    yield _scale(f"{vision}merger.norm", "visual.merger.ln_q")
    yield from linear(f"{vision}merger.mlp.first", "visual.merger.mlp.0.")
    yield from linear(f"{vision}merger.mlp.second", "visual.merger.mlp.2.")


def _tower3_rules() -> Iterator[Rule]:
    """Qwen3-VL's vision tower."""
    vision = f"{_TREE}.vision."
    yield Rule(f"{vision}patch.kernel", "visual.patch_embed.proj.weight", _CONV3D)
    yield Rule(f"{vision}patch.bias", "visual.patch_embed.proj.bias")
    yield Rule(f"{vision}positions.table", "visual.pos_embed.weight")
    path, block = f"{vision}blocks.", "visual.blocks.{l}."
    for name in ("norm1", "norm2"):
        yield from norm(f"{path}{name}", f"{block}{name}")
    for third, name in enumerate("qkv"):
        yield from linear(f"{path}{name}", f"{block}attn.qkv.", third)
    yield from linear(f"{path}out", f"{block}attn.proj.")
    yield from linear(f"{path}up", f"{block}mlp.linear_fc1.")
    yield from linear(f"{path}down", f"{block}mlp.linear_fc2.")
    for name, stored in (("merger", "merger"), ("deepstack", "deepstack_merger_list.{l}")):
        path, block = f"{vision}{name}.", f"visual.{stored}."
        yield from norm(f"{path}norm", f"{block}norm")
        yield from linear(f"{path}mlp.first", f"{block}linear_fc1.")
        yield from linear(f"{path}mlp.second", f"{block}linear_fc2.")


def _text_rules() -> Iterator[Rule]:
    text = f"{_TREE}.text."
    yield Rule(f"{text}embed.table", "model.embed_tokens.weight")
    path, block = f"{text}layers.", "model.layers.{l}."
    yield _scale(f"{path}attention_norm", f"{block}input_layernorm")
    yield _scale(f"{path}mlp_norm", f"{block}post_attention_layernorm")
    for name in ("q_norm", "k_norm"):
        yield _scale(f"{path}{name}", f"{block}self_attn.{name}")
    for name in ("q", "k", "v", "o"):
        yield from linear(f"{path}{name}", f"{block}self_attn.{name}_proj.", bias=name != "o")
    for name in ("gate", "up", "down"):
        yield from linear(f"{path}{name}", f"{block}mlp.{name}_proj.", bias=False)
    yield _scale(f"{text}norm", "model.norm")
    yield from linear(f"{text}lm_head", "lm_head.", bias=False)


# Rotary tables that follow from the configuration.
_UNUSED = re.compile(r".*rotary_\w*\.inv_freq$")
_NAMINGS = {
    False: Naming((*_tower_rules(), *_text_rules()), _UNUSED),
    True: Naming((*_tower3_rules(), *_text_rules()), _UNUSED),
}
"""With flat names, by whether it is a Qwen3-VL."""
# A prefix for each of the model's two parts.
_NESTING = ((r"^visual\.", "model.visual."), (r"^model\.(?!visual\.)", "model.language_model."))


def naming_of(config: QwenConfig, nested: bool | None = None) -> Naming:
    """How the tensors of a checkpoint are called.

    nested: as in newer `transformers`, with a prefix for each of the model's two parts; None: as
    released, which is nested for Qwen3-VL and flat for Qwen2.5-VL.
    """
    naming = _NAMINGS[config.is_qwen3]
    nested = config.is_qwen3 if nested is None else nested
    return replace(naming, rewrites=_NESTING) if nested else naming


@dataclass(frozen=True)
class QwenCheckpoint:
    """A loaded checkpoint.

    Attributes:
      config: sizes.
      state: parameters of a `QwenVL`, a pure `nnx.State`.
      dtype: of those parameters.
      tokenizer: text and chats.
      preprocessing: of images.
      source: the directory.
    """

    config: QwenConfig
    state: Any
    dtype: Any
    tokenizer: QwenTokenizer
    preprocessing: Preprocessing
    source: Path

    def module(self, dtype: Any = jnp.float32) -> QwenVL:
        """The model as a module that computes in `dtype`."""
        abstract = abstract_qwen(self.config, dtype=dtype, param_dtype=self.dtype)
        return nnx.merge(nnx.split(abstract)[0], self.state)


@cache
def abstract_state(config: QwenConfig, dtype: Any = jnp.float32) -> Any:
    """The state of a `QwenVL` as shapes only."""
    return nnx.split(abstract_qwen(config, param_dtype=dtype))[1]


def is_qwen(path: str | Path) -> bool:
    """Whether a directory's config.json says that it holds a Qwen of some kind; `read_qwen_config`
    refuses those that are not supported."""
    return model_type_of(Path(path)).startswith("qwen")


def read_qwen_config(path: str | Path) -> QwenConfig:
    """Sizes of the checkpoint in a directory; InputError if there is none that fits."""
    path = Path(path)
    return parse_qwen_config(read_config(path), str(path / CONFIG_FILE))


def read_preprocessing(path: str | Path, geometry: Geometry) -> Preprocessing:
    """Image settings of the checkpoint in a directory; InputError if they do not fit."""
    file = Path(path) / PIXELS_FILE
    if file.is_file():
        return parse_preprocessing(read_json(file), geometry, str(file))
    other = Path(path) / PROCESSOR_FILE
    if not other.is_file():
        raise InputError(f"{path} holds neither {PIXELS_FILE} nor {PROCESSOR_FILE}")
    data = read_json(other)
    part = data.get(PIXELS_PART) if isinstance(data, dict) else None
    return parse_preprocessing(part, geometry, str(other))


def load_qwen(path: str | Path, dtype: Any = jnp.bfloat16, shardings: Any = None) -> QwenCheckpoint:
    """Reads a checkpoint directory as released, or as newer `transformers` writes it.

    Every name, shape and setting is checked before anything is allocated; then one array after
    another is read, cast to `dtype` and placed.

    Args:
      path: directory with config.json, weights (safetensors or .bin, sharded or not),
        tokenizer.json and preprocessor_config.json (or processor_config.json).
      dtype: of the parameters.
      shardings: tree of shardings like `abstract_state`; each device then reads its own slices
        only. Without it arrays lie on the default device.

    Raises InputError, in one line, for a directory without such a checkpoint, for a file that
    is missing, truncated or corrupt, and for unknown, missing and misshapen tensors.
    """
    path = Path(path)
    config = read_qwen_config(path)
    tokenizer = read_tokenizer(path, config)
    preprocessing = read_preprocessing(path, config.vision.geometry)
    tensors, naming = _checked_tensors(path, config)
    state = load_tree(_TREE, abstract_state(config, dtype), naming, tensors, dtype, shardings)
    return QwenCheckpoint(config, state, dtype, tokenizer, preprocessing, path)


def convert_qwen(
    source: str | Path,
    target: str | Path,
    *,
    dtype: str | None = None,
    shard_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Writes the checkpoint at `source` to `target`, under the released names.

    Tensor after tensor is viewed in its file, cast and written: no device is used and no more
    than one is in memory. The directory appears whole or not at all. Returns the number
    of files of weights.

    Args:
      source, target: directories.
      dtype: "bfloat16" or "float32" for all weights; None keeps what each is stored in.
      shard_size: bytes above which weights are split into shards; None keeps one file.
      progress: called with (bytes written, all bytes) after every tensor.

    Raises InputError for a source without such a checkpoint and for a target that holds
    something else; RunError if it cannot be written.
    """
    source = Path(source)
    config = read_qwen_config(source)
    read_tokenizer(source, config)
    read_preprocessing(source, config.vision.geometry)
    tensors, naming = _checked_tensors(source, config)
    released: dict[str, OutTensor] = {}  # by name: q, k and v share one tensor
    for path, shape in tree_shapes(_TREE, abstract_state(config)).items():
        released_names = sources(path, shape, naming_of(config))
        for new, old in zip(released_names, sources(path, shape, naming)):
            stored = tensors[old.name]
            released[new.name] = OutTensor(new.name, new.shape, stored.read, stored.dtype)
    data = read_json(source / CONFIG_FILE)
    if dtype is not None:
        for section in (data, *(part for part in data.values() if isinstance(part, dict))):
            section |= {key: dtype for key in ("torch_dtype", "dtype") if key in section}
    return write_checkpoint(
        Path(target),
        data,
        released.values(),
        write_files=partial(copy_files, source, COPIED_FILES),
        dtype=dtype,
        shard_size=shard_size,
        progress=progress,
    )


def save_qwen(
    directory: str | Path,
    config: QwenConfig,
    state: Any,
    files_dir: str | Path,
    dtype: str = "bfloat16",
    canvas: int | None = None,
) -> Path:
    """Writes a checkpoint in the released format; returns its directory.

    Args:
      directory: where to; it appears whole or not at all.
      config: sizes.
      state: parameters, a tree like `abstract_state`.
      files_dir: directory whose tokenizer and image settings are copied along.
      dtype: "bfloat16" or "float32", of the stored weights.
      canvas: longer side in pixels of the sketches that it was taught; None: as the files say.

    Raises InputError for a state or files that do not fit and for a target that holds something
    else; RunError if it cannot be written.
    """
    check_state(_TREE, state, abstract_state(config))
    read_preprocessing(files_dir, config.vision.geometry)
    ids = read_tokenizer(Path(files_dir), config).ids
    named = {
        "image_token_id": ids.image,
        "vision_start_token_id": ids.vision_start,
        "vision_end_token_id": ids.vision_end,
        "bos_token_id": ids.text_end,
        "eos_token_id": ids.message_end,
    }

    def write_files(target: Path) -> None:
        copy_files(Path(files_dir), COPIED_FILES, target)
        if canvas is not None:
            write_canvas(target, canvas)

    write_checkpoint(
        Path(directory),
        qwen_config_to_json(config, named, dtype),
        checkpoint_tensors({_TREE: state}, naming_of(config)),
        write_files=write_files,
        dtype=dtype,
    )
    return Path(directory)


def _checked_tensors(path: Path, config: QwenConfig) -> tuple[Mapping[str, Tensor], Naming]:
    """The tensors of a checkpoint, as its sizes ask for, and how they are named."""
    tensors = open_tensors(path)
    nested = any(name.startswith(("model.visual.", "model.language_model.")) for name in tensors)
    naming = naming_of(config, nested)
    tied = config.text.tie_embeddings
    if tied:
        # Some files store the tied head a second time.
        pattern = re.compile(rf"{_HEAD}$|{naming.unused.pattern}")
        naming = replace(naming, unused=pattern)
    check_tensors(tensors, tree_shapes(_TREE, abstract_state(config)), naming, str(path))
    if tied and _HEAD in tensors:
        embed = sources(f"{_TREE}.text.embed.table", (1, 1), naming)[0].name
        check_tied_head(tensors[_HEAD], tensors[embed], path)
    return tensors, naming


def read_tokenizer(path: Path, config: QwenConfig) -> QwenTokenizer:
    """The directory's tokenizer; InputError if the model has too few rows for it."""
    thinks = config.is_qwen3 and opens_thought(path)
    tokenizer = QwenTokenizer.from_dir(path, None if config.is_qwen3 else SYSTEM, thinks)
    check_vocabulary(tokenizer.vocab_size, config.text.vocab_size, path)
    return tokenizer
