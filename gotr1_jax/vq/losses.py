"""Losses and code usage of a vector-quantized image tokenizer; pure functions.

Sources: van den Oord et al. 2017 (arXiv 1711.00937), equation 3; Esser et al. 2021 (arXiv
2012.09841) for the entropy term's use in VQGANs; LlamaGen (arXiv 2406.06525) for the weights.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def codebook_loss(latents_NZ: jax.Array, nearest_NZ: jax.Array) -> jax.Array:
    """Mean squared distance that pulls the chosen codes towards the encodings, scalar."""
    return jnp.square(nearest_NZ - jax.lax.stop_gradient(latents_NZ)).mean()


def commitment_loss(latents_NZ: jax.Array, nearest_NZ: jax.Array) -> jax.Array:
    """Mean squared distance that pulls the encodings towards the chosen codes, scalar."""
    return jnp.square(latents_NZ - jax.lax.stop_gradient(nearest_NZ)).mean()


def pixel_losses(pixels_BHWC: jax.Array, target_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(mean absolute, mean squared) error of the pixels, scalars in the pixels' units."""
    error = pixels_BHWC.astype(jnp.float32) - target_BHWC.astype(jnp.float32)
    return jnp.abs(error).mean(), jnp.square(error).mean()


def psnr(mean_squared_error: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio in dB of pixels in [-1, 1] (peak to peak 2)."""
    return 10.0 * jnp.log10(4.0 / jnp.maximum(mean_squared_error, 1e-12))


def code_counts(ids: jax.Array, codebook_size: int) -> jax.Array:
    """Number of occurrences of each code in `ids` (any shape); float32 (codebook_size,)."""
    return jnp.zeros((codebook_size,), jnp.float32).at[ids.reshape(-1)].add(1.0)


def perplexity(counts_I: jax.Array) -> jax.Array:
    """exp of the entropy of the code frequencies: the effective number of codes, scalar."""
    p = counts_I / jnp.maximum(counts_I.sum(), 1.0)
    return jnp.exp(-jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0).sum())


def restart_unused(
    codebook_IZ: jax.Array,
    usage_I: jax.Array,
    latents_NZ: jax.Array,
    nearest_NZ: jax.Array,
    key: jax.Array,
    *,
    below: float,
    fresh: float,
) -> tuple[jax.Array, jax.Array]:
    """Replace unused codes by encodings that are far from their nearest code.

    A code with usage below `below` / I becomes an encoding of this batch. Encodings are sampled
    without replacement, with probability proportional to the squared distance to their code, like
    the centres of k-means++. (Uniformly sampled, most would be of the background, which is already
    covered.)

    Args:
      codebook_IZ: the codes.
      usage_I: running mean of the frequency of each code, which sums to about 1.
      latents_NZ, nearest_NZ: this batch's unit encodings and their codes; N >= I.
      key: a PRNG key.
      below: threshold, times 1/I.
      fresh: usage assigned to a replaced code, times 1/I. It determines when an unused code is
        replaced again.

    Returns:
      The new codebook and usage.
    """
    size = codebook_IZ.shape[0]
    distance_N = jnp.square(latents_NZ - nearest_NZ).sum(-1)
    # Gumbel top-k is sampling without replacement with probabilities proportional to distance.
    score_N = jnp.log(distance_N + 1e-12) + jax.random.gumbel(key, distance_N.shape)
    _, chosen_I = jax.lax.top_k(score_N, size)
    dead_I = usage_I < below / size
    new_IZ = latents_NZ[chosen_I].astype(codebook_IZ.dtype)
    codebook_IZ = jnp.where(dead_I[:, None], new_IZ, codebook_IZ)
    return codebook_IZ, jnp.where(dead_I, fresh / size, usage_I)
