"""Train the image tokenizer on the shapes world: `gotr1 train vq --config FILE`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from PIL import Image

from gotr1_jax.convert.image_tokenizer import save_vq
from gotr1_jax.io.files import write_json_atomic
from gotr1_jax.io.progress import Progress
from gotr1_jax.models.config import VQConfig
from gotr1_jax.models.vq import VQModel, abstract_vq
from gotr1_jax.parallel.mesh import addressable_rows, replicated
from gotr1_jax.parallel.placement import put_addressable_rows
from gotr1_jax.parallel.processes import is_main_process, raise_on_all_processes
from gotr1_jax.shapes.dataset import ShapesSource
from gotr1_jax.shapes.vocabulary import GRID_STEP, IMAGE_SIZE
from gotr1_jax.trainer.optimizer import make_optimizer
from gotr1_jax.trainer.run import Run
from gotr1_jax.trainer.run_dir import RunDir
from gotr1_jax.vq import losses as vq_loss
from gotr1_jax.vq.config import VqTrainConfig

_log = logging.getLogger(__name__)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VqState:
    """Everything a step changes: weights, optimizer, each code's running share of use, step, and
    how many updates in a row were not finite and changed nothing."""

    params: nnx.State
    opt_state: optax.OptState
    usage_I: jax.Array
    step: jax.Array
    skipped_in_a_row: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VqMetrics:
    """Scalars of one step, float32: `psnr` in dB, `perplexity` in codes of this batch,
    `used_frac` the share of codes in use by the running mean."""

    loss: jax.Array
    l1: jax.Array
    l2: jax.Array
    commitment: jax.Array
    psnr: jax.Array
    perplexity: jax.Array
    used_frac: jax.Array
    grad_norm: jax.Array


StepFn = Callable[[VqState, jax.Array], tuple[VqState, VqMetrics]]


def train_vq(config: VqTrainConfig) -> Path:
    """Run the job; returns the folder of the finished tokenizer in the released format."""
    row_counts = {"batch_size": config.batch_size, "crop.batch_size": config.crop.batch_size}
    bad_updates = config.log_every + 1
    with Run("vq", config, row_counts=row_counts, max_bad_updates=bad_updates) as run:
        run.open()
        # The tokenizer is small next to its activations: every device holds it whole.
        new_state = jax.jit(partial(init_state, config), out_shardings=replicated(run.mesh))
        images = draw_images("train", config.seed, config.images)
        state = run.restore(new_state())
        update = make_step(config)
        for step in run.steps():
            count = batch_rows(config, step)
            held = addressable_rows(count, run.mesh)
            part = batch_of_step(images, config, step, held)
            state, result = update(state, put_addressable_rows(part, held, count, run.mesh))
            if step % config.log_every == 0 or step == config.steps:
                values = {name: float(value) for name, value in asdict(result).items()}
                shown = {name: values[name] for name in ("psnr", "perplexity", "used_frac")}
                run.log(values, state.skipped_in_a_row, **shown)
            run.end_step(state)
        with raise_on_all_processes():
            if is_main_process():
                _finish(config, run.dir, jax.device_get(state.params))
        return _export_dir(config, run.dir)


def _export_dir(config: VqTrainConfig, run: RunDir) -> Path:
    return Path(config.export_dir) if config.export_dir is not None else run.root / "model"


def _finish(config: VqTrainConfig, run: RunDir, params: Any) -> None:
    """The tokenizer's folder, and what it makes of held-out images."""
    out = _export_dir(config, run)
    save_vq(out, config.model, IMAGE_SIZE, params, config.export_dtype)
    _log.info("tokenizer written to %s", out)
    rounded = jax.tree.map(lambda x: x.astype(config.export_dtype).astype(np.float32), params)
    held_out = draw_images("heldout", config.seed, config.eval_images)
    summary, decoded = evaluate(config.model, rounded, held_out)
    write_json_atomic(run.summary, summary)
    contact_sheet(held_out, decoded).save(run.root / "reconstructions.png")


def draw_images(split: str, seed: int, count: int) -> np.ndarray:
    """The first `count` images of a split of the shapes world, uint8 (count, 64, 64, 3)."""
    source = ShapesSource(split, count, seed)
    images = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    with Progress("pictures", count) as progress:
        for i in range(count):
            images[i] = source.image(i)
            progress.update(i + 1)
    return images


def batch_rows(config: VqTrainConfig, step: int) -> int:
    """Images of step 1, 2, …: windows first, then whole ones."""
    return config.crop.batch_size if step <= config.crop.steps else config.batch_size


def batch_of_step(
    images: np.ndarray, config: VqTrainConfig, step: int, held: np.ndarray | None = None
) -> np.ndarray:
    """The images of a step, uint8 (B, H, W, 3); of `held` rows alone, where it is given.

    A function of seed and step alone, so a resumed run sees what an uninterrupted one would.
    """
    rng, B = np.random.default_rng((config.seed, step)), batch_rows(config, step)
    rows = np.arange(B) if held is None else held
    index = rng.integers(0, len(images), B)
    if step > config.crop.steps:
        return images[index[rows]]
    size = config.crop.size
    # Windows move by the grid that objects stand on: edges fall where whole images have them.
    places = (IMAGE_SIZE - size) // GRID_STEP + 1
    corner = GRID_STEP * rng.integers(0, places, (B, 2))
    windows = [images[index[b]][y : y + size, x : x + size] for b in rows for y, x in [corner[b]]]
    return np.stack(windows)


