"""Objects that a detector finds in an image: their boxes, masks and crops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from gotr1_jax.errors import InputError
from gotr1_jax.vlm_engine.base import ImageInput

_GRAY = (0x99, 0x99, 0x99)  # background of a crop for color queries, as in GenEval


class Detection(NamedTuple):
    """An object in an image.

    Attributes:
        x1, y1, x2, y2: its box in pixels of the image, origin top left.
        score: the detector's confidence, 0 to 1.
        mask_runs: its mask by `encode_mask`; empty where the detector gives none.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    score: float
    mask_runs: tuple[int, ...] = ()

    @classmethod
    def from_box(
        cls, box: Iterable[float], score: float, mask_runs: Iterable[int] = ()
    ) -> Detection:
        """The object with the box (x1, y1, x2, y2)."""
        x1, y1, x2, y2 = map(float, box)
        return cls(x1, y1, x2, y2, float(score), tuple(mask_runs))


def read_detections(answer: Sequence[Sequence[Any]]) -> list[Detection]:
    """The detections in an answer to a query of the kind "find"."""
    return [Detection.from_box(row[:4], row[4], row[5]) for row in answer]


def encode_mask(mask_HW: np.ndarray) -> tuple[int, ...]:
    """A mask, row by row, as run lengths; the first run is of pixels that are off."""
    flat = np.asarray(mask_HW, bool).ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat])))
    return tuple(np.diff(np.concatenate([[0], edges, [flat.size]])).tolist())


def decode_mask(runs: Sequence[int], height: int, width: int) -> np.ndarray:
    """Inverse of `encode_mask`: bool (height, width). InputError where the sizes differ."""
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    if flat.size != height * width:
        raise InputError(
            f"a mask of {flat.size} pixels does not belong to an image of {width}x{height}"
        )
    return flat.reshape(height, width)


def crop_object(image: ImageInput, detection: Detection) -> Image.Image:
    """The image inside the object's box; pixels outside its mask are gray."""
    whole = Image.fromarray(image.pixels)
    if detection.mask_runs:
        mask = Image.fromarray(decode_mask(detection.mask_runs, *image.size))
        whole = Image.composite(whole, Image.new("RGB", whole.size, _GRAY), mask)
    x1, y1, x2, y2 = (round(side) for side in detection[:4])
    return whole.crop((x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)))
