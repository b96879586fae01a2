"""Losses and code usage of a vector-quantized image tokenizer; pure functions.

Sources: van den Oord et al. 2017 (arXiv 1711.00937), equation 3; LlamaGen (arXiv 2406.06525) for
the weights.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

EQUAL_WITHIN = 1
"""8-bit pixel values that differ by at most this are equal."""
# Neighbouring pixels (in [-1, 1]) at an edge differ by more than this: 20 of 255 levels. Shading
# inside an object changes by a few levels a pixel.
_EDGE = 20 / 127.5


def codebook_loss(latents_NZ: jax.Array, nearest_NZ: jax.Array) -> jax.Array:
    """Mean squared distance that pulls the chosen codes towards the encodings, scalar."""
    return jnp.square(nearest_NZ - jax.lax.stop_gradient(latents_NZ)).mean()


def commitment_loss(latents_NZ: jax.Array, nearest_NZ: jax.Array) -> jax.Array:
    """Mean squared distance that pulls the encodings towards the chosen codes, scalar."""
    return jnp.square(latents_NZ - jax.lax.stop_gradient(nearest_NZ)).mean()


def pixel_losses(
    pixels_BHWC: jax.Array, target_BHWC: jax.Array, mask_BHW: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """(mean absolute, mean squared) error of the pixels, scalars in the pixels' units.

    mask_BHW: bool, the pixels that count; None: all. Without any, the errors are 0.
    """
    error = pixels_BHWC.astype(jnp.float32) - target_BHWC.astype(jnp.float32)
    if mask_BHW is None:
        return jnp.abs(error).mean(), jnp.square(error).mean()
    where = mask_BHW[..., None]
    count = jnp.maximum(mask_BHW.sum() * error.shape[-1], 1)
    return (jnp.abs(error) * where).sum() / count, (jnp.square(error) * where).sum() / count


def edge_pixels(pixels_BHWC: jax.Array) -> jax.Array:
    """Pixels in [-1, 1] on either side of an edge; bool (B, H, W)."""
    edges = jnp.zeros(pixels_BHWC.shape[:3], bool)
    for axis in (1, 2):
        low, high = (
            jax.lax.slice_in_dim(pixels_BHWC, start, pixels_BHWC.shape[axis] - 1 + start, axis=axis)
            for start in (0, 1)
        )
        steep = jnp.abs(high - low).max(axis=-1) > _EDGE
        for side in ((0, 1), (1, 0)):
            edges |= jnp.pad(steep, [side if k == axis else (0, 0) for k in range(3)])
    return edges


def equal_cells(first_BHWC: jax.Array, second_BHWC: jax.Array, cell: int, margin: int) -> jax.Array:
    """Which cells of two uint8 images have equal pixels, within EQUAL_WITHIN, in the cell and a
    margin around it; bool (B, H / cell, W / cell). `cell` and `margin` are in pixels."""
    difference = jnp.abs(first_BHWC.astype(jnp.int32) - second_BHWC.astype(jnp.int32)).max(axis=-1)
    side = cell + 2 * margin
    largest = jax.lax.reduce_window(
        difference, jnp.int32(0), jax.lax.max, (1, side, side), (1, cell, cell),
        ((0, 0), (margin, margin), (margin, margin)),
    )  # fmt: skip
    return largest <= EQUAL_WITHIN


def consistency_loss(
    first_BhwZ: jax.Array, second_BhwZ: jax.Array, equal_Bhw: jax.Array
) -> jax.Array:
    """Mean squared distance of the unit encodings of equal cells of two images, scalar.

    It moves both sides: neither image is the better one. They cannot all become one encoding,
    since cells that differ in pixels must still be decoded.
    """
    distance_Bhw = jnp.square(first_BhwZ - second_BhwZ).mean(axis=-1)
    return (distance_Bhw * equal_Bhw).sum() / jnp.maximum(equal_Bhw.sum(), 1)


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

    A code with usage below `below` / I becomes an encoding of this batch, if there are enough.
    Encodings are sampled without replacement, with probability proportional to the squared distance
    to their code, like the centres of k-means++. (Uniformly sampled, most would be of the
    background, which is already covered.)

    Args:
      codebook_IZ: the codes.
      usage_I: running mean of the frequency of each code, which sums to about 1.
      latents_NZ, nearest_NZ: this batch's unit encodings and their codes.
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
    _, chosen_K = jax.lax.top_k(score_N, min(size, len(score_N)))
    dead_I = usage_I < below / size
    # Unused codes take the first encodings drawn; by their own number they would take late ones.
    turn_I = jnp.cumsum(dead_I) - 1
    dead_I &= turn_I < len(chosen_K)
    new_IZ = latents_NZ[chosen_K[turn_I]].astype(codebook_IZ.dtype)
    codebook_IZ = jnp.where(dead_I[:, None], new_IZ, codebook_IZ)
    return codebook_IZ, jnp.where(dead_I, fresh / size, usage_I)


def code_nats(
    latents_NZ: jax.Array,
    codebook_IZ: jax.Array,
    codes_N: jax.Array,
    temperature: float,
    ground_weight: float,
) -> tuple[jax.Array, jax.Array]:
    """How well encodings name the true codes of their cells, by the cosines with all codes.

    Args:
      latents_NZ, codebook_IZ: unit encodings and unit codes.
      codes_N: the true codes; 0 is ground.
      temperature: by which cosines are divided.
      ground_weight: weight of a cell of ground, of others 1.

    Returns:
      Weighted mean of the cross entropy in nats, and the fraction of cells that are not ground of
      which the nearest code is the true one; scalars.
    """
    logits_NI = latents_NZ @ codebook_IZ.T / temperature
    logp_N = jnp.take_along_axis(jax.nn.log_softmax(logits_NI), codes_N[:, None], axis=1)[:, 0]
    drawn_N = codes_N > 0
    weight_N = jnp.where(drawn_N, 1.0, ground_weight)
    nats = -(logp_N * weight_N).sum() / jnp.maximum(weight_N.sum(), 1e-9)
    right_N = (logits_NI.argmax(axis=1) == codes_N) & drawn_N
    return nats, right_N.sum() / jnp.maximum(drawn_N.sum(), 1)
