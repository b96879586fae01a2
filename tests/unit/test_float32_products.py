"""Logits, scores and sums over values are accumulated and returned in float32.

The operands are bfloat16. Rounding a product to bfloat16 would be an error of 1 / 512 of its value;
the oracle is the float64 product of the same operands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import SHAPES

from gotr1_jax.decoding.forward import project, text_logits
from gotr1_jax.decoding.guidance import join_branches
from gotr1_jax.decoding.kv_cache import KVCache
from gotr1_jax.models.janus import JanusPolicy
from gotr1_jax.models.layers import float32_product
from gotr1_jax.sampler.image_loop import image_logits
from gotr1_jax.sampler.policy_weights import policy_weights
from gotr1_jax.trainer.logprobs import guided_image_logits


def draw(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)


def exact(subscripts: str, *operands: jax.Array) -> np.ndarray:
    return np.einsum(subscripts, *(np.asarray(x, np.float64) for x in operands))


def assert_not_rounded(ours: jax.Array, oracle: np.ndarray) -> None:
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(ours), oracle, rtol=1e-5, atol=1e-4)


@pytest.fixture(scope="module")
def policy() -> JanusPolicy:
    return JanusPolicy(SHAPES, rngs=nnx.Rngs(0), dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)


@pytest.mark.parametrize("tied", [False, True])
def test_text_logits_of_trainer_and_sampler(policy: JanusPolicy, tied: bool) -> None:
    decoder = nnx.clone(policy.decoder)
    hidden = draw(3, 5, decoder.cfg.hidden_size)
    assert decoder.lm_head is not None
    table = decoder.lm_head.kernel[...].T
    if tied:
        decoder.embed.table[...], decoder.lm_head = table, nnx.data(None)
    oracle = exact("bsd,vd->bsv", hidden, table)
    assert_not_rounded(jax.jit(decoder.logits)(hidden), oracle)
    params = policy_weights(policy, jnp.bfloat16)
    assert_not_rounded(jax.jit(text_logits)(params, hidden), oracle)


@pytest.mark.parametrize("weight", [1.0, 5.0])
def test_image_logits_of_trainer_and_sampler(policy: JanusPolicy, weight: float) -> None:
    cond, uncond = (draw(4, policy.cfg.decoder.hidden_size, seed=i) for i in (1, 2))
    params = policy_weights(policy, jnp.bfloat16)
    head = policy.gen_head
    if weight == 1.0:
        inner, ours = head.inner(cond), [policy.image_logits(cond)]
        ours += image_logits(params, cond, weight)
    else:
        wide = [head.inner(h).astype(jnp.float32) for h in (cond, uncond)]
        inner = (wide[1] + weight * (wide[0] - wide[1])).astype(jnp.bfloat16)
        ours = [guided_image_logits(policy, cond, uncond, weight)]
        ours += image_logits(params, join_branches(cond, uncond), weight)
    oracle = exact("bd,di->bi", inner, head.second.kernel[...])
    assert head.second.bias is not None
    for logits in ours:
        assert_not_rounded(logits, oracle + np.asarray(head.second.bias[...], np.float64))


def test_gradients_of_logits_are_those_of_the_plain_product() -> None:
    x, kernel, weights = draw(6, 16), draw(16, 40, seed=1), draw(6, 40, seed=2)

    def loss(product: Callable[[Any, Any], jax.Array]) -> Callable[[Any, Any], jax.Array]:
        return lambda x, kernel: (product(x, kernel) * weights.astype(jnp.float32)).sum()

    plain = jax.grad(loss(lambda x, kernel: (x @ kernel).astype(jnp.float32)), (0, 1))
    for ours, expected in zip(jax.grad(loss(float32_product), (0, 1))(x, kernel), plain(x, kernel)):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(expected))


@pytest.mark.parametrize("shared", [1, 3])
def test_attention_over_a_cache(shared: int) -> None:
    """Scores and sums over values, with one or several rows of queries for a row of the cache."""
    N, K, g, h, S = 2, 2, 3, 16, 40
    keys, values = draw(N, K, h, S, seed=1), draw(N, K, S, h, seed=2)
    q, weights = draw(N * shared, K, g, h, seed=3), draw(N * shared, K, g, S, seed=4)
    cache = KVCache((keys,), (values,))
    by_query = [jnp.repeat(x, shared, axis=0) for x in (keys, values)]
    scores = jax.jit(lambda cache, q: cache.scores(0, q))(cache, q)
    assert_not_rounded(scores, exact("bkgh,bkhs->bkgs", q, by_query[0]))
    sums = jax.jit(lambda cache, w: cache.values(0, w))(cache, weights)
    assert_not_rounded(sums, exact("bkgs,bksh->bkgh", weights, by_query[1]))


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_accelerators_multiply_bfloat16_operands(platform: str) -> None:
    """No operand is widened, as a CPU might need: that would read a cache or a head twice."""
    x, head = draw(4, 64), draw(40, 64)
    cache = KVCache((draw(4, 2, 16, 40),), (draw(4, 2, 40, 16),))

    def program(x: jax.Array, head: jax.Array, cache: KVCache) -> Any:
        scores = cache.scores(0, x[:, :32].reshape(4, 2, 1, 16))
        sums = cache.values(0, scores.astype(x.dtype))
        return scores, sums, project(x, head, dtype=jnp.float32), float32_product(x, head.T)

    traced = jax.jit(program).trace(x, head, cache)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 4
    for line in products:
        operands, result = line.rsplit("->", 1)
        assert operands.count("bf16>") == 2 and "f32>" in result, line
