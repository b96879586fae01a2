"""The compiled update of the image tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from gotr1_jax.models.vq import VQModel, abstract_vq, to_pixels, unit
from gotr1_jax.trainer.optimizer import make_optimizer
from gotr1_jax.vq import losses as vq_loss
from gotr1_jax.vq.config import VqLossConfig, VqTrainConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VqState:
    """Train state: weights, optimizer, running mean of each code's frequency, step, and number of
    non-finite (skipped) updates in a row."""

    params: nnx.State
    opt_state: optax.OptState
    usage_I: jax.Array
    step: jax.Array
    skipped_in_a_row: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VqMetrics:
    """Float32 scalars of a step: `psnr` in dB, `perplexity` of this batch's codes, `used_frac` the
    fraction of codes with a running usage above the restart threshold; `consistency` is 0 where
    images are no pairs; `nats` and `accuracy` (`losses.code_nats`) without codes of cells."""

    loss: jax.Array
    l1: jax.Array
    l2: jax.Array
    commitment: jax.Array
    consistency: jax.Array
    nats: jax.Array
    accuracy: jax.Array
    psnr: jax.Array
    perplexity: jax.Array
    used_frac: jax.Array
    grad_norm: jax.Array


StepFn = Callable[[VqState, jax.Array, jax.Array | None], tuple[VqState, VqMetrics]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossParts:
    """What a loss is made of: scalars, and this batch's codes (B, h, w), unit encodings (N, Z) and
    nearest codes (N, Z)."""

    l1: jax.Array
    l2: jax.Array
    commitment: jax.Array
    consistency: jax.Array
    nats: jax.Array
    accuracy: jax.Array
    ids_Bhw: jax.Array
    latents_NZ: jax.Array
    nearest_NZ: jax.Array


def init_state(config: VqTrainConfig, embedding_IZ: Any = None) -> VqState:
    """The state before the first step. embedding_IZ: the first codebook; None: random."""
    params: Any = nnx.split(VQModel(config.model, rngs=nnx.Rngs(config.seed)))[1]
    if embedding_IZ is not None:
        old = params["quantize"]["embedding"]
        params["quantize"]["embedding"] = old.replace(embedding_IZ.astype(old[...].dtype))
    size = config.model.codebook_size
    usage_I = jnp.full((size,), 1.0 / size, jnp.float32)
    opt_state = make_optimizer(config.optimizer, config.steps).init(params)
    zero = jnp.zeros((), jnp.int32)
    return VqState(params, opt_state, usage_I, zero, zero)


def loss_and_codes(
    model: VQModel, images: jax.Array, quantizing: jax.Array, weights: VqLossConfig
) -> tuple[jax.Array, LossParts]:
    """The weighted loss of uint8 images (B, H, W, 3), and its parts for metrics and code restarts.

    quantizing: bool scalar; False: the decoder gets unquantized encodings.
    """
    pixels, dim = to_pixels(images), model.config.code_dim
    quantized = model.quantize(model.encode(pixels))
    codes = jnp.where(quantizing, quantized.codes_BhwZ, quantized.latents_BhwZ)
    latents = quantized.latents_BhwZ.reshape(-1, dim)
    nearest = quantized.nearest_BhwZ.reshape(-1, dim)
    loss, l1, l2 = _loss_of_pixels(model.decode(codes), pixels, weights)
    commitment = vq_loss.commitment_loss(latents, nearest)
    loss += weights.codebook * vq_loss.codebook_loss(latents, nearest)
    # Without quantization the commitment loss would only collapse the encodings.
    loss += weights.commitment * jnp.where(quantizing, commitment, 0.0)
    consistency = zero = jnp.zeros(())
    if weights.consistency:
        consistency = pair_consistency(
            images, quantized.latents_BhwZ, model.config.downsampling, weights.consistency_margin
        )
        loss += weights.consistency * consistency
    ids = quantized.ids_Bhw
    return loss, LossParts(l1, l2, commitment, consistency, zero, zero, ids, latents, nearest)


def loss_of_cells(
    model: VQModel, images: jax.Array, codes_BU: jax.Array, own: jax.Array, config: VqTrainConfig
) -> tuple[jax.Array, LossParts]:
    """The loss of uint8 images (B, H, W, 3) of which the codes are known, and its parts.

    own: bool scalar; True: the decoder gets the encoder's codes, without a gradient to it.
    """
    cells = config.cells
    assert cells is not None
    pixels, dim = to_pixels(images), model.config.code_dim
    quantized = model.quantize(model.encode(pixels))
    ids = quantized.ids_Bhw
    codes = model.quantize.lookup(jnp.where(own, ids, codes_BU.reshape(ids.shape)))
    loss, l1, l2 = _loss_of_pixels(model.decode(codes.astype(pixels.dtype)), pixels, config.weights)
    latents = quantized.latents_BhwZ.reshape(-1, dim)
    nearest = quantized.nearest_BhwZ.reshape(-1, dim)
    nats, accuracy = vq_loss.code_nats(
        latents, unit(model.quantize.embedding[...]), codes_BU.reshape(-1), cells.temperature,
        cells.ground_weight,
    )  # fmt: skip
    zero, commitment = jnp.zeros(()), vq_loss.commitment_loss(latents, nearest)
    parts = LossParts(l1, l2, commitment, zero, nats, accuracy, ids, latents, nearest)
    return loss + cells.weight * nats, parts


def _loss_of_pixels(
    decoded: jax.Array, pixels: jax.Array, weights: VqLossConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The weighted loss of decoded pixels, and their mean absolute and squared errors."""
    l1, l2 = vq_loss.pixel_losses(decoded, pixels)
    loss = weights.l1 * l1 + weights.l2 * l2
    if weights.edges:
        at_edges = vq_loss.pixel_losses(decoded, pixels, vq_loss.edge_pixels(pixels))
        loss += weights.edges * (weights.l1 * at_edges[0] + weights.l2 * at_edges[1])
    return loss, l1, l2


