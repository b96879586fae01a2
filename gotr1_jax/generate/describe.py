"""Questions about images, answered by the policy's understanding side: `gotr1 describe`."""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gotr1_jax.errors import InputError
from gotr1_jax.images import open_image
from gotr1_jax.tokenizers.janus import chat_parts

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DescribeConfig:
    """What to ask about which images.

    Attributes:
      images: image files, shown in this order; one or more.
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
            raise InputError("there is no image to ask about; give one or more")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}; give 0 or more, less than 2**32")


@dataclass(frozen=True)
class ImageAnswer:
    """What the policy said.

    Attributes:
      text: the answer without special tokens.
      ids: its tokens, EOS included where it came.
      ended: False if it was cut at `max_tokens`.
      prompt: the chat text, images as their placeholder.
      prompt_tokens: tokens of the prompt, those of the images included.
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
        help="image; more than one are shown in the order given",
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


def describe(config: DescribeConfig) -> ImageAnswer:
    """Asks the checkpoint about the images.

    Raises InputError for bad input: an unreadable image, an empty question, no checkpoint.
    """
    prompt = "".join(
        text for text, _ in chat_parts(config.question, len(config.images), config.system)
    )
    raw_images = [open_image(path) for path in config.images]
    # Imported late: bad input is answered without waiting for jax.
    from gotr1_jax.convert.find import find_checkpoint
    from gotr1_jax.generate.asking import ImageQuestioner
    from gotr1_jax.parallel.startup import default_dtype
    from gotr1_jax.sampler.answer import AnswerConfig

    how = AnswerConfig(config.max_tokens, config.temperature)
    source = find_checkpoint(config.ckpt)
    asker = ImageQuestioner(source, how, config.dtype or default_dtype(), config.system)
    ids = asker.prompt_ids(config.question, len(raw_images))
    said = asker([ids], raw_images, seed=config.seed)[0]
    return ImageAnswer(said.text, said.ids, said.ended, prompt, len(ids))


def _result(config: DescribeConfig, answer: ImageAnswer) -> dict[str, Any]:
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