def to_pixels(images: jax.Array) -> jax.Array:
    """uint8 0..255 → float32 [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def init_state(config: VqTrainConfig) -> VqState:
    """A fresh tokenizer with its optimizer."""
    params = nnx.split(VQModel(config.model, rngs=nnx.Rngs(config.seed)))[1]
    size = config.model.codebook_size
    usage_I = jnp.full((size,), 1.0 / size, jnp.float32)
    opt_state = make_optimizer(config.optimizer, config.steps).init(params)
    zero = jnp.zeros((), jnp.int32)
    return VqState(params, opt_state, usage_I, zero, zero)


def make_step(config: VqTrainConfig) -> StepFn:
    """The compiled update on uint8 images (B, H, W, 3); its state is donated."""
    size, dim = config.model.codebook_size, config.model.code_dim
    graphdef = nnx.split(abstract_vq(config.model))[0]
    optimizer = make_optimizer(config.optimizer, config.steps)
    weights = config.weights

    def loss_fn(params: nnx.State, pixels: jax.Array, quantizing: jax.Array) -> tuple[Any, Any]:
        model = nnx.merge(graphdef, params)
        quantized = model.quantize(model.encode(pixels))
        codes = jnp.where(quantizing, quantized.codes_BhwZ, quantized.latents_BhwZ)
        latents = quantized.latents_BhwZ.reshape(-1, dim)
        nearest = quantized.nearest_BhwZ.reshape(-1, dim)
        l1, l2 = vq_loss.pixel_losses(model.decode(codes), pixels)
        commitment = vq_loss.commitment_loss(latents, nearest)
        loss = weights.l1 * l1 + weights.l2 * l2
        loss += weights.codebook * vq_loss.codebook_loss(latents, nearest)
        # Committing to codes that nothing is decoded from only draws all encodings together.
        loss += weights.commitment * jnp.where(quantizing, commitment, 0.0)
        return loss, (l1, l2, commitment, quantized.ids_Bhw, latents, nearest)

    @partial(jax.jit, donate_argnums=0)
    def step_fn(state: VqState, images: jax.Array) -> tuple[VqState, VqMetrics]:
        pixels, quantizing = to_pixels(images), state.step >= config.quantize_from
        (loss, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, pixels, quantizing
        )
        l1, l2, commitment, ids, latents, nearest = aux
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        counts_I = vq_loss.code_counts(ids, size)
        restart = config.restart
        usage_I = restart.decay * state.usage_I + (1 - restart.decay) * counts_I / counts_I.sum()
        old = params["quantize"]["embedding"]
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        moved_IZ, moved_usage_I = vq_loss.restart_unused(
            old[...], usage_I, latents, nearest, key, below=restart.below, fresh=restart.fresh
        )
        moving = state.step < restart.steps
        params["quantize"]["embedding"] = old.replace(jnp.where(moving, moved_IZ, old[...]))
        metrics = VqMetrics(
            loss=loss,
            l1=l1,
            l2=l2,
            commitment=commitment,
            psnr=vq_loss.psnr(l2),
            perplexity=vq_loss.perplexity(counts_I),
            used_frac=(usage_I >= restart.below / size).mean(),
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


def evaluate(
    model: VQConfig, params: nnx.State, images: np.ndarray, batch_size: int = 64
) -> tuple[dict[str, float], np.ndarray]:
    """Encode and decode uint8 images (N, H, W, 3).

    Returns:
      `psnr` in dB of the 8-bit images, `codes_used` and `perplexity` of the codes; and the
      decoded images, uint8 (N, H, W, 3).
    """
    graphdef = nnx.split(abstract_vq(model))[0]
    grid = images.shape[1] // model.downsampling, images.shape[2] // model.downsampling

    @jax.jit
    def there_and_back(params: nnx.State, batch: jax.Array) -> tuple[jax.Array, jax.Array]:
        tokenizer = nnx.merge(graphdef, params)
        ids_BU = tokenizer.encode_ids(to_pixels(batch))
        pixels = jnp.round((tokenizer.decode_ids(ids_BU, grid) + 1.0) * 127.5)
        return ids_BU, jnp.clip(pixels, 0, 255).astype(jnp.uint8)

    counts_I = np.zeros((model.codebook_size,), np.float32)
    decoded = np.empty_like(images)
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        ids_BU, decoded[start : start + batch_size] = jax.device_get(there_and_back(params, batch))
        counts_I += np.bincount(ids_BU.reshape(-1), minlength=len(counts_I))
    error = np.square(decoded.astype(np.float32) - images).mean()
    summary = {
        "psnr": float(10 * np.log10(255.0**2 / max(error, 1e-9))),
        "codes_used": float((counts_I > 0).sum()),
        "perplexity": float(vq_loss.perplexity(jnp.asarray(counts_I))),
    }
    return summary, decoded


def contact_sheet(
    images: np.ndarray, decoded: np.ndarray, rows: int = 4, columns: int = 8, scale: int = 2
) -> Image.Image:
    """Rows of images, each above the row of what came back."""
    lines = []
    for start in range(0, min(rows * columns, len(images) // columns * columns), columns):
        lines += [np.concatenate(list(x[start : start + columns]), 1) for x in (images, decoded)]
    sheet = Image.fromarray(np.concatenate(lines, 0))
    return sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)
