"""Codes with a meaning of their own: clusters of what a scene shows in a cell.

A cell is the square of pixels that one token stands for. Learned freely, the code of a cell depends
on the whole image and on chance, and a model that paints token by token has to predict all of that.
Here the codes are found first, by k-means over the cells of rendered scenes: a cell is described by
the coverage of each color, a little blurred so that near outlines are near, and by the shape of the
object that covers most of it. The encoder then learns to name the code of each cell, the decoder
to draw an image of the true codes. So an image follows from its scene, and a scene from its plan.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from gotr1_jax.errors import InputError
from gotr1_jax.io.files import atomic_write
from gotr1_jax.io.reading import open_file
from gotr1_jax.shapes.dataset import ShapesSource
from gotr1_jax.shapes.outlines import coverage
from gotr1_jax.shapes.scenes import Scene
from gotr1_jax.shapes.vocabulary import COLORS, IMAGE_SIZE, SHAPES

CELL_CODES_FILE = "cell_codes.npz"
"""Beside the weights of a tokenizer that was trained on codes of cells."""
_COLORS = tuple(COLORS)
_BLUR = 1.0  # pixels, standard deviation
_DETAIL = 8  # the coverage of a cell is described by so many values along each side
# A cell of which no detail is covered by more than this is ground, the code 0.
_GROUND = 0.05
_BLOCK = 16384  # cells compared with all codes at once
# A cell is of several colors if the second one covers so much of it.
_SEVERAL = 0.03
# Clusters of fewer cells than this are put to where cells are described worst.
_FEW = 3


@dataclass(frozen=True)
class CellCodes:
    """Codes of cells; code i is the cluster of centre i - 1, code 0 is ground.

    Attributes:
      centres: float32 (codebook_size - 1, F).
      cell: pixels along a side of a cell.
      shape_weight: of the descriptions, see `describe_cells`.
    """

    centres: np.ndarray
    cell: int
    shape_weight: float

    @property
    def digest(self) -> str:
        """SHA-256 of all that the codes depend on."""
        facts = f"{self.cell} {self.shape_weight!r} {self.centres.shape}".encode()
        return hashlib.sha256(facts + np.ascontiguousarray(self.centres).tobytes()).hexdigest()

    def of_scene(self, scene: Scene) -> np.ndarray:
        """The codes of a scene's cells, int32 (U,), row-major."""
        return self.assign(*describe_cells(scene, self.cell, self.shape_weight))

    def assign(self, features_NF: np.ndarray, drawn_N: np.ndarray) -> np.ndarray:
        """The code of each described cell, int32 (N,)."""
        codes = np.zeros(len(features_NF), np.int32)
        codes[drawn_N] = 1 + _nearest(features_NF[drawn_N].astype(np.float32), self.centres)[0]
        return codes

    def save(self, path: Path) -> None:
        """Writes an .npz file."""
        buffer = io.BytesIO()
        np.savez(buffer, centres=self.centres, cell=self.cell, shape_weight=self.shape_weight)
        atomic_write(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> CellCodes:
        """Reads what `save` wrote. Raises InputError in one line for anything else."""
        try:
            with open_file(path) as file, np.load(file) as data:
                centres = np.asarray(data["centres"], np.float32)
                codes = cls(centres, int(data["cell"]), float(data["shape_weight"]))
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{path} does not hold codes of cells: {error}") from None
        if codes.centres.ndim != 2 or codes.cell < 1 or IMAGE_SIZE % codes.cell:
            raise InputError(f"{path} does not hold codes of cells of images of {IMAGE_SIZE} px")
        return codes

    def embedding(self, size: int) -> np.ndarray:
        """Unit vectors in which codes of like cells are near, float32 (codebook_size, size): the
        centres' largest principal components, each by the root of its spread."""
        points = np.concatenate([np.zeros_like(self.centres[:1]), self.centres])
        left, spread, _ = np.linalg.svd(points - points.mean(0), full_matrices=False)
        size_of_all = min(size, len(spread))
        vectors = np.zeros((len(points), size), np.float32)
        vectors[:, :size_of_all] = left[:, :size_of_all] * np.sqrt(spread[:size_of_all])
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


@dataclass(frozen=True)
class SceneCodes:
    """The examples of a source, with the true codes of their scenes in place of images."""

    source: ShapesSource
    codes: CellCodes

    @property
    def key(self) -> str:
        """What the codes of an example depend on, besides the codes' own digest."""
        return f"true codes of {self.source.key}"

    def __len__(self) -> int:
        return len(self.source)

    def image(self, index: int) -> np.ndarray:
        """int32 (U,)."""
        return self.codes.of_scene(self.source[index].scene)


def describe_cells(scene: Scene, cell: int, shape_weight: float) -> tuple[np.ndarray, np.ndarray]:
    """What a scene shows in each cell of `cell` pixels, row-major.

    Returns:
      features, float16 (U, F): coverage by each color, and `shape_weight` at the shape that covers
      most; and whether anything is drawn there, bool (U,).
    """
    shown = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.float32)
    by_color = np.zeros((len(_COLORS), IMAGE_SIZE, IMAGE_SIZE), np.float32)
    by_shape = np.zeros((len(SHAPES), IMAGE_SIZE, IMAGE_SIZE), np.float32)
    for obj in reversed(scene.draw_order):
        x1, y1, x2, y2 = (v * IMAGE_SIZE for v in obj.relative_box)
        left, top, mask = coverage(obj.spec.shape, x1, y1, x2, y2, IMAGE_SIZE)
        place = slice(top, top + mask.shape[0]), slice(left, left + mask.shape[1])
        visible = mask * (1 - shown[place])
        shown[place] += visible
        by_color[_COLORS.index(obj.spec.color)][place] += visible
        by_shape[SHAPES.index(obj.spec.shape)][place] += visible
    blurred = ndimage.gaussian_filter(by_color, (0, _BLUR, _BLUR))
    colors = _by_cell(_pool(blurred, max(cell // _DETAIL, 1)), min(_DETAIL, cell))
    colors = colors.reshape(len(colors), -1)
    shapes = _pool(by_shape, cell).reshape(len(SHAPES), -1).T
    largest = (shapes == shapes.max(axis=1, keepdims=True)) & (shapes > 0)
    sure = np.minimum(1, shapes.sum(axis=1, keepdims=True) / _GROUND)
    features = np.concatenate([colors, shape_weight * largest * sure], axis=1)
    return features.astype(np.float16), colors.max(axis=1) > _GROUND


def _pool(maps: np.ndarray, factor: int) -> np.ndarray:
    """Means of squares of `factor` pixels of maps (K, H, W)."""
    K, H, W = maps.shape
    return maps.reshape(K, H // factor, factor, W // factor, factor).mean(axis=(2, 4))


def _by_cell(maps: np.ndarray, side: int) -> np.ndarray:
    """Maps (K, H, W) cut into cells of `side` values a side, (U, K, side, side)."""
    K, H, W = maps.shape
    cut = maps.reshape(K, H // side, side, W // side, side).transpose(1, 3, 0, 2, 4)
    return cut.reshape(-1, K, side, side)


def cluster_cells(
    features_NF: np.ndarray, count: int, iterations: int, seed: int, mixed_share: float = 0.0
) -> np.ndarray:
    """Centres by k-means of described cells; a cluster of few cells moves to where cells are far
    from all.

    mixed_share: share of the clusters that are of cells of several colors; these are rare and all
      different. 0: all cells alike.

    Returns float32 (count, F). Raises ValueError for fewer cells than clusters.
    """
    cells = features_NF.astype(np.float32)
    if not mixed_share:
        return _k_means(cells, count, iterations, seed)
    mixed, count_mixed = _is_mixed(cells), round(count * mixed_share)
    pure = _k_means(cells[~mixed], count - count_mixed, iterations, seed)
    return np.concatenate([pure, _k_means(cells[mixed], count_mixed, iterations, seed)])


def _is_mixed(cells: np.ndarray) -> np.ndarray:
    """Which described cells (N, F) are of several colors, bool (N,)."""
    by_color = cells[:, : cells.shape[1] - len(SHAPES)].reshape(len(cells), len(_COLORS), -1)
    return np.sort(by_color.mean(axis=2), axis=1)[:, -2] > _SEVERAL


def _k_means(cells: np.ndarray, count: int, iterations: int, seed: int) -> np.ndarray:
    """Centres of the clusters of cells, float32 (count, F)."""
    if len(cells) < count:
        raise ValueError(f"{len(cells)} cells cannot make {count} clusters")
    rng = np.random.default_rng(seed)
    centres = cells[rng.choice(len(cells), count, replace=False)]
    for turn in range(iterations):
        chosen, distance = _nearest(cells, centres)
        order = np.argsort(chosen, kind="stable")
        sizes = np.bincount(chosen, minlength=count)
        filled = np.flatnonzero(sizes)
        starts = np.searchsorted(chosen[order], filled)
        sums = np.add.reduceat(cells[order], starts, axis=0)
        centres[filled] = sums / sizes[filled, None]
        few = np.flatnonzero(sizes < _FEW)
        if len(few) and turn + 2 < iterations and distance.sum() > 0:
            weights = distance / distance.sum()
            few = few[: np.count_nonzero(weights)]
            centres[few] = cells[rng.choice(len(cells), len(few), replace=False, p=weights)]
    return centres


def _nearest(cells: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centre of each cell, and the squared distance to it."""
    chosen = np.empty(len(cells), np.int32)
    distance = np.empty(len(cells), np.float64)
    lengths = np.square(centres).sum(axis=1)
    for start in range(0, len(cells), _BLOCK):
        block = cells[start : start + _BLOCK]
        scores = lengths - 2 * block @ centres.T
        chosen[start : start + _BLOCK] = scores.argmin(axis=1)
        least = scores.min(axis=1) + np.square(block).sum(axis=1)
        distance[start : start + _BLOCK] = np.maximum(least, 0)
    return chosen, distance
