"""Questions a second of the judge engine, optimization by optimization, and of `transformers`.

The model: Qwen2.5-VL's architecture with random weights in float32, 12 layers, 768 wide, 12 heads
of 64 with 2 for keys and values, mlp 2048, vocabulary 32768, tied; a vision tower of 8 layers,
320 wide. Four questions about each image of 392 by 392 pixels (196 tokens), as for a plan with
four objects: one instruction for all, the image, its caption, and a line of its own. Answers are
cut at 32 tokens; random weights rarely end earlier.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from gotr1_jax.bench.timing import REFERENCE, check_reference, import_reference, speedup, timed
from gotr1_jax.convert.qwen_vl import QwenCheckpoint, load_qwen, save_qwen
from gotr1_jax.images.qwen import Geometry, read_image
from gotr1_jax.models.config import DecoderConfig
from gotr1_jax.models.qwen_config import QwenConfig, QwenVisionConfig
from gotr1_jax.models.qwen_vl import QwenVL
from gotr1_jax.rewards.multimodal.instructions import LOCATE, SCORE_PREFIX, ask_score, show_caption
from gotr1_jax.tokenizers.qwen import SYSTEM, ImageTokens
from gotr1_jax.vlm_engine.base import Question, Scale, make_image_input
from gotr1_jax.vlm_engine.config import QwenEngineConfig
from gotr1_jax.vlm_engine.engine import QwenEngine
from gotr1_jax.vlm_engine.packing import PrefixGroup, QuestionTokens

ANSWER_TOKENS = 32
QUESTIONS_PER_IMAGE = 4
THEIR_BATCH = 8
SIDE = 392
MODEL = QwenConfig(
    text=DecoderConfig(
        vocab_size=32768, hidden_size=768, mlp_size=2048, num_layers=12, num_heads=12,
        num_kv_heads=2, head_dim=64, rope_theta=1e6, qkv_bias=True, tie_embeddings=True,
        mrope_section=(8, 12, 12),
    ),
    vision=QwenVisionConfig(
        width=320, mlp_size=860, num_layers=8, num_heads=5, out_size=768, full_attention=(3, 7),
        geometry=Geometry(),
    ),
)  # fmt: skip
_ASPECTS = (
    "objects: is each object of the caption there, in the number asked for, and recognisable",
    "colors: does each object have its color, and no other object that color by mistake",
    "places: do the objects stand to each other as the caption says, word by word",
    "everything: do objects, colors, numbers and places all agree with the caption",
)
_SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>",
)  # fmt: skip


@dataclass(frozen=True)
class JudgeBench:
    """Times of all variants.

    Attributes:
      questions: number of questions in a repetition.
      seconds: of each variant and repetition, in the order of measurement.
      same_answers: share of answers equal to those of transformers; None: not compared.
    """

    questions: int
    seconds: dict[str, list[float]]
    same_answers: float | None

    def lines(self) -> list[str]:
        """A table; ratios compare times of the same repetition."""
        images = self.questions // QUESTIONS_PER_IMAGE
        lines = [
            f"judge: {self.questions} questions, {images} images",
            f"{'':42}{'questions/s':>12}  times as fast (spread)",
        ]
        base = self.seconds.get(REFERENCE)
        for name, times in self.seconds.items():
            line = f"{name:42}{self.questions / statistics.median(times):12.3g}"
            if base is not None:
                ratio, least, most = speedup(times, base)
                line += f"  {ratio:.2f} ({least:.2f} to {most:.2f})"
            lines.append(line)
        if self.same_answers is not None:
            lines.append(f"{100 * self.same_answers:.1f} % of the answers are the same")
        return lines


class _NoPrefixes(QwenEngine):
    """An engine in which questions share only their instruction."""

    def share_prefixes(self, rows: Sequence[QuestionTokens], tail: int = 1) -> list[PrefixGroup]:
        return [PrefixGroup(0, tuple(range(len(rows))))] if rows else []


class _NothingShared(_NoPrefixes):
    """An engine in which questions share only the system message."""

    def shared_text(self, question: Question) -> str:
        return ""


def bench_judge(
    against: str | None = None, *, repeats: int = 1, images: int = 32
) -> JudgeBench:  # fmt: skip
    """Time all variants in turn, ours after one untimed call that compiles.

    Our times include the preprocessing of images, theirs do not.
    """
    compares = check_reference(against)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = _checkpoint(Path(folder))
        questions = make_questions(images)
        variants: dict[str, Callable[[], Any]] = {}
        answers: dict[str, list[str]] = {}
        if compares:
            theirs = _their_batches(checkpoint, questions)
            variants[REFERENCE] = lambda: answers.update({REFERENCE: theirs()})
    config = QwenEngineConfig("bench", "float32", max_pixels=SIDE * SIDE)
    engine, no_prefixes, nothing_shared = (
        kind(checkpoint, config) for kind in (QwenEngine, _NoPrefixes, _NothingShared)
    )
    distinct_images = [
        replace(q, images=tuple(replace(p, key=f"{p.key} {i}") for p in q.images))
        for i, q in enumerate(questions)
    ]
    # The names are keys of the JSON output.
    ours = {
        "batches, nothing shared": lambda: nothing_shared.answer(distinct_images),
        "+ each picture encoded once": lambda: nothing_shared.answer(questions),
        "+ the instruction read once": lambda: no_prefixes.answer(questions),
        "+ picture and caption read once": lambda: answers.update(
            ours=[a.text for a in engine.answer(questions)]
        ),
        "+ expected score instead of words": lambda: engine.expected_scores(questions),
    }
    for name, run in ours.items():
        timed(f"judge: {name}, warm-up", run)
    variants |= ours
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats):
        for name, run in variants.items():
            seconds[name].append(timed(f"judge: {name}, turn {turn + 1} of {repeats}", run))
    same = None
    if compares:
        same = float(np.mean([a == b for a, b in zip(answers["ours"], answers[REFERENCE])]))
    return JudgeBench(len(questions), seconds, same)


def make_questions(images: int) -> list[Question]:
    """Four score questions about each of `images` random images with captions."""
    rng, ask = np.random.default_rng(0), LOCATE + ask_score()
    questions = []
    for n in range(images):
        image = make_image_input(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
        words = [f"thing {rng.integers(1000)} left of" for _ in range(1 + n % 4)]
        caption = show_caption(f"a photo of {' '.join(words)} a cat")
        for aspect in _ASPECTS[:QUESTIONS_PER_IMAGE]:
            text, scale = f"{caption}Look at {aspect}.\n", Scale(0, 10, SCORE_PREFIX)
            questions.append(Question("score", (image,), ask, text, ANSWER_TOKENS, scale))
    return questions


def _checkpoint(folder: Path) -> QwenCheckpoint:
    """The random model, saved and loaded."""
    files = folder / "files"
    files.mkdir()
    texts = [text for q in make_questions(4) for text in (q.instruction, q.text)]
    word_tokenizer(texts, MODEL.text.vocab_size).save(str(files / "tokenizer.json"))
    (files / "preprocessor_config.json").write_text(
        '{"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "merge_size": 2, '
        '"temporal_patch_size": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.3, 0.3, 0.3]}',
        encoding="utf-8",
    )
    state = nnx.split(QwenVL(MODEL, rngs=nnx.Rngs(0)))[1]
    save_qwen(folder / "model", MODEL, state, files, "float32")
    return load_qwen(folder / "model", jnp.float32)


def word_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer that knows the words of `texts`, with Qwen2.5-VL's control tokens.

    It gives about as many tokens as a trained one: words, punctuation, single digits.
    """
    split = pre_tokenizers.Split(Regex(r"\s?[^\W\d]+|\d|\s?[^\w\s]+|\s"), "isolated")
    texts = [*texts, SCORE_PREFIX, f"system\n{SYSTEM}", "user\n", "assistant\n"]
    words = {word for text in texts for word, _ in split.pre_tokenize_str(text)}
    words |= set("0123456789")
    vocab = {word: i for i, word in enumerate(["<unk>", *sorted(words)])}
    # All other rows of the embedding get names, so that different answers have different texts.
    vocab |= {f"w{i}": i for i in range(len(vocab), vocab_size - len(_SPECIALS))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    tokenizer.add_special_tokens(list(_SPECIALS))
    return tokenizer


def _their_batches(
    checkpoint: QwenCheckpoint, questions: Sequence[Question]
) -> Callable[[], list[str]]:
    """`transformers`' generate on batches padded on the left; its inputs are prepared before."""
    torch, transformers = import_reference()
    loader = transformers.Qwen2_5_VLForConditionalGeneration
    model = loader.from_pretrained(checkpoint.source, dtype="float32").eval()
    ids = checkpoint.tokenizer.ids
    batches = [
        _their_inputs(checkpoint, questions[start : start + THEIR_BATCH])
        for start in range(0, len(questions), THEIR_BATCH)
    ]

    def run() -> list[str]:
        texts = []
        for inputs in batches:
            with torch.no_grad():
                out = model.generate(
                    **inputs, do_sample=False, max_new_tokens=ANSWER_TOKENS,
                    eos_token_id=[ids.message_end, ids.text_end], pad_token_id=ids.text_end,
                )  # fmt: skip
            new = out[:, inputs["input_ids"].shape[1] :].tolist()
            texts += [checkpoint.tokenizer.decode(row) for row in new]
        return texts

    return run


def _their_inputs(checkpoint: QwenCheckpoint, batch: Sequence[Question]) -> dict[str, Any]:
    import torch
    from PIL import Image

    tokenizer = checkpoint.tokenizer
    images = [
        read_image(Image.fromarray(q.images[0].pixels), checkpoint.preprocessing) for q in batch
    ]
    rows = [
        tokenizer.encode_chat([q.instruction, ImageTokens(p.units), q.text])
        for p, q in zip(images, batch)
    ]
    longest = max(map(len, rows))
    padded = [[tokenizer.ids.text_end] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    frames = MODEL.vision.geometry.temporal_patch_size
    joined = np.concatenate([p.patches_NE for p in images])
    doubled = np.repeat(joined.reshape(len(joined), 3, 1, -1), frames, axis=2)
    tokens = torch.tensor(padded)
    return {
        "input_ids": tokens,
        "attention_mask": torch.tensor(mask),
        "pixel_values": torch.from_numpy(doubled.reshape(len(joined), -1)),
        "image_grid_thw": torch.tensor([[1, 2 * p.grid[0], 2 * p.grid[1]] for p in images]),
        "mm_token_type_ids": (tokens == tokenizer.ids.image).int(),
    }
