"""Blockwise causal attention against that of jax.nn."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gotr1_jax.models.attention import blockwise_causal_attention
from gotr1_jax.models.decoder import causal_attention


def reference(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def values_and_gradients(attend: Any, *arrays: jax.Array) -> Any:
    def loss(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = attend(*arrays).astype(jnp.float32)
        return (out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum(), out

    return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*arrays)


@pytest.mark.parametrize(
    "size, heads, kv_heads, dtype, near",
    [
        (1, 2, 2, "float32", 1e-5),
        (64, 2, 2, "float32", 1e-5),
        (131, 4, 2, "float32", 1e-5),  # three blocks of unlike sizes, shared keys
        (530, 2, 1, "float32", 1e-5),  # more than the most blocks
        (131, 4, 2, "bfloat16", 3e-2),
    ],
)
def test_is_the_attention_of_jax(
    size: int, heads: int, kv_heads: int, dtype: str, near: float
) -> None:
    draw = np.random.default_rng(0).standard_normal
    q, k, v = (jnp.asarray(3 * draw((2, size, h, 8)), dtype) for h in (heads, kv_heads, kv_heads))
    found = values_and_gradients(blockwise_causal_attention, q, k, v)
    expected = values_and_gradients(reference, q, k, v)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        scale = float(jnp.abs(b.astype(jnp.float32)).max())
        np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), atol=near * scale
        )


def test_scores_of_any_size_are_finite() -> None:
    """Scores far below the largest, and all equal to a very negative one."""
    q = jnp.full((1, 70, 1, 2), 100.0)
    k = jnp.where(jnp.arange(70)[None, :, None, None] == 3, 100.0, -100.0) * jnp.ones((1, 70, 1, 2))
    out, grads = values_and_gradients(blockwise_causal_attention, q, k, k)[::-1]
    out = np.asarray(out)
    np.testing.assert_array_equal(out[0, :3], -100.0)
    np.testing.assert_array_equal(out[0, 3:], 100.0)
    assert all(np.isfinite(g).all() for g in grads)


def test_a_program_for_cpus_takes_it() -> None:
    q = jnp.zeros((2, 130, 2, 4))
    text = jax.jit(causal_attention).lower(q, q, q).as_text()
    assert text.count("stablehlo.dot_general") == 2 * 3  # three blocks
