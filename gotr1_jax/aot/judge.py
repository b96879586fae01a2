"""Programs of a judge in this process: vision tower, prefill of questions, decoding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from gotr1_jax.aot.job import JobCompiler
from gotr1_jax.aot.measure import bytes_per_device
from gotr1_jax.aot.sampling import array_shape, shard_rows
from gotr1_jax.decoding.kv_cache import empty_cache, resolve_cache_dtype
from gotr1_jax.decoding.weights import DecodeWeights, decode_weights_shardings
from gotr1_jax.images.qwen_pack import pack_images
from gotr1_jax.models.qwen_config import QwenConfig
from gotr1_jax.models.qwen_vl import abstract_qwen
from gotr1_jax.parallel.mesh import replicated
from gotr1_jax.parallel.sharding import placed_shapes, state_shardings
from gotr1_jax.rewards.judge_config import JudgeConfig
from gotr1_jax.vlm_engine.engine import program_limits
from gotr1_jax.vlm_engine.packing import power_of_two
from gotr1_jax.vlm_engine.programs import PackedTokens, SharedPrefix
from gotr1_jax.vlm_engine.runner import TextPrograms, shared_prefix_sharding, text_programs
from gotr1_jax.vlm_engine.tower import VisionRunner

_PREFIX_TOKENS = 416  # of the longest instruction, rounded up


@dataclass(frozen=True)
class JudgeShapes:
    """A judge without weights.

    Attributes:
      config: of the judge.
      sizes: of the model.
      mesh: devices of one process.
      programs, tower: its jitted functions.
      state: parameters as loaded.
      text: decode weights of the text model.
      image_cache: encoded images.
    """

    config: JudgeConfig
    sizes: QwenConfig
    mesh: Mesh
    programs: TextPrograms
    tower: VisionRunner
    state: Any
    text: DecodeWeights
    image_cache: Any

    @property
    def bytes(self) -> int:
        """Persistent bytes on one device."""
        return bytes_per_device((self.state["vision"], self.text, self.image_cache))


def judge_shapes(config: JudgeConfig, sizes: QwenConfig, mesh: Mesh) -> JudgeShapes:
    """The engine of a judge of kind qwen_vl, built like `QwenEngine`, without arrays."""
    engine = config.qwen_vl
    assert engine is not None
    dtype = jnp.dtype(engine.dtype)
    module = abstract_qwen(sizes, dtype=dtype, param_dtype=dtype)
    state = nnx.split(module)[1]
    state = placed_shapes(state, state_shardings(state, mesh))
    # The end ids do not matter: shapes do not depend on them.
    programs = text_programs(
        nnx.split(module.text)[0], sizes.text, dtype, (0, 1), mesh, engine.cache_dtype
    )
    text = jax.eval_shape(programs.prepare_weights, state["text"])
    vision = sizes.vision
    tower = VisionRunner(
        nnx.split(module.vision)[0], vision.geometry, vision.vector_size, dtype, engine.patches,
        engine.image_tokens, mesh,
    )  # fmt: skip
    image_cache = jax.ShapeDtypeStruct(
        (engine.image_tokens, vision.vector_size), dtype, sharding=replicated(mesh)
    )
    text = placed_shapes(text, decode_weights_shardings(text, mesh))
    return JudgeShapes(config, sizes, mesh, programs, tower, state, text, image_cache)


def compile_judge(
    job: JobCompiler, judge: JudgeShapes, image_size: int, images: int, resident: tuple[str, ...]
) -> None:
    """All programs of a judge, with the largest shapes that its settings allow.

    image_size: pixels of a side of the policy's images; images: number that a process scores.
    """

    measure = partial(job.compile, persistent_args=("judge",), resident=resident)
    geometry = judge.sizes.vision.geometry
    side = max(1, round(image_size / geometry.unit_size))
    grids = {str(i): (side, side) for i in range(images)}
    batch = next(judge.tower.batches(grids))
    empty = pack_images([], geometry, batch.shape, batch.rows).batch
    packed = shard_rows(jax.tree.map(_shape, empty), judge.mesh, heads=False)
    measure(
        "judge: images", judge.tower.encode_batch, judge.state["vision"], packed,
        runs_per_step=math.ceil(images / len(batch.names)),
    )  # fmt: skip
    _compile_questions(measure, judge)


def _compile_questions(measure: Any, judge: JudgeShapes) -> None:
    """The largest batch of questions: as many rows and tokens as the limits allow."""
    engine, cfg, mesh = judge.config.qwen_vl, judge.sizes.text, judge.mesh
    assert engine is not None
    limits = program_limits(engine, mesh)
    answer = power_of_two(_longest_answer(judge.config))
    # As many rows as leave 512 tokens for each question.
    length = max(limits.tokens // limits.rows, _PREFIX_TOKENS + 512 + answer)
    B = limits.max_rows(min(length, limits.tokens // limits.multiple))
    length = limits.tokens // B
    own = max(16, (length - answer - _PREFIX_TOKENS) // 16 * 16)
    tokens = shard_rows(
        PackedTokens(
            array_shape((B, own), jnp.int32),
            array_shape((B, own), jnp.int32),
            array_shape((B, 3, own), jnp.int32),
            array_shape((B,), jnp.int32),
        ),
        mesh,
        heads=False,
    )
    dtype = resolve_cache_dtype(engine.cache_dtype, engine.dtype)
    cache = jax.eval_shape(lambda: empty_cache(cfg, 1, _PREFIX_TOKENS, dtype))
    cache = jax.tree.map(lambda x: _on(x, shared_prefix_sharding(mesh)), cache)
    prefix = SharedPrefix(cache, _on(array_shape((1,), jnp.int32), replicated(mesh)))
    lengths = shard_rows(array_shape((B,), jnp.int32), mesh)
    programs = judge.programs
    hidden, context = measure(
        "judge: questions", programs.prefill_questions, judge.text, judge.image_cache, tokens,
        prefix, None, static={"num_logits": 1},
    )  # fmt: skip
    hidden, context = (shard_rows(x, mesh) for x in (hidden, context))
    state = jax.eval_shape(
        programs.start_answers, judge.text, hidden, lengths, room=answer, size=answer
    )
    state = shard_rows(state, mesh)
    measure(
        "judge: answers, last bucket", programs.decode_bucket, judge.text, prefix, context, state,
        iterations=max(1, answer // 2),
        reads=(judge.text.layers, judge.text.text_head_VD, prefix, context.cache, state.cache),
    )  # fmt: skip


def _longest_answer(config: JudgeConfig) -> int:
    return max(config.questions.answer_tokens(term) for term in config.scored_terms)


def _shape(x: np.ndarray) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _on(x: Any, sharding: Any) -> Any:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
