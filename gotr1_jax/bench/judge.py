"""Questions a second that the judge answers, trick by trick, and `transformers` on the same ones.

The model: Qwen2.5-VL's architecture with random weights in float32, 12 layers, 768 wide, 12 heads
of 64 with 2 for keys and values, mlp 2048, vocabulary 32768, tied; a vision tower of 8 layers,
320 wide. Four questions an image of 392 by 392 pixels (196 tokens), as a plan with four objects
makes them: one instruction for all, the image, its caption, and a line of its own. Answers are
cut at 32 tokens, and random weights hardly ever end sooner.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from gotr1_jax.bench.timing import AGAINST
from gotr1_jax.convert.qwen2_5_vl import QwenCheckpoint, load_qwen, save_qwen
from gotr1_jax.errors import InputError
from gotr1_jax.images.qwen import Geometry, read_image
from gotr1_jax.models.config import DecoderConfig
from gotr1_jax.models.qwen2_5_vl import Qwen2_5_VL
from gotr1_jax.models.qwen_config import QwenConfig, QwenVisionConfig
from gotr1_jax.rewards.multimodal.instructions import LOCATE, SCORE_PREFIX, ask_score, show_caption
from gotr1_jax.tokenizers.qwen import ImageTokens
from gotr1_jax.vlm_engine.base import Question, Scale, make_image_input
from gotr1_jax.vlm_engine.config import QwenEngineConfig
from gotr1_jax.vlm_engine.engine import QwenEngine
from gotr1_jax.vlm_engine.packing import PrefixGroup, QuestionTokens

ANSWER_TOKENS = 32
QUESTIONS_OF_A_IMAGE = 4
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
    """What came out.

    Attributes:
      questions: of one turn.
      seconds: of each way, every turn, the ways in the order in which they were run.
      same_answers: share of answers that are word for word those of transformers; None without.
    """

    questions: int
    seconds: dict[str, list[float]]
    same_answers: float | None

    def lines(self) -> list[str]:
        """A table; ratios are of times of one turn."""
        images = self.questions // QUESTIONS_OF_A_IMAGE
        lines = [
            f"judge: {self.questions} questions, {images} pictures",
            f"{'':42}{'questions/s':>12}  times as fast (spread)",
        ]
        base = self.seconds.get(AGAINST)
        for name, times in self.seconds.items():
            line = f"{name:42}{self.questions / statistics.median(times):12.3g}"
            if base is not None:
                ratios = [b / t for b, t in zip(base, times)]
                spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
                line += f"  {statistics.median(ratios):.2f} {spread}"
            lines.append(line)
        if self.same_answers is not None:
            lines.append(f"{100 * self.same_answers:.1f} % of the answers are the same")
        return lines


class _NoPrefixes(QwenEngine):
    """An engine in which questions share their instruction and no more."""

    def share_prefixes(self, rows: Sequence[QuestionTokens], tail: int = 1) -> list[PrefixGroup]:
        return [PrefixGroup(0, tuple(range(len(rows))))] if rows else []


class _NothingShared(_NoPrefixes):
    """An engine in which questions share the system's turn and no more."""

    def shared_text(self, question: Question) -> str:
        return ""


def bench_judge(
    against: str | None = None, *, repeats: int = 1, images: int = 32
) -> JudgeBench:  # fmt: skip
    """Time every way turn by turn. The first turn of ours is not counted: programs compile in it.

    Preprocessing of images is in our times and not in theirs.
    """
    if against not in (None, AGAINST):
        raise InputError(f"--against {against}: the only known one is {AGAINST}")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = _checkpoint(Path(folder))
        questions = make_questions(images)
        ways: dict[str, Callable[[], Any]] = {}
        said: dict[str, list[str]] = {}
        if against is not None:
            theirs = _their_batches(checkpoint, questions)
            ways[AGAINST] = lambda: said.__setitem__(AGAINST, theirs())
    config = QwenEngineConfig("bench", "float32", max_pixels=SIDE * SIDE)
    engine, no_prefixes, nothing_shared = (
        kind(checkpoint, config) for kind in (QwenEngine, _NoPrefixes, _NothingShared)
    )
    each_its_own = [
        replace(q, images=tuple(replace(p, key=f"{p.key} {i}") for p in q.images))
        for i, q in enumerate(questions)
    ]
    ours = {
        "batches, nothing shared": lambda: nothing_shared.answer(each_its_own),
        "+ each picture encoded once": lambda: nothing_shared.answer(questions),
        "+ the instruction read once": lambda: no_prefixes.answer(questions),
        "+ picture and caption read once": lambda: said.__setitem__(
            "ours", [a.text for a in engine.answer(questions)]
        ),
        "+ expected score instead of words": lambda: engine.expected_scores(questions),
    }
    for name, run in ours.items():
        _timed(f"{name}, warm-up", run)
    ways |= ours
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats):
        for name, run in ways.items():
            seconds[name].append(_timed(f"{name}, turn {turn + 1} of {repeats}", run))
    same = None
    if against is not None:
        same = float(np.mean([a == b for a, b in zip(said["ours"], said[AGAINST])]))
    return JudgeBench(len(questions), seconds, same)


