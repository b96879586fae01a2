"""Images of scenes, drawn with Pillow at subpixel positions, anti-aliased by supersampling."""

from __future__ import annotations

import numpy as np

from gotr1_jax.shapes.outlines import coverage
from gotr1_jax.shapes.scenes import Scene
from gotr1_jax.shapes.vocabulary import (
    BACKGROUND,
    COLORS,
    HIGHLIGHT,
    HIGHLIGHT_AT,
    HIGHLIGHT_REACH,
    IMAGE_SIZE,
)


def render(scene: Scene, size: int = IMAGE_SIZE) -> np.ndarray:
    """Draw a scene; uint8 (size, size, 3) RGB. Objects are drawn in `scene.draw_order`."""
    image = np.empty((size, size, 3), np.float32)
    image[:] = BACKGROUND
    for obj in scene.draw_order:
        x1, y1, x2, y2 = (v * size for v in obj.relative_box)
        left, top, mask = coverage(obj.spec.shape, x1, y1, x2, y2, size)
        height, width = mask.shape
        color = _shaded(obj.spec.color, left, top, width, height, (x1, y1, x2, y2))
        patch = image[top : top + height, left : left + width]
        patch += mask[..., None] * (color - patch)
    return np.round(image).astype(np.uint8)


def _shaded(
    color: str, left: int, top: int, width: int, height: int, box: tuple[float, ...]
) -> np.ndarray:
    """The colors of a patch of an object with its highlight, float32 (height, width, 3)."""
    x1, y1, x2, y2 = box
    x = (np.arange(width, dtype=np.float32) + left + 0.5 - x1) / (x2 - x1) - HIGHLIGHT_AT[0]
    y = (np.arange(height, dtype=np.float32) + top + 0.5 - y1) / (y2 - y1) - HIGHLIGHT_AT[1]
    distance = np.sqrt(x[None, :] ** 2 + y[:, None] ** 2)
    light = HIGHLIGHT * np.clip(1 - distance / HIGHLIGHT_REACH, 0, 1)[..., None]
    base = np.asarray(COLORS[color], np.float32)
    # Towards the background, so that the direction from it, which the judge reads, stays.
    return base + light * (np.asarray(BACKGROUND, np.float32) - base)
