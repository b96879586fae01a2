"""The judge of a job: made or loaded, and split into what is trained and what is not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from gotr1_jax.convert.find import find_checkpoint
from gotr1_jax.convert.qwen_vl import (
    load_qwen,
    read_preprocessing,
    read_qwen_config,
    read_tokenizer,
)
from gotr1_jax.errors import InputError
from gotr1_jax.images.qwen import Preprocessing
from gotr1_jax.judge_sft.answers import ANSWER_PIECES
from gotr1_jax.judge_sft.config import JudgeSftConfig
from gotr1_jax.judge_sft.dataset import JudgeSource, bound_pixels, open_source
from gotr1_jax.judge_sft.detector import ObjectDetector
from gotr1_jax.judge_sft.new_model import TOKENIZER_TURNS, new_preprocessing, write_new_files
from gotr1_jax.models.lora import merge_lora, split_lora
from gotr1_jax.models.qwen_config import QwenConfig
from gotr1_jax.models.qwen_vl import QwenVL
from gotr1_jax.parallel.sharding import placed_shapes, shardings_of, state_shardings
from gotr1_jax.tokenizers.qwen import SYSTEM, QwenTokenizer
from gotr1_jax.trainer.number_features import with_number_features
from gotr1_jax.trainer.optimizer import float32_params
from gotr1_jax.trainer.state import TrainState, create_state

_VOCAB_MULTIPLE = 64  # so that a mesh axis divides it


@dataclass(frozen=True)
class InitialJudge:
    """The model before training, without its weights.

    Attributes:
      config: sizes.
      files: folder of its tokenizer and image settings.
      tokenizer, preprocessing: read from there; the bound on pixels is that of the training.
    """

    config: QwenConfig
    files: Path
    tokenizer: QwenTokenizer
    preprocessing: Preprocessing


@dataclass(frozen=True)
class SplitJudge:
    """A model as pure trees: `nnx.merge(graphdef, trained, frozen)` is the module.

    With adapters `trained` holds them alone; without, it is all and `frozen` is empty.
    """

    graphdef: Any
    trained: Any
    frozen: Any


def prepare_judge(config: JudgeSftConfig, scratch: Path) -> tuple[InitialJudge, JudgeSource]:
    """The model without its weights, and the examples; a new tokenizer is written to `scratch`.

    Raises InputError for a checkpoint, or for data, that cannot be read.
    """
    most = config.data.max_pixels
    if config.init is not None:
        path = find_checkpoint(config.init)
        sizes = read_qwen_config(path)
        tokenizer = read_tokenizer(path, sizes)
        if tokenizer.thinks:
            raise InputError(
                f"init {config.init} thinks before it answers, and records hold no thoughts; give "
                "the Instruct checkpoint"
            )
        settings = bound_pixels(read_preprocessing(path, sizes.vision.geometry), most)
        source = open_source(config, settings, thousandths=sizes.is_qwen3)
        return InitialJudge(sizes, path, tokenizer, settings), source
    assert config.model is not None
    settings = bound_pixels(new_preprocessing(config.model), most)
    source = open_source(config, settings, thousandths=config.model.is_qwen3)
    count = min(len(source), -(-TOKENIZER_TURNS // source.turns))
    write_new_files(scratch, (source.text(i) for i in range(count)), ANSWER_PIECES, config.model)
    tokenizer = QwenTokenizer.from_dir(scratch, None if config.model.is_qwen3 else SYSTEM)
    vocab_size = -(-tokenizer.vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE
    return InitialJudge(config.model.sizes(vocab_size), scratch, tokenizer, settings), source


def judge_shapes(config: JudgeSftConfig, sizes: QwenConfig, mesh: Mesh) -> SplitJudge:
    """The split model as shapes that know their places; nothing is allocated."""
    abstract = nnx.eval_shape(lambda: _new_module(config, sizes, jax.random.key(0)))
    if config.lora is None:
        graphdef, rest = nnx.split(abstract)
        return SplitJudge(graphdef, placed_shapes(rest, state_shardings(rest, mesh)), nnx.State({}))
    graphdef, *parts = split_lora(abstract)
    trained, frozen = (placed_shapes(part, state_shardings(part, mesh)) for part in parts)
    return SplitJudge(graphdef, trained, frozen)


def initial_state(
    config: JudgeSftConfig,
    initial: InitialJudge,
    shapes: SplitJudge,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> tuple[TrainState, Any]:
    """The sharded state before the first update, and the frozen parameters.

    Each device reads only its own slices of a checkpoint. New parameters and adapters are drawn
    from the seed.
    """
    loaded = None
    if config.init is not None:
        stored = shapes.trained if config.lora is None else shapes.frozen
        dtype = jnp.dtype(config.param_dtype)
        loaded = load_qwen(initial.files, dtype, shardings_of(stored)).state
        if config.lora is None:
            state = create_state(lambda params: params, loaded, shapes.trained, optimizer, mesh)
            return state, shapes.frozen

    def init(key: jax.Array) -> Any:
        model = _new_module(config, initial.config, key)
        if config.model is not None and config.model.number_features:
            judge = model.judge if isinstance(model, ObjectDetector) else model
            table, numbers = judge.text.embed.table, initial.tokenizer.number_ids
            table[...] = with_number_features(table[...], numbers, jax.random.fold_in(key, 1))
        # Only what is trained is returned, so the compiler drops the rest of the model.
        return nnx.split(model)[1] if config.lora is None else split_lora(model)[1]

    state = create_state(init, jax.random.key(config.seed), shapes.trained, optimizer, mesh)
    return state, shapes.frozen if loaded is None else loaded


def finished_params(
    config: JudgeSftConfig, shapes: SplitJudge, state: TrainState, frozen: Any
) -> Any:
    """The parameters of a plain `QwenVL`: trained ones as they were before any rounding, adapters
    merged, without a detector's head."""
    if config.lora is None:
        params = float32_params(state.params, state.opt_state)
        return params["judge"] if config.objective == "objects" else params
    wide = config.export_dtype == "float32"

    def merge(trained: Any, frozen: Any) -> Any:
        if wide:  # or the sum would be rounded to the base's dtype
            frozen = jax.tree.map(lambda x: x.astype(jnp.float32), frozen)
        return nnx.split(merge_lora(nnx.merge(shapes.graphdef, trained, frozen)))[1]

    return jax.jit(merge, out_shardings=shardings_of(shapes.frozen))(state.params, frozen)


def _new_module(
    config: JudgeSftConfig, sizes: QwenConfig, key: jax.Array
) -> QwenVL | ObjectDetector:
    """What the job's objective trains, with new parameters."""
    rngs, param_dtype = nnx.Rngs(params=key), jnp.dtype(config.param_dtype)
    judge = QwenVL(
        sizes, rngs=rngs, lora=config.lora, dtype=jnp.dtype(config.dtype), param_dtype=param_dtype,
        remat=config.remat,
    )  # fmt: skip
    if config.objective == "objects":
        return ObjectDetector(judge, rngs=rngs, param_dtype=param_dtype)
    return judge
