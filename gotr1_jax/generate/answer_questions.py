"""A loaded checkpoint that answers questions about images, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from PIL import Image

from gotr1_jax.data.pipeline import pad_rows
from gotr1_jax.generate.runner import ModelRunner
from gotr1_jax.images import preprocess, read_settings
from gotr1_jax.sampler.config import AnswerConfig
from gotr1_jax.sampler.sampler import row_keys
from gotr1_jax.sampler.token_batch import PromptBatch

_PROMPT_MULTIPLE = 16  # prompts are padded to a multiple of this; every new length compiles


@dataclass(frozen=True)
class GeneratedAnswer:
    """An answer: text without special tokens, ids (EOS included), and whether it ended with EOS."""

    text: str
    ids: tuple[int, ...]
    ended: bool


class QuestionAnswerer:
    """Policy and vision tower of a checkpoint, one batch of questions after the other.

    Args:
      runner: the checkpoint.
      config: how answers are sampled.
      system: text before each conversation.
    """

    def __init__(self, runner: ModelRunner, config: AnswerConfig, system: str = "") -> None:
        siglip = runner.config.siglip
        self._settings = read_settings(runner.source, siglip.image_size)
        self._tokenizer, self._tokens, self._system = runner.tokenizer, siglip.num_tokens, system
        self._answerer, self._tower = runner.answerer(config), runner.understanding[1]
        self._params = runner.policy

    def prompt_ids(self, question: str, images: int = 1) -> list[int]:
        """Token ids of a question about some images; InputError for an empty or too long one."""
        return self._tokenizer.encode_question(question, images, self._tokens, self._system)

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        images: Sequence[Image.Image],
        width: int = 0,
        seed: int = 0,
    ) -> list[GeneratedAnswer]:
        """Answers to prompts made by `prompt_ids`, as one batch.

        Args:
          prompts: one or more.
          images: RGB, those of all prompts in the order of their placeholders.
          width: tokens of the longest prompt of all batches; equal widths compile once.
          seed: of sampling at a temperature above 0.
        """
        size = -(-max(width, *map(len, prompts)) // _PROMPT_MULTIPLE) * _PROMPT_MULTIPLE
        ids_PC, len_P = pad_rows(prompts, size, self._tokenizer.specials.pad)
        pixels = np.stack([preprocess(image, self._settings) for image in images])
        answers = self._answerer(
            self._params, self._tower, PromptBatch(jnp.asarray(ids_PC), jnp.asarray(len_P)),
            jnp.asarray(pixels), row_keys(seed, 0, jnp.arange(len(prompts)), 1),
        )  # fmt: skip
        rows = zip(
            np.asarray(answers.ids_PT), np.asarray(answers.len_P), np.asarray(answers.ended_P)
        )
        decoded = []
        for row, length, ended in rows:
            ids = row[:length].tolist()
            text = self._tokenizer.decode(ids).strip()
            decoded.append(GeneratedAnswer(text, tuple(ids), bool(ended)))
        return decoded
