"""The least bytes that the sampler's loops read: weights, and the filled part of every cache."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from gotr1_jax.models.config import DecoderConfig


def tree_bytes(tree: Any) -> int:
    """Bytes of the arrays or shapes of a tree."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


@dataclass(frozen=True)
class LoopCost:
    """The least bytes that a loop reads, and its steps."""

    steps: int
    bytes: int


def slot_bytes(decoder: DecoderConfig, itemsize: int) -> int:
    """Bytes of the keys and values of one token in all layers."""
    return 2 * decoder.num_layers * decoder.num_kv_heads * decoder.head_dim * itemsize


def plan_cost(
    weights: int, slot: int, captions: int, rows: int, prompt: int, steps: int
) -> LoopCost:
    """Of a plan loop: each step reads the weights, each caption's prompt once, and the filled part
    of each row's cache; all sizes in bytes or tokens."""
    filled = rows * steps * (steps + 1) // 2
    return LoopCost(steps, steps * (weights + captions * prompt * slot) + filled * slot)


def image_cost(
    weights: int, slot: int, captions: int, rows: int, prompt: int, plans: np.ndarray,
    tokens: int, guided: bool,
) -> LoopCost:  # fmt: skip
    """Of an image loop: weights, prompts, plans (tokens of each row), the unconditional prefix once
    for all rows, and the filled part of the cache of each branch."""
    context = captions * prompt + int(plans.sum())
    if guided:
        context += prompt + int(plans.max())
    filled = (2 if guided else 1) * rows * tokens * (tokens + 1) // 2
    return LoopCost(tokens, tokens * (weights + context * slot) + filled * slot)
