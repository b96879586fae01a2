"""Micro-batches of rows of like length, each padded only as far as its longest row needs.

A program has one branch for each of a few lengths; which one a micro-batch takes is decided on the
devices. Results are the same but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from gotr1_jax.decoding.config import LogpConfig
from gotr1_jax.models.janus import JanusPolicy
from gotr1_jax.parallel.sharding import constrain_rows
from gotr1_jax.sampler.token_batch import TokenBatch
from gotr1_jax.tokenizers.janus import SpecialIds
from gotr1_jax.trainer.logprobs import TokenLogps, token_logps

Tree = TypeVar("Tree")


def context_lengths(longest: int, buckets: int) -> tuple[int, ...]:
    """The lengths that prompt and plan are padded to: `buckets` of equal steps, ascending, from a
    quarter of the longest (which few rows are below) to the longest."""
    quarters = [buckets + 3 * i for i in range(1, buckets + 1)]
    return tuple(sorted({-(-longest * n // (4 * buckets)) for n in quarters}))


def length_order(rows: TokenBatch, parts: int) -> jax.Array:
    """An order of rows (B,) in which `split_micro_batches` into `parts` puts those of like length
    together, the shortest first."""
    return jnp.argsort(rows.context_len_B).reshape(parts, -1).T.reshape(-1)


def reorder(tree: Tree, order_B: jax.Array) -> Tree:
    """The arrays (B, ...) of a tree in another order of rows, sharded by rows as before."""
    return jax.tree.map(lambda x: constrain_rows(x[order_B]), tree)


def at_length(
    run: Callable[[int, Any], Any], rows: TokenBatch, lengths: tuple[int, ...], operand: Any
) -> Any:
    """`run(length, operand)` with the smallest length that holds every prompt with its plan."""
    bucket = (rows.context_len_B.max() > jnp.asarray(lengths[:-1], jnp.int32)).sum()
    return jax.lax.switch(bucket, [partial(run, length) for length in lengths], operand)


def token_logps_at(
    length: int, policy: JanusPolicy, rows: TokenBatch, specials: SpecialIds, settings: LogpConfig
) -> TokenLogps:
    """`token_logps` of rows whose prompts and plans have at most `length` tokens together."""
    cut = rows.cut(length)
    logps = token_logps(policy, cut, specials, settings)
    padding = rows.plan_ids_BT.shape[1] - cut.plan_ids_BT.shape[1]
    if not padding:
        return logps
    # At padding plan tokens, log-probability and entropy are 0.
    U = rows.image_ids_BU.shape[1]

    def widen(x_BN: jax.Array) -> jax.Array:
        plan, image = x_BN[:, :-U], x_BN[:, -U:]
        return jnp.concatenate([jnp.pad(plan, ((0, 0), (0, padding))), image], axis=1)

    return jax.tree.map(widen, logps)
