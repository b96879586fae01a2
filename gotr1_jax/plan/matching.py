"""Matching of planned and detected objects."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from gotr1_jax.plan.boxes import Box, iou
from gotr1_jax.plan.grammar import normalise_name


def match_objects(
    planned: Sequence[tuple[str, Box | None]], found: Sequence[tuple[str, Box]]
) -> list[tuple[int, int | None, float]]:
    """Match planned objects with detected ones of the same name, one to one, for the largest sum
    of IoU (Hungarian method). Names are compared by `normalise_name`.

    Args:
        planned: name and box of each planned object; a box of None is never matched.
        found: name and box of each object detected in the image.

    Returns:
        (planned index, found index or None, IoU) of each planned object, in their order. None,
        with IoU 0, if no detected object of that name was left. A match may have IoU 0.

    >>> found = [("dog", Box(0, 0, 9, 9)), ("Cat", Box(0, 0, 100, 50))]
    >>> match_objects([("cat", Box(0, 0, 100, 100)), ("bird", Box(0, 0, 9, 9))], found)
    [(0, 1, 0.5), (1, None, 0.0)]
    """
    result: list[tuple[int, int | None, float]] = [(i, None, 0.0) for i in range(len(planned))]
    by_name: dict[str, list[int]] = defaultdict(list)
    for j, (name, _) in enumerate(found):
        by_name[normalise_name(name)].append(j)
    rows: dict[str, list[tuple[int, Box]]] = defaultdict(list)
    for i, (name, box) in enumerate(planned):
        if box is not None:
            rows[normalise_name(name)].append((i, box))
    for name, row in rows.items():
        columns = by_name.get(name)
        if not columns:
            continue
        overlap = np.array([[iou(box, found[j][1]) for j in columns] for _, box in row])
        for r, c in zip(*linear_sum_assignment(overlap, maximize=True)):
            i = row[r][0]
            result[i] = (i, columns[c], float(overlap[r, c]))
    return result
