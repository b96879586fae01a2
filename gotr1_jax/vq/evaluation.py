"""What the finished tokenizer does to held-out images."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from gotr1_jax.models.config import VQConfig
from gotr1_jax.models.vq import abstract_vq, to_pixels
from gotr1_jax.plan import parse_plan
from gotr1_jax.shapes.dataset import Example
from gotr1_jax.shapes.judge import judge_sample
from gotr1_jax.vq import losses as vq_loss
from gotr1_jax.vq.data import SceneImages

_EVAL_BATCH = 64
_SHEET_ROWS, _SHEET_COLUMNS, _SHEET_WIDTH = 4, 8, 1024


def evaluate(
    model: VQConfig, params: nnx.State, data: SceneImages, margin: int
) -> tuple[dict[str, float], np.ndarray]:
    """Encode and decode scenes and their variants; the judge sees the scenes' images.

    Args:
      model, params: the tokenizer.
      data: held-out scenes with variants.
      margin: pixels around a cell that make it equal in scene and variant if they are.

    Returns:
      The summary, and the decoded images of the scenes, uint8 (N, H, W, 3). The summary has
      `psnr` of the 8-bit images in dB, `codes_used` and `perplexity` of the codes;
      `judge_error`, the fraction of decoded images of which the judge says that the caption is
      false, and `judge_error_truth`, that of the images as rendered; `box_iou`, the mean IoU of
      planned and detected boxes in decoded images, and `box_iou_truth`; `unstable_frac`, the
      fraction of cells with equal pixels in scene and variant whose code differs, and
      `unstable_frac_objects`, the same of cells that are not of one color.
    """
    reconstruct = _make_reconstruct(model)
    N, V = data.images.shape[:2]
    flat = data.images.reshape(N * V, *data.images.shape[2:])
    cell = model.downsampling
    ids = np.empty((N * V, (flat.shape[1] // cell) * (flat.shape[2] // cell)), np.int32)
    decoded = np.empty_like(flat)
    for start in range(0, len(flat), _EVAL_BATCH):
        part = slice(start, start + _EVAL_BATCH)
        ids[part], decoded[part] = jax.device_get(reconstruct(params, flat[part]))
    counts_I = np.bincount(ids.reshape(-1), minlength=model.codebook_size).astype(np.float32)
    error = np.square(decoded.astype(np.float32) - flat).mean()
    shown = decoded.reshape(data.images.shape)[:, 0]
    true_error, true_iou = judge_images(data.examples, data.images[:, 0])
    judge_error, box_iou = judge_images(data.examples, shown)
    summary = {
        "psnr": float(10 * np.log10(255.0**2 / max(error, 1e-9))),
        "codes_used": float((counts_I > 0).sum()),
        "perplexity": float(vq_loss.perplexity(jnp.asarray(counts_I))),
        "judge_error": judge_error,
        "judge_error_truth": true_error,
        "box_iou": box_iou,
        "box_iou_truth": true_iou,
        **measure_stability(data.images, ids.reshape(N, V, -1), cell, margin),
    }
    return summary, shown


def _make_reconstruct(
    model: VQConfig,
) -> Callable[[nnx.State, np.ndarray], tuple[jax.Array, jax.Array]]:
    """A jitted function (weights, uint8 images) -> (ids (B, U), uint8 decoded images)."""
    graphdef = nnx.split(abstract_vq(model))[0]

    @jax.jit
    def reconstruct(params: nnx.State, batch: jax.Array) -> tuple[jax.Array, jax.Array]:
        tokenizer = nnx.merge(graphdef, params)
        grid = batch.shape[1] // model.downsampling, batch.shape[2] // model.downsampling
        ids_BU = tokenizer.encode_ids(to_pixels(batch))
        pixels = jnp.round((tokenizer.decode_ids(ids_BU, grid) + 1.0) * 127.5)
        return ids_BU, jnp.clip(pixels, 0, 255).astype(jnp.uint8)

    return reconstruct


def judge_images(examples: tuple[Example, ...], images: np.ndarray) -> tuple[float, float]:
    """(fraction of images of which the caption is judged false, mean IoU of the boxes)."""
    scores = [
        judge_sample(example.caption, parse_plan(example.plan), image).scores
        for example, image in zip(examples, images, strict=True)
    ]
    true, overlap = (np.mean([s[name] for s in scores]) for name in ("verdict", "ri"))
    return float(1 - true), float(overlap)


def measure_stability(
    images: np.ndarray, ids: np.ndarray, cell: int, margin: int
) -> dict[str, float]:
    """`unstable_frac` and `unstable_frac_objects` of `evaluate`; 0 where there is no such cell.

    Args:
      images: uint8 (N, 2, H, W, 3), scenes and their variants.
      ids: (N, 2, U), their codes, row-major.
      cell, margin: in pixels.
    """
    N, U = len(ids), ids.shape[2]
    same = np.empty((N, U), bool)
    for start in range(0, N, _EVAL_BATCH):
        first, second = (images[start : start + _EVAL_BATCH, k] for k in (0, 1))
        part = vq_loss.equal_cells(jnp.asarray(first), jnp.asarray(second), cell, margin)
        same[start : start + _EVAL_BATCH] = np.asarray(part).reshape(-1, U)
    h, w = images.shape[2] // cell, images.shape[3] // cell
    cells = images[:, 0].reshape(N, h, cell, w, cell, 3)
    drawn = ((cells.max((2, 4)) - cells.min((2, 4))).max(-1) > vq_loss.EQUAL_WITHIN).reshape(N, U)
    differs = ids[:, 0] != ids[:, 1]

    def fraction(mask: np.ndarray) -> float:
        return float(differs[mask].mean()) if mask.any() else 0.0

    return {"unstable_frac": fraction(same), "unstable_frac_objects": fraction(same & drawn)}


def contact_sheet(images: np.ndarray, decoded: np.ndarray) -> Image.Image:
    """Rows of images, each above the row of its reconstructions."""
    lines = []
    for row in range(min(_SHEET_ROWS, len(images) // _SHEET_COLUMNS)):
        part = slice(row * _SHEET_COLUMNS, (row + 1) * _SHEET_COLUMNS)
        lines += [np.concatenate(list(x[part]), 1) for x in (images, decoded)]
    sheet = Image.fromarray(np.concatenate(lines, 0))
    scale = max(1, _SHEET_WIDTH // sheet.width)
    return sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)
