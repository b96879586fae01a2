"""Images of scenes, drawn with Pillow and anti-aliased by supersampling."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from gotr1_jax.shapes.scenes import Scene
from gotr1_jax.shapes.vocabulary import BACKGROUND, COLORS, IMAGE_SIZE

_SUPERSAMPLE = 8


def render(scene: Scene, size: int = IMAGE_SIZE) -> np.ndarray:
    """Draw a scene; uint8 (size, size, 3) RGB.

    `size` must be a multiple of 32, so that scaled boxes end on whole pixels; ValueError otherwise.
    """
    if size % (IMAGE_SIZE // 2):
        raise ValueError(f"image size {size} is not a multiple of {IMAGE_SIZE // 2}")
    image = np.empty((size, size, 3), np.float32)
    image[:] = BACKGROUND
    for obj in scene.objects:
        x1, y1, x2, y2 = (v * size // IMAGE_SIZE for v in obj.box)
        mask = shape_mask(obj.spec.shape, x2 - x1, y2 - y1)[..., None]
        color = np.asarray(COLORS[obj.spec.color], np.float32)
        patch = image[y1:y2, x1:x2]
        patch += mask * (color - patch)
    return np.round(image).astype(np.uint8)


@lru_cache(maxsize=1024)
def shape_mask(shape: str, width: int, height: int) -> np.ndarray:
    """Coverage of a shape that fills its box exactly; float32 (height, width) in [0, 1].

    Read-only, since it is shared. Raises ValueError for an unknown shape.
    """
    w, h = width * _SUPERSAMPLE, height * _SUPERSAMPLE
    image = Image.new("L", (w, h), 0)
    draw = ImageDraw.Draw(image)
    if shape == "circle":
        draw.ellipse((0, 0, w - 1, h - 1), fill=255)
    elif shape == "square":
        draw.rectangle((0, 0, w - 1, h - 1), fill=255)
    elif shape == "triangle":
        draw.polygon([((w - 1) / 2, 0), (w - 1, h - 1), (0, h - 1)], fill=255)
    elif shape == "cross":
        thick_w, thick_h = round(w / 3), round(h / 3)
        x, y = (w - thick_w) // 2, (h - thick_h) // 2
        draw.rectangle((x, 0, x + thick_w - 1, h - 1), fill=255)
        draw.rectangle((0, y, w - 1, y + thick_h - 1), fill=255)
    else:
        raise ValueError(f"unknown shape {shape!r}")
    mask = np.asarray(image, np.float32).reshape(height, _SUPERSAMPLE, width, _SUPERSAMPLE)
    coverage = mask.mean(axis=(1, 3)) / 255.0
    coverage.flags.writeable = False
    return coverage
