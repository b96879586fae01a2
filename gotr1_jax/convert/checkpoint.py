"""Loading a checkpoint into our arrays, and writing ours in the released format.

What comes back are pure trees (`nnx.State`). To put adapters on a loaded policy, build the
abstract policy with them and give it the loaded tree for everything else:

    graphdef, adapters, rest = split_lora(abstract_policy(cfg, lora=lora))
    policy = nnx.merge(graphdef, fresh_adapters, checkpoint.policy)  # rest has the same structure
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from gotr1_jax.convert.config_json import config_to_json, parse_config
from gotr1_jax.convert.names import NAMING, UNUSED, Format, part_of_tensor
from gotr1_jax.convert.reader import open_tensors
from gotr1_jax.convert.rules import Shape
from gotr1_jax.convert.tree import check_tensors, foreign_tensors, load_tree, some, tree_shapes
from gotr1_jax.convert.writer import OutTensor, new_directory, write_safetensors
from gotr1_jax.errors import InputError
from gotr1_jax.models.config import JanusConfig
from gotr1_jax.models.janus import JanusPolicy, abstract_policy
from gotr1_jax.models.siglip import Understanding
from gotr1_jax.models.vq import VQModel
from gotr1_jax.text import TOKENIZER_FILE, TextTokenizer

PARTS = ("policy", "vq", "understanding")
EMBEDDED = Path(__file__).resolve().parent.parent / "assets" / "shapes"
"""The checkpoint that the package brings along."""
CONFIG_FILE = "config.json"
RUN_CONFIG, RUN_MODEL = "config.yaml", "model"  # of a training run's directory
WEIGHTS_FILE = "model.safetensors"
# Files about text and pictures that go with the weights, copied as they are.
CARRIED_FILES = (
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "processor_config.json",
    "preprocessor_config.json",
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

    def policy_module(self, dtype: Any = jnp.float32) -> JanusPolicy:
        """The policy as a module that computes in `dtype`."""
        abstract = abstract_policy(self.config, dtype=dtype, param_dtype=self.dtype)
        return nnx.merge(nnx.split(abstract)[0], self.policy)

    def vq_module(self) -> VQModel:
        """The picture tokenizer as a module."""
        return nnx.merge(_split("vq", self.config, self.dtype)[0], self.vq)

    def understanding_module(self) -> Understanding:
        """Vision tower and aligner as a module."""
        graphdef = _split("understanding", self.config, self.dtype)[0]
        return nnx.merge(graphdef, self.understanding)


def abstract_part(part: str, config: JanusConfig, dtype: Any = jnp.float32) -> Any:
    """The module of "policy", "vq" or "understanding", parameters as shapes only."""
    if part == "policy":
        return abstract_policy(config, param_dtype=dtype)
    if part == "vq":
        return nnx.eval_shape(lambda: VQModel(config.vq, rngs=nnx.Rngs(0), dtype=dtype))
    if part == "understanding":
        return nnx.eval_shape(lambda: Understanding(config, rngs=nnx.Rngs(0), param_dtype=dtype))
    raise ValueError(f"unknown part {part!r}; parts are {', '.join(PARTS)}")


@cache
def _split(part: str, config: JanusConfig, dtype: Any) -> tuple[Any, Any]:
    """(graphdef, abstract state) of a part; tracing a big module takes a second."""
    return nnx.split(abstract_part(part, config, dtype))


def find_checkpoint(path: str | Path | None) -> Path:
    """The checkpoint directory that a user means: the embedded one for None, the finished model
    of a training run for its run directory, else `path` itself.

    Raises InputError for a run that has no finished model.
    """
    if path is None:
        return EMBEDDED
    path = Path(path)
    if not (path / RUN_CONFIG).is_file() or (path / CONFIG_FILE).is_file():
        return path
    if not (path / RUN_MODEL / CONFIG_FILE).is_file():
        raise InputError(f"the run {path} has no {RUN_MODEL}/ yet: let it finish first")
    return path / RUN_MODEL


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
        device then reads its own slices only. Without it arrays lie on the default device.

    Raises InputError, in one line, for a directory that is no checkpoint, for a file that is
    missing, truncated or corrupt, and for unknown, missing, doubled and misshapen tensors.
    """
    path = Path(path)
    config, form = parse_config(read_config(path), str(path / CONFIG_FILE))
    if "policy" in parts:
        _check_vocabulary(TextTokenizer.from_dir(path), config, path)
    tensors = open_tensors(path)
    found = {part_of_tensor(name, form) for name in tensors if not UNUSED.match(name)}
    states = {
        part: _split(part, config, dtype)[1] for part in PARTS if part in parts or part in found
    }
    skipped = check_tensors(tensors, part_shapes(states), NAMING[form], str(path))
    placed = shardings or {}
    loaded = {
        part: load_tree(part, states[part], NAMING[form], tensors, dtype, placed.get(part))
        for part in parts
    }
    return Checkpoint(
        config,
        loaded.get("policy"),
        loaded.get("vq"),
        loaded.get("understanding"),
        dtype,
        path,
        skipped,
    )


