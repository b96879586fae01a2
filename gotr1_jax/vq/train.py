"""The image tokenizer of the shapes world: `gotr1 train vq --config FILE`."""

from __future__ import annotations

import io
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from gotr1_jax.convert.image_tokenizer import save_vq
from gotr1_jax.io.files import atomic_write
from gotr1_jax.models.config import VQConfig
from gotr1_jax.models.vq import abstract_vq
from gotr1_jax.parallel.mesh import addressable_rows, replicated
from gotr1_jax.parallel.placement import put_addressable_rows
from gotr1_jax.parallel.processes import is_main_process, raise_on_all_processes
from gotr1_jax.parallel.progress import Progress
from gotr1_jax.shapes.dataset import ShapesSource
from gotr1_jax.shapes.vocabulary import IMAGE_SIZE
from gotr1_jax.trainer.run import Run
from gotr1_jax.trainer.run_dir import RunDir, write_summary
from gotr1_jax.vq import losses as vq_loss
from gotr1_jax.vq.config import VqTrainConfig
from gotr1_jax.vq.update import init_state, make_step, to_pixels

_EVAL_BATCH = 64
_SHEET_ROWS, _SHEET_COLUMNS, _SHEET_SCALE = 4, 8, 2


def train_vq(config: VqTrainConfig) -> Path:
    """Run the job; returns the folder of the finished tokenizer in the released format."""
    row_counts = {"batch_size": config.batch_size, "crop.batch_size": config.crop.batch_size}
    bad_updates = config.log_every + 1
    with Run("vq", config, row_counts=row_counts, max_bad_updates=bad_updates) as run:
        run.open()
        # The tokenizer is replicated: it is small compared with its activations.
        new_state = jax.jit(partial(init_state, config), out_shardings=replicated(run.mesh))
        images = draw_images("train", config.seed, config.images)
        state = run.restore(new_state())
        update = make_step(config)
        for step in run.steps():
            count = batch_rows(config, step)
            batch = batch_of_step(images, config, step, addressable_rows(count, run.mesh))
            state, result = update(state, put_addressable_rows(batch, count, run.mesh))
            if step % config.log_every == 0 or step == config.steps:
                values = {name: float(value) for name, value in asdict(result).items()}
                shown = {name: values[name] for name in ("psnr", "perplexity", "used_frac")}
                run.log(values, state.skipped_in_a_row, **shown)
            run.end_step(state)
        with raise_on_all_processes():
            if is_main_process():
                _finish(config, run, jax.device_get(state.params))
        return _export_dir(config, run.dir)


def _export_dir(config: VqTrainConfig, run: RunDir) -> Path:
    return Path(config.export_dir) if config.export_dir is not None else run.root / "model"


def _finish(config: VqTrainConfig, run: Run, params: Any) -> None:
    """Export the tokenizer and evaluate it on held-out images."""
    out = _export_dir(config, run.dir)
    save_vq(out, config.model, IMAGE_SIZE, params, config.export_dtype)
    rounded = jax.tree.map(lambda x: x.astype(config.export_dtype).astype(np.float32), params)
    lost = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), rounded, params)
    note = f"rounded to {config.export_dtype}, largest difference {max(jax.tree.leaves(lost)):.3g}"
    note = "in float32, not rounded" if config.export_dtype == "float32" else note
    print(f"{out}: trained weights {note}")
    held_out = draw_images("heldout", config.seed, config.eval_images)
    summary, decoded = evaluate(config.model, rounded, held_out)
    stream = io.BytesIO()
    contact_sheet(held_out, decoded).save(stream, format="PNG")
    atomic_write(run.dir.root / "reconstructions.png", stream.getvalue())
    write_summary(run.dir, run.step, run.seconds, summary)


def draw_images(split: str, seed: int, count: int) -> np.ndarray:
    """The first `count` images of a split of the shapes world, uint8 (count, 64, 64, 3)."""
    source = ShapesSource(split, count, seed)
    images = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    with Progress("images", count) as progress:
        for i in range(count):
            images[i] = source.image(i)
            progress.update(i + 1)
    return images


def batch_rows(config: VqTrainConfig, step: int) -> int:
    """Batch size of a step, counted from 1: of crops first, then of full images."""
    return config.crop.batch_size if step <= config.crop.steps else config.batch_size


def batch_of_step(
    images: np.ndarray, config: VqTrainConfig, step: int, rows: np.ndarray | None = None
) -> np.ndarray:
    """The batch of a step, or only its `rows`, uint8 (B, H, W, 3).

    Depends only on seed and step, so that a resumed run sees the same batches.
    """
    rng, B = np.random.default_rng((config.seed, step)), batch_rows(config, step)
    rows = np.arange(B) if rows is None else rows
    index = rng.integers(0, len(images), B)
    if step > config.crop.steps:
        return images[index[rows]]
    size = config.crop.size
    # Crops are aligned to the grid of object positions, so that edges are at the same offsets as in
    # full images.
    offsets = IMAGE_SIZE - size + 1
    corner = rng.integers(0, offsets, (B, 2))
    crops = [images[index[b]][y : y + size, x : x + size] for b in rows for y, x in [corner[b]]]
    return np.stack(crops)


def evaluate(
    model: VQConfig, params: nnx.State, images: np.ndarray
) -> tuple[dict[str, float], np.ndarray]:
    """Encode and decode uint8 images (N, H, W, 3).

    Returns:
      `psnr` of the 8-bit images in dB, `codes_used` and `perplexity` of the codes; and the decoded
      images, uint8 (N, H, W, 3).
    """
    graphdef = nnx.split(abstract_vq(model))[0]
    grid = images.shape[1] // model.downsampling, images.shape[2] // model.downsampling

    @jax.jit
    def reconstruct(params: nnx.State, batch: jax.Array) -> tuple[jax.Array, jax.Array]:
        tokenizer = nnx.merge(graphdef, params)
        ids_BU = tokenizer.encode_ids(to_pixels(batch))
        pixels = jnp.round((tokenizer.decode_ids(ids_BU, grid) + 1.0) * 127.5)
        return ids_BU, jnp.clip(pixels, 0, 255).astype(jnp.uint8)

    counts_I = np.zeros((model.codebook_size,), np.float32)
    decoded = np.empty_like(images)
    for start in range(0, len(images), _EVAL_BATCH):
        batch = images[start : start + _EVAL_BATCH]
        ids_BU, decoded[start : start + _EVAL_BATCH] = jax.device_get(reconstruct(params, batch))
        counts_I += np.bincount(ids_BU.reshape(-1), minlength=len(counts_I))
    error = np.square(decoded.astype(np.float32) - images).mean()
    summary = {
        "psnr": float(10 * np.log10(255.0**2 / max(error, 1e-9))),
        "codes_used": float((counts_I > 0).sum()),
        "perplexity": float(vq_loss.perplexity(jnp.asarray(counts_I))),
    }
    return summary, decoded


def contact_sheet(images: np.ndarray, decoded: np.ndarray) -> Image.Image:
    """Rows of images, each above the row of its reconstructions."""
    lines = []
    for row in range(min(_SHEET_ROWS, len(images) // _SHEET_COLUMNS)):
        part = slice(row * _SHEET_COLUMNS, (row + 1) * _SHEET_COLUMNS)
        lines += [np.concatenate(list(x[part]), 1) for x in (images, decoded)]
    sheet = Image.fromarray(np.concatenate(lines, 0))
    size = sheet.width * _SHEET_SCALE, sheet.height * _SHEET_SCALE
    return sheet.resize(size, Image.Resampling.NEAREST)