def make_questions(images: int) -> list[Question]:
    """Four questions for a score about each of some random images with captions."""
    rng, ask = np.random.default_rng(0), LOCATE + ask_score()
    questions = []
    for n in range(images):
        image = make_image_input(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
        words = [f"thing {rng.integers(1000)} left of" for _ in range(1 + n % 4)]
        caption = show_caption(f"a photo of {' '.join(words)} a cat")
        for aspect in _ASPECTS[:QUESTIONS_OF_A_IMAGE]:
            text, scale = f"{caption}Look at {aspect}.\n", Scale(0, 10, SCORE_PREFIX)
            questions.append(Question("score", (image,), ask, text, ANSWER_TOKENS, scale))
    return questions


def _timed(name: str, run: Callable[[], Any]) -> float:
    start, busy = time.perf_counter(), time.process_time()
    run()
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    line = f"judge: {name}: {seconds:.1f} s, {busy:.1f} s of processors"
    print(line, file=sys.stderr, flush=True)
    return seconds


def _checkpoint(folder: Path) -> QwenCheckpoint:
    """The random model, written and read again."""
    files = folder / "files"
    files.mkdir()
    _tokenizer().save(str(files / "tokenizer.json"))
    (files / "preprocessor_config.json").write_text(
        '{"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "merge_size": 2, '
        '"temporal_patch_size": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.3, 0.3, 0.3]}',
        encoding="utf-8",
    )
    state = nnx.split(Qwen2_5_VL(MODEL, rngs=nnx.Rngs(0)))[1]
    save_qwen(folder / "model", MODEL, state, files, "float32")
    return load_qwen(folder / "model", jnp.float32)


def _tokenizer() -> Tokenizer:
    """About as many tokens as a trained vocabulary gives: words, signs, single digits."""
    split = pre_tokenizers.Split(Regex(r"\s?[^\W\d]+|\d|\s?[^\w\s]+|\s"), "isolated")
    texts = [text for q in make_questions(4) for text in (q.instruction, q.text)]
    texts += [SCORE_PREFIX, "system\nYou are a helpful assistant.", "user\n", "assistant\n"]
    words = {word for text in texts for word, _ in split.pre_tokenize_str(text)}
    words |= set("0123456789")
    vocab = {word: i for i, word in enumerate(["<unk>", *sorted(words)])}
    # The other rows of the embedding have names too, so that answers can be told apart.
    vocab |= {f"w{i}": i for i in range(len(vocab), MODEL.text.vocab_size - len(_SPECIALS))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    tokenizer.add_special_tokens(list(_SPECIALS))
    return tokenizer


def _their_batches(
    checkpoint: QwenCheckpoint, questions: Sequence[Question]
) -> Callable[[], list[str]]:
    """`transformers`' generate over batches padded on the left; its inputs are made beforehand."""
    try:
        import torch
        from transformers import Qwen2_5_VLForConditionalGeneration
    except ImportError as error:
        raise InputError(
            f"the comparison needs {error.name}; install the extra: pip install gotr1_jax[convert]"
        ) from error
    loader: Any = Qwen2_5_VLForConditionalGeneration
    model = loader.from_pretrained(checkpoint.source, dtype="float32").eval()
    ids = checkpoint.tokenizer.ids
    batches = [
        _their_inputs(checkpoint, questions[start : start + THEIR_BATCH])
        for start in range(0, len(questions), THEIR_BATCH)
    ]

    def run() -> list[str]:
        said = []
        for inputs in batches:
            with torch.no_grad():
                out = model.generate(
                    **inputs, do_sample=False, max_new_tokens=ANSWER_TOKENS,
                    eos_token_id=[ids.message_end, ids.text_end], pad_token_id=ids.text_end,
                )  # fmt: skip
            new = out[:, inputs["input_ids"].shape[1] :].tolist()
            said += [checkpoint.tokenizer.decode(row) for row in new]
        return said

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
