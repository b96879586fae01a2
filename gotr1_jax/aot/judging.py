"""Programs of a Qwen2.5-VL judge in this process: its tower, reading questions, writing answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from gotr1_jax.aot.measure import Program, device_bytes
from gotr1_jax.aot.sampling import Run, on_rows, shape
from gotr1_jax.decoding.kv_cache import empty_cache
from gotr1_jax.decoding.weights import DecodeWeights, decode_weights_shardings
from gotr1_jax.images.qwen_pack import pack_images
from gotr1_jax.models.qwen2_5_vl import abstract_qwen
from gotr1_jax.models.qwen_config import QwenConfig
from gotr1_jax.parallel.mesh import replicated
from gotr1_jax.parallel.sharding import placed_shapes, state_shardings
from gotr1_jax.rewards.factory import JudgeConfig
from gotr1_jax.vlm_engine.engine import program_limits
from gotr1_jax.vlm_engine.packing import power_of_two
from gotr1_jax.vlm_engine.programs import PackedTokens, SharedPrefix
from gotr1_jax.vlm_engine.runner import TextPrograms, shared_prefix_sharding, text_programs
from gotr1_jax.vlm_engine.tower import VisionRunner

_HEAD = 416  # tokens of an instruction: those of the longest here, rounded up


@dataclass(frozen=True)
class JudgeShapes:
    """A judge without weights.

    Attributes:
      config: settings.
      sizes: of the model.
      mesh: devices of one process.
      programs, reader: its jitted functions.
      state: parameters as loaded; text: those of the text model laid out.
      units: vectors of images that are kept.
    """

    config: JudgeConfig
    sizes: QwenConfig
    mesh: Mesh
    programs: TextPrograms
    reader: VisionRunner
    state: Any
    text: DecodeWeights
    units: Any

    @property
    def bytes(self) -> int:
        """What lasts on one device."""
        return device_bytes((self.state["vision"], self.text, self.units))


def judge_shapes(config: JudgeConfig, sizes: QwenConfig, mesh: Mesh) -> JudgeShapes:
    """The engine of a judge of the kind qwen2_5_vl, built as `QwenEngine` is, without arrays."""
    engine = config.qwen2_5_vl
    assert engine is not None
    dtype = jnp.dtype(engine.dtype)
    module = abstract_qwen(sizes, dtype=dtype, param_dtype=dtype)
    state = nnx.split(module)[1]
    state = placed_shapes(state, state_shardings(state, mesh))
    # Any ids do: they are constants of a program.
    programs = text_programs(nnx.split(module.text)[0], sizes.text, dtype, (0, 1), mesh)
    text = jax.eval_shape(programs.prepare_weights, state["text"])
    vision = sizes.vision
    reader = VisionRunner(
        nnx.split(module.vision)[0], vision.geometry, vision.out_size, dtype, engine.patches,
        engine.image_tokens, mesh,
    )  # fmt: skip
    units = jax.ShapeDtypeStruct(
        (engine.image_tokens, vision.out_size), dtype, sharding=replicated(mesh)
    )
    text = placed_shapes(text, decode_weights_shardings(text, mesh))
    return JudgeShapes(config, sizes, mesh, programs, reader, state, text, units)


def load_judge(run: Run, judge: JudgeShapes, beside: tuple[str, ...]) -> None:
    """Its text model laid out: parameters as loaded lie beside those that are made of them."""
    run(
        Program(
            "judge: weights", judge.programs.prepare_weights, (judge.state["text"],), beside=beside
        )
    )


def judging(run: Run, judge: JudgeShapes, image: int, images: int, beside: tuple[str, ...]) -> None:
    """All programs of a judge, with the largest shapes that its settings allow.

    image: pixels of a side of the policy's images; images: how many a process judges.
    """

    def measure(name: str, function: Any, *args: Any, **more: Any) -> Any:
        program = Program(name, function, args, holds=("judge",), beside=beside, **more)
        return run(program)

    geometry = judge.sizes.vision.geometry
    side = max(1, round(image / geometry.unit_size))
    grids = {str(i): (side, side) for i in range(images)}
    batch = next(judge.reader.batches(grids))
    empty = pack_images([], geometry, batch.shape, batch.rows).batch
    there = on_rows(jax.tree.map(_shape, empty), judge.mesh, heads=False)
    measure(
        "judge: images", judge.reader.encode_batch, judge.state["vision"], there,
        times=math.ceil(images / len(batch.names)),
    )  # fmt: skip
    _questions(measure, judge)


def _questions(measure: Any, judge: JudgeShapes) -> None:
    """The largest chunk: as many rows and tokens as the limits let through."""
    engine, cfg, mesh = judge.config.qwen2_5_vl, judge.sizes.text, judge.mesh
    assert engine is not None
    limits = program_limits(engine, mesh)
    answer = power_of_two(_longest_answer(judge.config))
    # The most rows that leave a question of some hundred tokens room.
    length = max(limits.tokens // limits.rows, _HEAD + 512 + answer)
    B = limits.max_rows(min(length, limits.tokens // limits.multiple))
    length = limits.tokens // B
    rest = max(16, (length - answer - _HEAD) // 16 * 16)
    stretch = on_rows(
        PackedTokens(
            shape((B, rest), jnp.int32),
            shape((B, rest), jnp.int32),
            shape((B, 3, rest), jnp.int32),
            shape((B,), jnp.int32),
        ),
        mesh,
        heads=False,
    )
    dtype = jnp.dtype(engine.dtype)
    cache = jax.eval_shape(lambda: empty_cache(cfg, 1, _HEAD, dtype))
    cache = jax.tree.map(lambda x: _on(x, shared_prefix_sharding(mesh)), cache)
    head = SharedPrefix(cache, _on(shape((1,), jnp.int32), replicated(mesh)))
    lengths = on_rows(shape((B,), jnp.int32), mesh)
    programs = judge.programs
    hidden, context = measure(
        "judge: questions", programs.prefill_questions, judge.text, judge.units, stretch, head,
        None, static={"num_logits": 1},
    )  # fmt: skip
    hidden, context = (on_rows(x, mesh) for x in (hidden, context))
    state = jax.eval_shape(
        programs.start_answers, judge.text, hidden, lengths, room=answer, size=answer
    )
    state = on_rows(state, mesh)
    measure(
        "judge: answers, last bucket", programs.decode_bucket, judge.text, head, context, state,
        turns=max(1, answer // 2),
        reads=(judge.text.layers, judge.text.text_head_VD, head, context.cache, state.cache),
    )  # fmt: skip


def _longest_answer(config: JudgeConfig) -> int:
    asked, terms = config.questions, config.scored_terms
    kinds = {"ri": asked.boxes_tokens, "verdict": asked.verdict_tokens}
    return max(kinds.get(term, asked.score_tokens) for term in terms)


def _shape(x: np.ndarray) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _on(x: Any, sharding: Any) -> Any:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