def pair_consistency(
    images: jax.Array, latents_BhwZ: jax.Array, cell: int, margin: int
) -> jax.Array:
    """`losses.consistency_loss` of rows 2k and 2k + 1 of uint8 images (B, H, W, 3), scalar."""
    (a, b), (first, second) = (
        (pair[:, 0], pair[:, 1])
        for pair in (x.reshape(-1, 2, *x.shape[1:]) for x in (images, latents_BhwZ))
    )
    equal = vq_loss.equal_cells(a, b, cell, margin)
    return vq_loss.consistency_loss(first, second, equal)


def make_step(config: VqTrainConfig) -> StepFn:
    """The compiled update on uint8 images (B, H, W, 3); the state is donated."""
    size = config.model.codebook_size
    graphdef = nnx.split(abstract_vq(config.model))[0]
    optimizer = make_optimizer(config.optimizer, config.steps)

    def loss_fn(
        params: nnx.State, images: jax.Array, codes_BU: jax.Array | None, step: jax.Array
    ) -> tuple[jax.Array, LossParts]:
        model = nnx.merge(graphdef, params)
        if codes_BU is None:
            return loss_and_codes(model, images, step >= config.quantize_from, config.weights)
        assert config.cells is not None
        own = step >= config.steps - config.cells.last_steps_with_encoder
        return loss_of_cells(model, images, codes_BU, own, config)

    @partial(jax.jit, donate_argnums=0)
    def step_fn(
        state: VqState, images: jax.Array, codes_BU: jax.Array | None = None
    ) -> tuple[VqState, VqMetrics]:
        (loss, parts), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, images, codes_BU, state.step
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        counts_I = vq_loss.code_counts(parts.ids_Bhw, size)
        moving = state.step < config.restart.steps
        usage_I, moved_usage_I = _restart(config, params, state, counts_I, parts)
        metrics = VqMetrics(
            loss=loss,
            l1=parts.l1,
            l2=parts.l2,
            commitment=parts.commitment,
            consistency=parts.consistency,
            nats=parts.nats,
            accuracy=parts.accuracy,
            psnr=vq_loss.psnr(parts.l2),
            perplexity=vq_loss.perplexity(counts_I),
            used_frac=(usage_I >= config.restart.below / size).mean(),
            grad_norm=optax.tree.norm(grads),
        )
        good = jnp.isfinite(loss) & jnp.isfinite(metrics.grad_norm)
        params, opt_state, usage_I = jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            (params, opt_state, jnp.where(moving, moved_usage_I, usage_I)),
            (state.params, state.opt_state, state.usage_I),
        )
        skipped = jnp.where(good, 0, state.skipped_in_a_row + 1)
        return VqState(params, opt_state, usage_I, state.step + 1, skipped), metrics

    return step_fn


def _restart(
    config: VqTrainConfig, params: Any, state: VqState, counts_I: jax.Array, parts: LossParts
) -> tuple[jax.Array, jax.Array]:
    """Moves unused codes in `params` while that is due; the running usage without and with it."""
    restart = config.restart
    usage_I = restart.decay * state.usage_I + (1 - restart.decay) * counts_I / counts_I.sum()
    old = params["quantize"]["embedding"]
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    moved_IZ, moved_usage_I = vq_loss.restart_unused(
        old[...], usage_I, parts.latents_NZ, parts.nearest_NZ, key,
        below=restart.below, fresh=restart.fresh,
    )  # fmt: skip
    moving = state.step < restart.steps
    params["quantize"]["embedding"] = old.replace(jnp.where(moving, moved_IZ, old[...]))
    return usage_I, moved_usage_I
