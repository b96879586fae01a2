"""Opening and checking a checkpoint directory: sizes, and every tensor's name, shape and dtype.

Nothing large is read: tensors are views of the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from gotr1_jax.convert.config_json import parse_config
from gotr1_jax.convert.find import CONFIG_FILE
from gotr1_jax.convert.folders import read_config
from gotr1_jax.convert.names import NAMING, UNUSED, Format, part_of_tensor
from gotr1_jax.convert.reader import Tensor, open_tensors
from gotr1_jax.convert.rules import Naming, Shape
from gotr1_jax.convert.tree import check_tensors, tree_shapes
from gotr1_jax.errors import InputError
from gotr1_jax.models.config import JanusConfig
from gotr1_jax.models.janus import abstract_policy
from gotr1_jax.models.siglip import JanusUnderstanding
from gotr1_jax.models.vq import abstract_vq
from gotr1_jax.tokenizers.janus import TextTokenizer

PARTS = ("policy", "vq", "understanding")


@dataclass(frozen=True)
class OpenCheckpoint:
    """A checkpoint directory whose tensors were checked but not read.

    Attributes:
      path: the directory.
      data: its config.json.
      config: sizes.
      form: naming scheme: "original" (as DeepSeek released it) or "hf" (transformers' port).
      tensors: all stored tensors, by name.
      parts: which of "policy", "vq", "understanding" it holds, in that order.
      unused: names of the stored tensors that no part uses.
    """

    path: Path
    data: Mapping[str, Any]
    config: JanusConfig
    form: Format
    tensors: Mapping[str, Tensor]
    parts: tuple[str, ...]
    unused: tuple[str, ...]

    @property
    def naming(self) -> Naming:
        """Rules for the names of its tensors."""
        return NAMING[self.form]

    @cached_property
    def leaves(self) -> dict[str, Shape]:
        """Shapes of the parameters that it holds, by dotted path."""
        return part_shapes({part: abstract_state(part, self.config) for part in self.parts})


def open_checkpoint(path: str | Path, parts: Sequence[str] = ("policy",)) -> OpenCheckpoint:
    """Opens a checkpoint that must hold `parts` completely, and may hold other parts.

    Raises InputError, in one line, for a directory without a checkpoint, for a file that is
    missing, truncated or corrupt, for a tokenizer that does not fit, and for unknown, missing,
    doubled and misshapen tensors.
    """
    path = Path(path)
    data = read_config(path)
    config, form = parse_config(data, str(path / CONFIG_FILE))
    if "policy" in parts:
        check_vocabulary(TextTokenizer.from_dir(path).vocab_size, config.decoder.vocab_size, path)
    tensors = open_tensors(path)
    found = {part_of_tensor(name, form) for name in tensors if not UNUSED.match(name)}
    present = tuple(part for part in PARTS if part in parts or part in found)
    shapes = part_shapes({part: abstract_state(part, config) for part in present})
    unused = check_tensors(tensors, shapes, NAMING[form], str(path))
    return OpenCheckpoint(path, data, config, form, tensors, present, unused)


def abstract_part(part: str, config: JanusConfig, dtype: Any = jnp.float32) -> Any:
    """The module of "policy", "vq" or "understanding", parameters as shapes only."""
    if part == "policy":
        return abstract_policy(config, param_dtype=dtype)
    if part == "vq":
        return abstract_vq(config.vq, dtype)
    if part == "understanding":
        return nnx.eval_shape(
            lambda: JanusUnderstanding(config, rngs=nnx.Rngs(0), param_dtype=dtype)
        )
    raise ValueError(f"unknown part {part!r}; parts are {', '.join(PARTS)}")


@cache
def split_part(part: str, config: JanusConfig, dtype: Any) -> tuple[Any, Any]:
    """(graphdef, abstract state) of a part; tracing a big module takes a second."""
    return nnx.split(abstract_part(part, config, dtype))


def abstract_state(part: str, config: JanusConfig) -> Any:
    """Shapes of a part's parameters as a pure tree."""
    return split_part(part, config, jnp.float32)[1]


def part_shapes(states: Mapping[str, Any]) -> dict[str, Shape]:
    """Shapes of all arrays of the given parts by dotted path."""
    return {
        path: shape
        for part, state in states.items()
        for path, shape in tree_shapes(part, state).items()
    }


def check_vocabulary(size: int, rows: int, path: Path) -> None:
    """InputError for a tokenizer of `size` ids on a model with fewer embedding rows."""
    if size > rows:
        raise InputError(
            f"the tokenizer in {path} has ids up to {size - 1}, "
            f"but the model has only {rows} embedding rows"
        )


def read_sizes(path: Path) -> JanusConfig:
    """The sizes of a checkpoint folder, from its config.json alone."""
    return parse_config(read_config(path), str(path / CONFIG_FILE))[0]
