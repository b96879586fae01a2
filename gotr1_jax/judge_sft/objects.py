"""What is in the images of an example, as labels of their units: for `objective: objects`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from gotr1_jax.images.qwen_pack import Grid
from gotr1_jax.plan import Box
from gotr1_jax.plan.boxes import SCALE
from gotr1_jax.shapes.judge import parse_name
from gotr1_jax.shapes.vocabulary import COLORS, SHAPES, SIZES

CLASSES = (len(COLORS), len(SHAPES), len(SIZES))
"""Number of colors, shapes and sizes."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class UnitLabels:
    """The object whose center is in each unit; E examples of U units.

    Attributes:
      centers_EU: int32, 1 where there is such an object, 0 where there is none, -1 in padding.
      kinds_EU3: int32 color, shape and size, in the vocabulary's order; -1 for none or an unsaid
        size.
      boxes_EU4: float32 x1, y1, x2, y2 in fractions of the image's sides.
    """

    centers_EU: np.ndarray
    kinds_EU3: np.ndarray
    boxes_EU4: np.ndarray


def label_units(
    examples: Sequence[Sequence[tuple[Grid, Sequence[tuple[str, Box]]]]], units: int
) -> UnitLabels:
    """The labels of some examples.

    Args:
      examples: of each its images in their order: units (rows, columns), and names and boxes of
        what is there. Boxes count as they are drawn (`Box.clean`). Names of another world and
        boxes without area are left out; of two objects in a unit the smaller one counts.
      units: of an example's row.
    """
    count = len(examples)
    labels = UnitLabels(
        centers_EU=np.full((count, units), -1, np.int32),
        kinds_EU3=np.full((count, units, 3), -1, np.int32),
        boxes_EU4=np.zeros((count, units, 4), np.float32),
    )
    for e, images in enumerate(examples):
        first = 0
        for grid, objects in images:
            end = first + grid[0] * grid[1]
            labels.centers_EU[e, first:end] = 0
            for name, box in sorted(objects, key=lambda item: -item[1].area):
                _write_object(labels, (e, first), grid, name, box)
            first = end
    return labels


def _write_object(
    labels: UnitLabels, place: tuple[int, int], grid: Grid, name: str, box: Box
) -> None:
    """place: example, and first unit of the image."""
    spec, box = parse_name(name), box.clean()
    if spec is None or not box.area:
        return
    corners = np.array([box.x1, box.y1, box.x2, box.y2], np.float32) / SCALE
    x, y = np.minimum((corners[:2] + corners[2:]) / 2, 1 - 1e-6)
    at = place[0], place[1] + int(y * grid[0]) * grid[1] + int(x * grid[1])
    size = -1 if spec.size is None else SIZES.index(spec.size)
    labels.centers_EU[at] = 1
    labels.kinds_EU3[at] = tuple(COLORS).index(spec.color), SHAPES.index(spec.shape), size
    labels.boxes_EU4[at] = corners
