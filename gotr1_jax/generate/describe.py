"""Questions about images, answered by the policy's understanding side: `gotr1 describe`."""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gotr1_jax.config import CheckedConfig
from gotr1_jax.errors import InputError
from gotr1_jax.generate.options import add_dtype_option
from gotr1_jax.images import open_image
from gotr1_jax.limits import FilledText, Seed, TemperatureOrGreedy, TokenCount
from gotr1_jax.sampler.config import AnswerConfig
from gotr1_jax.tokenizers.janus import chat_parts

if TYPE_CHECKING:
    from gotr1_jax.generate.answer_questions import GeneratedAnswer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DescribeConfig(CheckedConfig):
    """A question about images.

    Attributes:
      images: one or more image files, in the order of the prompt.
      question: the question.
      ckpt: a checkpoint or a finished run; None is the embedded checkpoint.
      max_tokens: longest answer; a longer one is cut.
      temperature: 0: always the most likely token.
      seed: of sampling at a temperature above 0.
      dtype: "float32", "bfloat16", or None: bfloat16 on accelerators, float32 on a CPU.
      system: text before the conversation; Janus's demo has one, GoT-R1 has none.
    """

    images: tuple[Path, ...]
    question: str
    ckpt: FilledText | None = None
    max_tokens: TokenCount = 512
    temperature: TemperatureOrGreedy = 0.0
    seed: Seed = 0
    dtype: Literal["float32", "bfloat16"] | None = None
    system: str = ""

    def check(self) -> None:
        """At least one image."""
        if not self.images:
            raise InputError("there is no image to ask about; give one or more")

    @property
    def sampling(self) -> AnswerConfig:
        """How the answer is sampled."""
        return AnswerConfig(self.max_tokens, self.temperature)


@dataclass(frozen=True)
class DescribeResult:
    """The answer and its prompt.

    Attributes:
      answer: of the policy.
      prompt: the chat text, with a placeholder for each image.
      prompt_tokens: tokens of the prompt, those of the images included.
    """

    answer: GeneratedAnswer
    prompt: str
    prompt_tokens: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gotr1 describe`."""
    parser.add_argument(
        "--ckpt", metavar="DIR_OR_ID", help="checkpoint or finished run (the embedded one)"
    )
    parser.add_argument(
        "--image", type=Path, action="append", required=True, metavar="FILE",
        help="image; may be given more than once, the order counts",
    )  # fmt: skip
    parser.add_argument("--question", required=True, metavar="TEXT", help="what to ask")
    parser.add_argument("--system", default="", metavar="TEXT", help="line before the question")
    parser.add_argument(
        "--max-tokens", type=int, default=512, metavar="T", help="longest answer (512)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T",
        help="0, the default: always the most likely token",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, help="of sampling at a temperature above 0 (0)"
    )
    add_dtype_option(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON object, with token ids")


def run(args: argparse.Namespace) -> None:
    """Run the command with parsed options."""
    values = vars(args) | {"images": tuple(args.image)}
    config = DescribeConfig(**{field.name: values[field.name] for field in fields(DescribeConfig)})
    result = describe(config)
    answer = result.answer
    if not answer.ended:
        _log.warning("the answer was cut at %d tokens; see --max-tokens", config.max_tokens)
    if not args.json:
        print(answer.text)
        return
    printed = {
        "images": [str(path) for path in config.images],
        "question": config.question,
        "prompt": result.prompt,
        "prompt_tokens": result.prompt_tokens,
        "answer": answer.text,
        "answer_ids": list(answer.ids),
        "ended": answer.ended,
    }
    print(json.dumps(printed, ensure_ascii=False))


def describe(config: DescribeConfig) -> DescribeResult:
    """Asks the checkpoint about the images.

    Raises InputError for bad input: an unreadable image, an empty question, no checkpoint.
    """
    prompt = "".join(
        text for text, _ in chat_parts(config.question, len(config.images), config.system)
    )
    images = [open_image(path) for path in config.images]
    # Imported late: bad input is answered without waiting for jax.
    import jax

    from gotr1_jax.convert.find import find_checkpoint
    from gotr1_jax.generate.answer_questions import QuestionAnswerer
    from gotr1_jax.generate.runner import ModelRunner
    from gotr1_jax.parallel.startup import default_dtype

    source = find_checkpoint(config.ckpt)
    runner = ModelRunner(source, config.dtype or default_dtype(), jax.devices()[:1])
    answerer = QuestionAnswerer(runner, config.sampling, config.system)
    ids = answerer.prompt_ids(config.question, len(images))
    (answer,) = answerer([ids], images, seed=config.seed)
    return DescribeResult(answer, prompt, len(ids))
