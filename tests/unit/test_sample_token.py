"""One token per row, against jax.random.categorical and argmax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from gotr1_jax.decoding.config import TokenSamplingConfig
from gotr1_jax.decoding.sample_token import first_largest, sample_token, top_k_top_p_filter

KEYS = jax.random.split(jax.random.key(3), 64)
LOGITS = 2 * jax.random.normal(jax.random.key(1), (64, 37))


def test_tokens_are_those_of_categorical() -> None:
    at = jnp.arange(64, dtype=jnp.int32)
    folded = jax.vmap(jax.random.fold_in)(KEYS, at)
    for config in (TokenSamplingConfig(), TokenSamplingConfig(top_k=3, top_p=0.9)):
        ids, logp = jax.jit(lambda *args, c=config: sample_token(*args, c))(LOGITS, KEYS, at)
        want = jax.vmap(jax.random.categorical)(folded, top_k_top_p_filter(LOGITS, config))
        np.testing.assert_array_equal(ids, want)
        whole = jax.nn.log_softmax(LOGITS)
        np.testing.assert_allclose(logp, whole[jnp.arange(64), ids], atol=1e-5)
    assert len(set(np.asarray(ids).tolist())) > 5


def test_the_first_of_the_largest() -> None:
    x = jnp.asarray([[0.0, 2, 2, 1], [-jnp.inf, -jnp.inf, -3, -jnp.inf], [-jnp.inf] * 4])
    np.testing.assert_array_equal(first_largest(x), [1, 2, 0])
    np.testing.assert_array_equal(first_largest(x), jnp.argmax(x, axis=-1))
    # No index outside of the row, whatever the logits.
    assert first_largest(jnp.full((1, 4), jnp.nan)).tolist() == [3]
