"""Questions about pictures, answered by the policy's understanding side: `gotr1 describe`."""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gotr1_jax.errors import InputError
from gotr1_jax.pictures import open_picture, preprocess, read_settings
from gotr1_jax.text import chat_parts

_PROMPT_MULTIPLE = 16  # prompts are padded to a multiple of this; every length compiles anew
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DescribeConfig:
    """What to ask about which pictures.

    Attributes:
      images: picture files, shown in this order; one or more.
      question: the question.
      ckpt: a checkpoint or a finished run; None is the embedded checkpoint.
      max_tokens: longest answer; a longer one is cut.
      temperature: 0 takes the most likely token always.
      seed: of the draws at a temperature above 0.
      dtype: "float32", "bfloat16", or None: bfloat16 on accelerators, float32 on a CPU.
      system: text in front of the conversation; Janus's own demo has one, GoT-R1 has none.
    """

    images: tuple[Path, ...]
    question: str
    ckpt: str | None = None
    max_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0
    dtype: str | None = None
    system: str = ""

    def __post_init__(self) -> None:
        if not self.images:
            raise InputError("there is no picture to ask about; give one or more")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}; give 0 or more, less than 2**32")


@dataclass(frozen=True)
class Answer:
    """What the policy said.

    Attributes:
      text: the answer without special tokens.
      ids: its tokens, EOS included where it came.
      ended: False if it was cut at `max_tokens`.
      prompt: the chat text, pictures as their placeholder.
      prompt_tokens: tokens of the prompt, those of the pictures included.
    """

    text: str
    ids: tuple[int, ...]
    ended: bool
    prompt: str
    prompt_tokens: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gotr1 describe`."""
    parser.add_argument(
        "--ckpt", metavar="DIR_OR_ID", help="checkpoint or finished run (the embedded one)"
    )
    parser.add_argument(
        "--image", type=Path, action="append", required=True, metavar="FILE",
        help="picture; more than one are shown in the order given",
    )  # fmt: skip
    parser.add_argument("--question", required=True, metavar="TEXT", help="what to ask")
    parser.add_argument("--system", default="", metavar="TEXT", help="line before the question")
    parser.add_argument(
        "--max-tokens", type=int, default=512, metavar="T", help="longest answer (512)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T",
        help="0, the default, takes the most likely token always",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of draws at a temperature (0)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"),
        help="of weights and activations; default: bfloat16, on a CPU float32",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print a JSON object, with token ids")


def run(args: argparse.Namespace) -> None:
    """Does what the parsed command line says."""
    config = DescribeConfig(
        images=tuple(args.image),
        question=args.question,
        ckpt=args.ckpt,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        seed=args.seed,
        dtype=args.dtype,
        system=args.system,
    )
    answer = describe(config)
    if not answer.ended:
        _log.warning("the answer was cut at %d tokens; see --max-tokens", config.max_tokens)
    print(json.dumps(_result(config, answer), ensure_ascii=False) if args.json else answer.text)


def describe(config: DescribeConfig) -> Answer:
    """Asks the checkpoint about the pictures.

    Raises InputError for bad input: an unreadable picture, an empty question, no checkpoint.
    """
    prompt = "".join(
        text for text, _ in chat_parts(config.question, len(config.images), config.system)
    )
    pictures = [open_picture(path) for path in config.images]
    # Imported late: bad input is answered without waiting for jax.
    import jax.numpy as jnp

    from gotr1_jax.convert.checkpoint import find_checkpoint, load_checkpoint
    from gotr1_jax.parallel.startup import default_dtype
    from gotr1_jax.sampling.answer import AnswerConfig, tokens_per_picture
    from gotr1_jax.text import TextTokenizer

    how = AnswerConfig(config.max_tokens, config.temperature)
    source = find_checkpoint(config.ckpt)
    dtype = jnp.dtype(config.dtype or default_dtype())
    checkpoint = load_checkpoint(source, parts=("policy", "understanding"), dtype=dtype)
    pixels = _pixels(pictures, source, checkpoint.config.siglip.image_size)
    tokenizer: TextTokenizer = checkpoint.tokenizer
    ids = tokenizer.encode_question(
        config.question, len(pictures), tokens_per_picture(checkpoint.config), config.system
    )
    answer_ids, ended = _answer(checkpoint, how, ids, pixels, config.seed)
    return Answer(tokenizer.decode(answer_ids).strip(), tuple(answer_ids), ended, prompt, len(ids))


def _pixels(pictures: list[Image.Image], source: Path, size: int) -> np.ndarray:
    """The tower's input, float32 (N, size, size, 3)."""
    settings = read_settings(source, size)
    return np.stack([preprocess(picture, settings) for picture in pictures])


def _answer(
    checkpoint: Any, how: Any, prompt_ids: list[int], pixels: np.ndarray, seed: int
) -> tuple[list[int], bool]:
    """Tokens of the answer, and whether it came to its end."""
    import jax.numpy as jnp
    from flax import nnx

    from gotr1_jax.data.pipeline import pad_rows
    from gotr1_jax.sampling.answer import Answerer
    from gotr1_jax.sampling.rows import PromptBatch
    from gotr1_jax.sampling.sampler import row_keys

    size = -(-len(prompt_ids) // _PROMPT_MULTIPLE) * _PROMPT_MULTIPLE
    specials = checkpoint.tokenizer.specials
    padded, lengths = pad_rows([prompt_ids], size, specials.pad)
    prompts = PromptBatch(jnp.asarray(padded), jnp.asarray(lengths))
    policy, policy_state = nnx.split(checkpoint.policy_module(checkpoint.dtype))
    tower, tower_state = nnx.split(checkpoint.understanding_module())
    answerer = Answerer(policy, tower, checkpoint.config, specials, how)
    params = answerer.prepare(policy_state)
    keys = row_keys(seed, 0, jnp.zeros((1,), jnp.int32), 1)
    answers = answerer(params, tower_state, prompts, jnp.asarray(pixels), keys)
    length = int(answers.len_P[0])
    return np.asarray(answers.ids_PT[0, :length]).tolist(), bool(answers.ended_P[0])


def _result(config: DescribeConfig, answer: Answer) -> dict[str, Any]:
    """What --json prints."""
    return {
        "images": [str(path) for path in config.images],
        "question": config.question,
        "prompt": answer.prompt,
        "prompt_tokens": answer.prompt_tokens,
        "answer": answer.text,
        "answer_ids": list(answer.ids),
        "ended": answer.ended,
    }