def save_checkpoint(
    directory: str | Path,
    config: JanusConfig,
    policy_state: Any,
    vq_state: Any,
    understanding_state: Any,
    tokenizer_dir: str | Path,
    dtype: str = "bfloat16",
) -> Path:
    """Writes a checkpoint in the released ("multi_modality") format; returns its directory.

    The directory appears whole or not at all; an older checkpoint at its place is replaced.

    Args:
      directory: where to.
      config: sizes; those that released files do not name are written under names of our own.
      policy_state, vq_state, understanding_state: pure trees of parameters, adapters already
        folded in; None leaves a part out.
      tokenizer_dir: directory whose tokenizer and processor files are copied along.
      dtype: "bfloat16" or "float32", of the stored weights.

    Raises InputError for states that do not fit `config`, a missing tokenizer or a target that
    holds something else; RunError if it cannot be written.
    """
    given = zip(PARTS, (policy_state, vq_state, understanding_state))
    states = {part: state for part, state in given if state is not None}
    for part, state in states.items():
        expected = nnx.split(abstract_part(part, config))[1]
        _check_state(part, tree_shapes(part, state), tree_shapes(part, expected))
    tokenizer_dir = Path(tokenizer_dir)
    _check_vocabulary(TextTokenizer.from_dir(tokenizer_dir), config, tokenizer_dir)
    text = json.dumps(config_to_json(config, dtype), indent=2)
    with new_directory(Path(directory), CONFIG_FILE) as temporary:
        for name in CARRIED_FILES:
            if (tokenizer_dir / name).is_file():
                shutil.copyfile(tokenizer_dir / name, temporary / name)
        (temporary / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
        write_safetensors(temporary / WEIGHTS_FILE, out_tensors(states, "original"), dtype)
    return Path(directory)


def part_shapes(states: Mapping[str, Any]) -> dict[str, Shape]:
    """Shapes of all arrays of the given parts by dotted path."""
    return {
        path: shape
        for part, state in states.items()
        for path, shape in tree_shapes(part, state).items()
    }


def out_tensors(states: Mapping[str, Any], form: Format) -> list[OutTensor]:
    """The foreign tensors of our `states` by part, sorted by name; values are fetched lazily."""
    return foreign_tensors(states, NAMING[form])


def _check_state(part: str, given: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    """That a state to be written has exactly the arrays that its configuration says."""
    faults = [f"{p} is missing" for p in expected if p not in given]
    faults += [f"{p} is not part of a checkpoint" for p in given if p not in expected]
    faults += [
        f"{p} is {list(shape)}, expected {list(expected[p])}"
        for p, shape in given.items()
        if p in expected and shape != expected[p]
    ]
    if faults:
        raise InputError(f"the {part} parameters do not fit the configuration: {some(faults)}")


def _check_vocabulary(tokenizer: TextTokenizer, config: JanusConfig, path: Path) -> None:
    rows = config.decoder.vocab_size
    if tokenizer.vocab_size > rows:
        raise InputError(
            f"the tokenizer in {path} has ids up to {tokenizer.vocab_size - 1}, "
            f"but the model has only {rows} embedding rows"
        )


def read_config(path: Path) -> Any:
    """The parsed config.json of a checkpoint directory; InputError if it has none."""
    file = path / CONFIG_FILE
    if not path.is_dir():
        raise InputError(f"no checkpoint at {path}: there is no such directory")
    if not file.is_file():
        raise InputError(f"no checkpoint at {path}: it holds no {CONFIG_FILE}")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON: {error}") from error
