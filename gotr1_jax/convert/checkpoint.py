"""Loading a checkpoint as parameter trees, and writing such trees in the released format.

The trees are pure (`nnx.State`). To put adapters on a loaded policy, build the abstract policy
with them and give it the loaded tree for everything else:

    graphdef, adapters, rest = split_lora(abstract_policy(cfg, lora=lora))
    policy = nnx.merge(graphdef, fresh_adapters, checkpoint.policy)  # rest has the same structure
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from gotr1_jax.convert.config_json import config_to_json
from gotr1_jax.convert.generation_config import (
    GENERATION_FILE,
    GenerationConfig,
    generation_json,
    read_generation_config,
)
from gotr1_jax.convert.names import NAMING
from gotr1_jax.convert.open_checkpoint import (
    PARTS,
    abstract_state,
    check_vocabulary,
    open_checkpoint,
    split_part,
)
from gotr1_jax.convert.shared_load import exchange
from gotr1_jax.convert.tree import check_state, checkpoint_tensors, load_tree
from gotr1_jax.convert.writer import copy_files, write_checkpoint
from gotr1_jax.io.files import write_json
from gotr1_jax.io.reading import read_json_object
from gotr1_jax.models.config import JanusConfig
from gotr1_jax.models.janus import JanusPolicy, abstract_policy
from gotr1_jax.models.siglip import JanusUnderstanding
from gotr1_jax.models.vq import VQModel
from gotr1_jax.tokenizers.janus import TOKENIZER_FILE, TextTokenizer

# Tokenizer, processor and sampling files that go with the weights.
COPIED_FILES = (
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "processor_config.json",
    "preprocessor_config.json",
    GENERATION_FILE,
)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
      config: sizes.
      policy, vq, understanding: the parameters as pure `nnx.State` trees; None if not asked for.
      dtype: of those parameters.
      source: the directory.
      skipped: stored tensors that no part uses.
    """

    config: JanusConfig
    policy: Any
    vq: Any
    understanding: Any
    dtype: Any
    source: Path
    skipped: tuple[str, ...] = ()

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The directory's tokenizer; InputError if it has none that fits."""
        return TextTokenizer.from_dir(self.source)

    def exchanged(self) -> Checkpoint:
        """The checkpoint with its arrays in their places; every process calls it."""
        parts = {part: exchange(getattr(self, part)) for part in PARTS}
        return replace(self, **parts)

    def policy_module(self, dtype: Any = jnp.float32) -> JanusPolicy:
        """The policy as a module that computes in `dtype`."""
        abstract = abstract_policy(self.config, dtype=dtype, param_dtype=self.dtype)
        return nnx.merge(nnx.split(abstract)[0], self.policy)

    def vq_module(self) -> VQModel:
        """The image tokenizer as a module."""
        return nnx.merge(split_part("vq", self.config, self.dtype)[0], self.vq)

    def understanding_module(self) -> JanusUnderstanding:
        """Vision tower and aligner as a module."""
        graphdef = split_part("understanding", self.config, self.dtype)[0]
        return nnx.merge(graphdef, self.understanding)


def load_checkpoint(
    path: str | Path,
    *,
    parts: Sequence[str] = ("policy", "vq"),
    dtype: Any = jnp.float32,
    shardings: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Reads the `parts` of a checkpoint directory, in the released format or the port's.

    Every name and shape is checked before anything is allocated; then one array after another
    is read, cast to `dtype` and placed. A part that is not asked for may be absent as a whole.

    Args:
      path: directory with config.json, weights (.safetensors or .bin, sharded or not) and, for
        the policy, tokenizer.json.
      parts: which of "policy", "vq", "understanding" to load.
      dtype: of the parameters.
      shardings: for a part, the tree of its parameters' shardings (structure of its state); each
        device then reads its own slices only. Without it arrays lie on the default device. Where
        devices belong to several processes, `Checkpoint.exchanged` must follow.

    Raises InputError, in one line, for a directory without a checkpoint, for a file that is
    missing, truncated or corrupt, and for unknown, missing, doubled and misshapen tensors.
    """
    opened = open_checkpoint(path, parts)
    placed = shardings or {}

    def load(part: str) -> Any:
        state = split_part(part, opened.config, dtype)[1]
        naming = NAMING[opened.form]
        return load_tree(part, state, naming, opened.tensors, dtype, placed.get(part), share=True)

    loaded = {part: load(part) for part in parts}
    return Checkpoint(
        opened.config,
        loaded.get("policy"),
        loaded.get("vq"),
        loaded.get("understanding"),
        dtype,
        opened.path,
        opened.unused,
    )


def save_checkpoint(
    directory: str | Path,
    config: JanusConfig,
    policy_state: Any,
    vq_state: Any,
    understanding_state: Any,
    tokenizer_dir: str | Path,
    dtype: str = "bfloat16",
    generation: GenerationConfig | None = None,
) -> Path:
    """Writes a checkpoint in the released ("multi_modality") format; returns its directory.

    The directory appears whole or not at all; an older checkpoint at its place is replaced.

    Args:
      directory: where to.
      config: sizes; those that released files do not name have additional keys.
      policy_state, vq_state, understanding_state: pure trees of parameters, LoRA merged; None
        leaves a part out.
      tokenizer_dir: directory whose tokenizer and processor files are copied along.
      dtype: "bfloat16" or "float32", of the stored weights.
      generation: how the checkpoint wants to be sampled; what it leaves open is as in
        `tokenizer_dir`'s generation_config.json.

    Raises InputError for states that do not fit `config`, a missing tokenizer or a target that
    holds something else; RunError if it cannot be written.
    """
    given = zip(PARTS, (policy_state, vq_state, understanding_state))
    states = {part: state for part, state in given if state is not None}
    for part, state in states.items():
        check_state(part, state, abstract_state(part, config))
    tokenizer_dir = Path(tokenizer_dir)
    tokenizer = TextTokenizer.from_dir(tokenizer_dir)
    check_vocabulary(tokenizer.vocab_size, config.decoder.vocab_size, tokenizer_dir)
    read_generation_config(tokenizer_dir)  # what is carried over can be read
    others = read_json_object(tokenizer_dir / GENERATION_FILE, missing_ok=True)

    def write_files(folder: Path) -> None:
        copy_files(tokenizer_dir, COPIED_FILES, folder)
        if generation is not None:
            write_json(
                folder / GENERATION_FILE, generation_json(generation, others), ascii_only=False
            )

    write_checkpoint(
        Path(directory),
        config_to_json(config, dtype),
        checkpoint_tensors(states, NAMING["original"]),
        write_files=write_files,
        dtype=dtype,
    )
    return Path(directory)
