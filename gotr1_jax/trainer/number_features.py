"""Initial embeddings of number tokens, so that near numbers begin near.

Where every coordinate is one token, a random table makes 17 and 18 as unlike as any two words, and
each number has to be learned alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

# Wavelengths from twice the range to two pixels of a 128 pixel image. Their ratio, 1.55, is no
# whole number: octaves would meet again every 1000, and 0 and 999 begin alike.
_WAVELENGTHS = np.geomspace(2000.0, 16.0, 12)


def number_features(values_N: np.ndarray, size: int, key: jax.Array) -> jax.Array:
    """Smooth features of numbers: float32 (N, size), every row of norm 1.

    Sines and cosines of the value at several wavelengths, turned into random directions of the
    model width. Rows of values a few apart are alike, those of values far apart are not.
    """
    angle = jnp.asarray(values_N, jnp.float32)[:, None] * (2 * np.pi / _WAVELENGTHS)
    waves_NF = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)
    rows = waves_NF @ jax.random.normal(key, (waves_NF.shape[1], size), jnp.float32)
    return rows / jnp.linalg.norm(rows, axis=1, keepdims=True)


def with_number_features(
    table_VD: jax.Array, number_ids: Mapping[int, int], key: jax.Array
) -> jax.Array:
    """The table with `number_features` in the rows of number tokens (their ids by their values).

    Their norm is the root mean square norm of the table's rows; no other row changes.
    """
    if not number_ids:
        return table_VD
    rows = number_features(np.asarray(list(number_ids)), table_VD.shape[1], key)
    norm = jnp.sqrt(jnp.mean(jnp.sum(jnp.square(table_VD.astype(jnp.float32)), axis=1)))
    ids = np.asarray(list(number_ids.values()))
    return table_VD.at[ids].set((norm * rows).astype(table_VD.dtype))
