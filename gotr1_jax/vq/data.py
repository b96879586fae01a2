"""Training and evaluation images of the tokenizer: scenes of the shapes world and variants of them.

A variant is the same scene with some objects taken away or one added. Where the two images agree,
the tokens should agree too, which `vq.losses.consistency_loss` trains and `vq.evaluation` measures.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from gotr1_jax.errors import InputError
from gotr1_jax.models.config import VQConfig
from gotr1_jax.parallel.progress import Progress
from gotr1_jax.shapes.cells import CellCodes, cluster_cells, describe_cells
from gotr1_jax.shapes.dataset import Example, ShapesSource
from gotr1_jax.shapes.render import render
from gotr1_jax.shapes.scenes import Scene
from gotr1_jax.shapes.vocabulary import DEPTHS, IMAGE_SIZE
from gotr1_jax.vq.config import CellCodesConfig, VqTrainConfig


@dataclass(frozen=True)
class SceneImages:
    """Rendered scenes.

    Attributes:
      examples: N examples of the shapes world.
      scenes: for each, its V scenes: its own and, if V is 2, a variant of it.
      images: uint8 (N, V, H, W, 3).
      codes: with codes of cells, the true codes of the scenes, int32 (N, U).
    """

    examples: tuple[Example, ...]
    scenes: tuple[tuple[Scene, ...], ...]
    images: np.ndarray
    codes: np.ndarray | None = None

    @cached_property
    def object_shares(self) -> np.ndarray:
        """The share of each example's own scene in all their objects, float64 (N,)."""
        objects = np.array([len(scenes[0].objects) for scenes in self.scenes])
        return objects / objects.sum()


def draw_scenes(
    split: str, seed: int, count: int, variants: bool, depth_weight: float = 1.0
) -> SceneImages:
    """The first `count` scenes of a split, each with a variant if `variants`, and their images.

    depth_weight: how much more often than in the split an object covers another one; 1: as there.
      Of the scenes without depth only one in so many is taken.
    """
    source = ShapesSource(split, 2**31 - 1, seed)
    examples: list[Example] = []
    scenes: list[tuple[Scene, ...]] = []
    images = np.empty((count, 1 + variants, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    index = -1
    with Progress("images", count) as progress:
        while len(examples) < count:
            index += 1
            rng = np.random.default_rng((seed, zlib.crc32(split.encode()), index, 1))
            example = source[index]
            in_depth = example.scene.caption.relation in DEPTHS
            if depth_weight > 1 and not in_depth and rng.random() >= 1 / depth_weight:
                continue
            shown = [example.scene]
            if variants:
                other = examples[-1] if examples else source[count - 1]
                shown.append(sample_variant(rng, shown[0], other.scene))
            images[len(examples)] = [render(scene) for scene in shown]
            examples.append(example)
            scenes.append(tuple(shown))
            progress.update(len(examples))
    return SceneImages(tuple(examples), tuple(scenes), images)


def code_cells(
    data: SceneImages, config: CellCodesConfig, model: VQConfig, seed: int
) -> tuple[SceneImages, CellCodes]:
    """The scenes with their true codes, and these codes, of the first `config.images` scenes.

    Raises InputError if their cells are fewer than the codes.
    """
    cell = model.downsampling
    described = [describe_cells(s[0], cell, config.shape_weight) for s in data.scenes]
    features, drawn = (np.stack(part) for part in zip(*described))
    first = slice(0, config.images)
    cells = features[first][drawn[first]]
    centres = _cluster(cells, model.codebook_size - 1, config, seed)
    codes = CellCodes(centres, cell, config.shape_weight)
    N, U = drawn.shape
    true = codes.assign(features.reshape(N * U, -1), drawn.reshape(-1)).reshape(N, U)
    return replace(data, codes=true), codes


def _cluster(cells: np.ndarray, count: int, config: CellCodesConfig, seed: int) -> np.ndarray:
    try:
        return cluster_cells(cells, count, config.iterations, seed, config.mixed_share)
    except ValueError as error:
        raise InputError(
            f"cells.images is {config.images}: {error}; cluster more images, or take fewer codes "
            "(model.codebook_size)"
        ) from None


def sample_variant(rng: np.random.Generator, scene: Scene, other: Scene) -> Scene:
    """`scene` with other objects: each of its own stays with probability 1/2, and one of `other`
    is added with probability 1/2, or always if all or none of its own stayed.

    It has at least one object, which may cover another one; its caption is not true of it.
    """
    kept = [obj for obj in scene.objects if rng.random() < 0.5]
    add = rng.random() < 0.5
    if add or len(kept) in (0, len(scene.objects)):
        added = other.objects[int(rng.integers(len(other.objects)))]
        kept.insert(int(rng.integers(len(kept) + 1)), added)
    return replace(scene, objects=tuple(kept))


def batch_rows(config: VqTrainConfig, step: int) -> int:
    """Batch size of a step, counted from 1: of crops first, then of full images."""
    return config.crop.batch_size if step <= config.crop.steps else config.batch_size


def batch_of_codes(
    data: SceneImages, config: VqTrainConfig, step: int, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the batch of a step with codes of cells: images uint8 (B, H, W, 3), codes (B, U).

    A scene is drawn as often as it has objects. Depends only on seed and step.
    """
    assert data.codes is not None
    rng = np.random.default_rng((config.seed, step))
    index = rng.choice(len(data.images), config.batch_size, p=data.object_shares)[rows]
    return data.images[index, 0], data.codes[index]


def batch_of_step(
    data: SceneImages, config: VqTrainConfig, step: int, rows: np.ndarray | None = None
) -> np.ndarray:
    """The batch of a step, or only its `rows`, uint8 (B, H, W, 3).

    With variants, rows 2k and 2k + 1 are the same place of a scene and of its variant. Depends only
    on seed and step, so that a resumed run sees the same batches.
    """
    rng, B, V = np.random.default_rng((config.seed, step)), batch_rows(config, step), _count(data)
    rows = np.arange(B) if rows is None else rows
    drawn = rng.integers(0, len(data.images), B // V)
    if step > config.crop.steps:
        return data.images[drawn[rows // V], rows % V]
    size = config.crop.size
    corners = rng.integers(0, IMAGE_SIZE - size + 1, (B // V, 2))
    on_object = rng.random(B // V) < config.crop.on_objects
    which, offsets = rng.random(B // V), rng.uniform(0, size, (B // V, 2))
    for k in np.flatnonzero(on_object):
        centre = _object_centre(data.scenes[drawn[k]], which[k])
        corners[k] = np.clip(np.round(centre - offsets[k]), 0, IMAGE_SIZE - size)
    return np.stack([
        data.images[drawn[k], row % V, y : y + size, x : x + size]
        for row in rows for k in [row // V] for y, x in [corners[k]]
    ])  # fmt: skip


def _count(data: SceneImages) -> int:
    return data.images.shape[1]


def _object_centre(scenes: Sequence[Scene], which: float) -> np.ndarray:
    """(y, x) in pixels of the centre of an object; `which` in [0, 1) selects it."""
    objects = [obj for scene in scenes for obj in scene.objects]
    x1, y1, x2, y2 = objects[int(which * len(objects))].relative_box
    return np.array([y1 + y2, x1 + x2]) / 2 * IMAGE_SIZE
