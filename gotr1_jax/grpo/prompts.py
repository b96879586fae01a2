"""The captions of a job, with the token ids of their prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np

from gotr1_jax.data.pipeline import pad_rows
from gotr1_jax.sampler.token_batch import PromptBatch
from gotr1_jax.tokenizers.janus import TextTokenizer

PROMPT_MULTIPLE = 16


@dataclass(frozen=True)
class Prompt:
    """A caption, its place in the list of all captions, and the token ids of its prompt."""

    index: int
    caption: str
    ids: tuple[int, ...]  # BOS first


@dataclass(frozen=True)
class Prompts:
    """Prompts that are padded on the right to one width, with the pad token."""

    prompts: tuple[Prompt, ...]
    width: int
    pad: int

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def captions(self) -> tuple[str, ...]:
        return tuple(prompt.caption for prompt in self.prompts)

    def texts(self) -> Iterator[str]:
        """Caption and ids of each prompt, to compare between processes."""
        return (f"{prompt.caption}\0{list(prompt.ids)}" for prompt in self.prompts)

    def take(self, places: Sequence[int] | np.ndarray) -> Prompts:
        """The prompts at some places, with the width of all."""
        return replace(self, prompts=tuple(self.prompts[i] for i in places))

    def batch(self) -> PromptBatch:
        """The prompts as padded arrays."""
        ids_PC, len_P = pad_rows([list(p.ids) for p in self.prompts], self.width, self.pad)
        return PromptBatch(jnp.asarray(ids_PC), jnp.asarray(len_P))


def encode_captions(
    captions: Sequence[str], tokenizer: TextTokenizer, template: str, limit: int
) -> Prompts:
    """Encode every caption; InputError names the first that is empty or too long."""
    prompts = tuple(
        Prompt(index, caption, tuple(tokenizer.encode_prompt(caption, template, limit)))
        for index, caption in enumerate(captions)
    )
    longest = max(len(prompt.ids) for prompt in prompts)
    width = -(-longest // PROMPT_MULTIPLE) * PROMPT_MULTIPLE
    return Prompts(prompts, width, tokenizer.specials.pad)
