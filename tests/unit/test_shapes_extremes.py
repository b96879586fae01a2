"""Images that no scene has, as an untrained policy draws them: the judge reads every one."""

from __future__ import annotations

import numpy as np
import pytest

from gotr1_jax.shapes.detect import MAX_FOUND, find_objects
from gotr1_jax.shapes.vocabulary import BACKGROUND, COLORS, IMAGE_SIZE

N = IMAGE_SIZE
GREEN = COLORS["green"]


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        ((0, N), (0, N)), ((20, 70), (0, N)), ((0, N), (60, 110)), ((0, 13), (0, N)),
        ((1, N), (1, N)),
    ],
)  # fmt: skip
def test_patches_as_wide_as_the_image(rows: tuple[int, int], columns: tuple[int, int]) -> None:
    image = np.full((N, N, 3), BACKGROUND, np.uint8)
    image[slice(*rows), slice(*columns)] = GREEN
    for found in find_objects(image):
        assert found.color == "green" and found.fit < 0.5


def test_blocks_of_random_colors() -> None:
    palette = np.array([BACKGROUND, *COLORS.values()], np.uint8)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        cells = rng.integers(0, len(palette), (seed + 1, seed + 1))
        cell = -(-N // len(cells))
        image = np.kron(palette[cells], np.ones((cell, cell, 1), np.uint8))[:N, :N]
        assert len(find_objects(image)) <= MAX_FOUND
