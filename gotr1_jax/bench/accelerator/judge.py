"""The judge's section, and that of the VQ decoder: what follows the loops of a step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from gotr1_jax.bench.accelerator.clocks import CompileClock, measure
from gotr1_jax.bench.accelerator.sizes import JudgeToMeasure, PolicyToMeasure
from gotr1_jax.bench.accelerator.weights import random_weights
from gotr1_jax.bench.judge import word_tokenizer
from gotr1_jax.convert.qwen_vl import QwenCheckpoint, abstract_state
from gotr1_jax.images.qwen import Preprocessing
from gotr1_jax.models.vq import abstract_vq
from gotr1_jax.parallel.mesh import local_mesh, replicated
from gotr1_jax.parallel.sharding import placed_shapes, state_shardings
from gotr1_jax.plan import Plan, parse_plan
from gotr1_jax.rewards.base import JudgeRequest, JudgeResult
from gotr1_jax.rewards.multimodal.questions import QuestionsConfig, make_questions
from gotr1_jax.sampler.image_decoder import ImageDecoder
from gotr1_jax.tokenizers.qwen import QwenTokenizer
from gotr1_jax.vlm_engine.base import Question
from gotr1_jax.vlm_engine.engine import QwenEngine

TERMS = ("sem", "spa", "ri", "pi")
_CAPTION = "a photo of a red vase left of a blue clock, above a green bench and a dog"
_OBJECTS = (
    ("red vase", (80, 60, 410, 480)), ("blue clock", (560, 70, 930, 430)),
    ("green bench", (70, 560, 640, 930)), ("dog", (690, 600, 940, 920)),
)  # fmt: skip


def planned_objects() -> Plan:
    """A plan of four objects, about which the judge asks as of the plans of a trained policy."""
    parts = [
        f"a {name} <|obj_start|>{name}<|obj_end|> <|box_start|>({a},{b}),({c},{d})<|box_end|>"
        for name, (a, b, c, d) in _OBJECTS
    ]
    return parse_plan(f"The image shows {', '.join(parts)}.")


def questions_about(images: Sequence[np.ndarray], config: QuestionsConfig) -> list[Question]:
    """A step's questions about samples with these images: seven each."""
    plan = planned_objects()
    requests = (JudgeRequest(_CAPTION, plan, image) for image in images)
    found = (make_questions(request, TERMS, config) for request in requests)
    return [q for by_term in found for group in by_term.values() for q in group]


def random_images(count: int, side: int, seed: int) -> list[np.ndarray]:
    """uint8 (side, side, 3)."""
    rng = np.random.default_rng(seed)
    return list(rng.integers(0, 256, (count, side, side, 3), np.uint8))


def random_engine(measured: JudgeToMeasure, mesh: Mesh) -> QwenEngine:
    """The engine of a judge with random weights, made on the devices of the mesh."""
    sizes, dtype = measured.sizes, jnp.dtype(measured.engine.dtype)
    shapes = abstract_state(sizes, dtype)
    state = random_weights(placed_shapes(shapes, state_shardings(shapes, mesh)))
    tokenizer = word_tokenizer(_texts(measured), sizes.text.vocab_size).to_str()
    geometry = sizes.vision.geometry
    pixels = Preprocessing(geometry, 3136, 12845056, (0.5, 0.5, 0.5), (0.3, 0.3, 0.3))
    checkpoint = QwenCheckpoint(
        sizes, state, dtype, QwenTokenizer(tokenizer), pixels, Path("random")
    )
    return QwenEngine(checkpoint, measured.engine, mesh)


def _texts(measured: JudgeToMeasure) -> list[str]:
    questions = questions_about(random_images(1, 28, 0), measured.questions)
    return [text for q in questions for text in (q.instruction, q.text)]


class JudgeRun:
    """The judge's section."""

    def __init__(self, measured: JudgeToMeasure, mesh: Mesh, clock: CompileClock) -> None:
        self.measured, self.clock = measured, clock
        self.engine = random_engine(measured, local_mesh(mesh))

    def answers(self, repeats: int) -> dict[str, Any]:
        """A step's questions about a number of samples, with other images at each repetition."""
        measured, engine, turn = self.measured, self.engine, 0
        before = engine.counts.decoded

        def once() -> None:
            nonlocal turn
            turn += 1
            images = random_images(measured.samples, measured.image_size, turn)
            engine.answer(questions_about(images, measured.questions))

        timing = measure(once, self.clock, repeats)
        asked = len(questions_about(random_images(1, 28, 0), measured.questions))
        return timing.values() | {
            "samples": measured.samples,
            "questions": asked * measured.samples,
            "questions_per_second": asked * measured.samples / timing.seconds,
            "samples_per_second": measured.samples / timing.seconds,
            "answer_steps": (engine.counts.decoded - before) // turn,
        }


class StepJudge:
    """A judge that asks a step's questions about every image and gives random scores.

    What random weights answer cannot be read, and their plans have no boxes: it asks about
    `planned_objects` instead, each question once.
    """

    terms, identity, needs_main_thread = TERMS, "random", True

    def __init__(self, engine: QwenEngine, config: QuestionsConfig) -> None:
        self._engine, self._config = engine, config
        self._rng = np.random.default_rng(0)

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        """As `Judge.judge`."""
        self._engine.answer(questions_about([r.image for r in requests], self._config))
        return [JudgeResult(dict(zip(TERMS, self._rng.random(len(TERMS))))) for _ in requests]


def image_decoder_of(measured: PolicyToMeasure, mesh: Mesh) -> ImageDecoder:
    """The VQ decoder of a job, with random weights."""
    vq, dtype = measured.sizes.vq, jnp.dtype(measured.config.policy.param_dtype)
    graphdef, shapes = nnx.split(abstract_vq(vq, dtype))
    places = jax.tree.map(lambda _: replicated(mesh), shapes)
    state = random_weights(placed_shapes(shapes, places))
    batch = measured.config.rollout.decode_batch
    return ImageDecoder(nnx.merge(graphdef, state), measured.sizes.grid, batch, local_mesh(mesh))


def measure_decoder(
    measured: PolicyToMeasure, mesh: Mesh, clock: CompileClock, repeats: int
) -> dict[str, Any]:
    """Token ids to pixels on the host, two batches."""
    decode = image_decoder_of(measured, mesh)
    images = 2 * measured.config.rollout.decode_batch
    shape, limit = (images, measured.sizes.num_image_tokens), measured.sizes.image_vocab
    ids = np.random.default_rng(0).integers(0, limit, shape).astype(np.int32)
    timing = measure(partial(decode, ids), clock, repeats)
    return timing.values() | {"images": images, "images_per_second": images / timing.seconds}
