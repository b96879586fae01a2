"""A loaded checkpoint that answers questions about images, some at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from gotr1_jax.convert.checkpoint import load_checkpoint
from gotr1_jax.data.pipeline import pad_rows
from gotr1_jax.images import preprocess, read_settings
from gotr1_jax.sampler.answer import AnswerConfig, AnswerSampler
from gotr1_jax.sampler.sampler import row_keys
from gotr1_jax.sampler.token_batch import PromptBatch

_PROMPT_MULTIPLE = 16  # prompts are padded to a multiple of this; every length compiles anew


@dataclass(frozen=True)
class GeneratedAnswer:
    """An answer: its text without special tokens, its ids (EOS included where it came), and
    whether it ended by itself."""

    text: str
    ids: tuple[int, ...]
    ended: bool


class ImageQuestioner:
    """The understanding side of the checkpoint in `source`; the weights lie on one device.

    Args:
      source: checkpoint directory.
      how: how answers are drawn.
      dtype: "float32" or "bfloat16", of weights and activations.
      system: text in front of each conversation.
    """

    def __init__(self, source: Path, how: AnswerConfig, dtype: str, system: str = "") -> None:
        parts = ("policy", "understanding")
        checkpoint = load_checkpoint(source, parts=parts, dtype=jnp.dtype(dtype))
        self._settings = read_settings(source, checkpoint.config.siglip.image_size)
        self._tokenizer, self._system = checkpoint.tokenizer, system
        self._tokens = checkpoint.config.siglip.num_tokens
        policy, state = nnx.split(checkpoint.policy_module(checkpoint.dtype))
        tower, self._tower = nnx.split(checkpoint.understanding_module())
        specials = self._tokenizer.specials
        self._answerer = AnswerSampler(policy, tower, checkpoint.config, specials, how)
        self._params = self._answerer.prepare(state)

    def prompt_ids(self, question: str, images: int = 1) -> list[int]:
        """Ids of a question about so many images; InputError for one that cannot be asked."""
        return self._tokenizer.encode_question(question, images, self._tokens, self._system)

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        images: Sequence[Image.Image],
        width: int = 0,
        seed: int = 0,
    ) -> list[GeneratedAnswer]:
        """Answers to prompts (of `prompt_ids`), all at once.

        Args:
          prompts: one or more.
          images: RGB, those of all prompts in the order of their placeholders.
          width: tokens of the longest prompt there will be; batches of one width share a program.
          seed: of the draws at a temperature above 0.
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
        return [self._said(row[:length].tolist(), bool(ended)) for row, length, ended in rows]

    def _said(self, ids: list[int], ended: bool) -> GeneratedAnswer:
        return GeneratedAnswer(self._tokenizer.decode(ids).strip(), tuple(ids), ended)
