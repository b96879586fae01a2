"""Images of the shapes world: extents, subpixel positions, hidden parts, shading."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from gotr1_jax.plan import Box
from gotr1_jax.shapes.captions import CaptionSpec, ObjectSpec
from gotr1_jax.shapes.dataset import sample_example
from gotr1_jax.shapes.outlines import coverage, shape_mask
from gotr1_jax.shapes.render import render
from gotr1_jax.shapes.scenes import Scene, SceneObject, sample_scene
from gotr1_jax.shapes.vocabulary import (
    BACKGROUND,
    COLORS,
    DEPTHS,
    HIDDEN,
    HIGHLIGHT,
    IMAGE_SIZE,
    SHAPES,
)

RED = ObjectSpec("circle", "red")


def coverage_of(obj: SceneObject) -> np.ndarray:
    full = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.float32)
    x1, y1, x2, y2 = (v * IMAGE_SIZE for v in obj.relative_box)
    left, top, patch = coverage(obj.spec.shape, x1, y1, x2, y2, IMAGE_SIZE)
    full[top : top + patch.shape[0], left : left + patch.shape[1]] = patch
    return full


def test_boxes_are_the_extents_in_the_image() -> None:
    rng = np.random.default_rng(6)
    for _ in range(60):
        scene = sample_example(rng, "all", 0.5).scene
        image = render(scene)
        assert image.shape == (IMAGE_SIZE, IMAGE_SIZE, 3) and image.dtype == np.uint8
        painted = (image != BACKGROUND).any(-1)
        outside = painted.copy()
        for obj in scene.objects:
            x1, y1, x2, y2 = (v * IMAGE_SIZE for v in obj.relative_box)
            columns = slice(int(x1), int(np.ceil(x2)))
            rows = slice(int(y1), int(np.ceil(y2)))
            outside[rows, columns] = False
            ys, xs = np.nonzero(coverage_of(obj))
            # A tip may cover so little of a pixel that it does not show.
            assert 0 <= xs.min() - columns.start <= 1 and 0 <= columns.stop - xs.max() - 1 <= 1
            assert 0 <= ys.min() - rows.start <= 1 and 0 <= rows.stop - ys.max() - 1 <= 1
        assert not outside.any()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_thousandth_moves_the_drawn_edge(shape: str) -> None:
    """Positions are finer than pixels: the image differs, and its weight moves by as much."""
    spec = ObjectSpec(shape, "red", "medium")

    def middle(x: int, y: int) -> tuple[np.ndarray, np.ndarray]:
        box = Box(x, y, x + 300, y + 300)
        image = render(Scene(CaptionSpec((spec,)), (SceneObject(spec, box),))).astype(float)
        weight = np.abs(image - BACKGROUND).sum(-1)
        at = np.arange(IMAGE_SIZE) * 1000 / IMAGE_SIZE
        return image, np.array([(weight.sum(k) * at).sum() / weight.sum() for k in (0, 1)])

    start, place = middle(300, 400)
    for dx, dy in ((1, 0), (0, 1), (3, 5)):
        image, moved = middle(300 + dx, 400 + dy)
        assert (image != start).any()
        np.testing.assert_allclose(moved - place, (dx, dy), atol=0.6)


def test_images_scale_with_their_size() -> None:
    scene = Scene(CaptionSpec((RED,)), (SceneObject(RED, Box(125, 250, 500, 625)),))
    for size in (64, 70, 96, 256):
        painted = (np.abs(render(scene, size).astype(int) - BACKGROUND).sum(-1)) > 120
        ys, xs = np.nonzero(painted)
        found = np.array((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)) / size
        np.testing.assert_allclose(found, (0.125, 0.25, 0.5, 0.625), atol=1 / size)


def test_objects_are_shaded_from_their_color_towards_the_background() -> None:
    for color, rgb in COLORS.items():
        spec = ObjectSpec("square", color)
        box = Box(250, 250, 750, 750)
        image = render(Scene(CaptionSpec(()), (SceneObject(spec, box),))).astype(float)
        inside = image[33:95, 33:95].reshape(-1, 3) - BACKGROUND
        line = np.subtract(rgb, BACKGROUND).astype(float)
        along = inside @ line / (line @ line)
        assert along.max() == pytest.approx(1, abs=0.02)  # far from the highlight
        assert 1 - HIGHLIGHT - 0.01 < along.min() < 1 - HIGHLIGHT + 0.02
        assert np.abs(inside - along[:, None] * line).max() <= 1  # of the same direction


def test_shapes_differ_where_it_counts() -> None:
    masks = {shape: shape_mask(shape, 30, 30) for shape in SHAPES}
    assert masks["square"].min() == 1
    assert masks["circle"].mean() == pytest.approx(np.pi / 4, abs=0.01)
    assert masks["triangle"].mean() == pytest.approx(0.5, abs=0.01)
    # A moon is open to the right, a heart is broad above, a star is the same left and right.
    assert masks["moon"][15, 25] == 0 < masks["moon"][15, 2]
    assert masks["heart"][5].sum() > 2 * masks["heart"][25].sum()
    np.testing.assert_allclose(masks["star"], masks["star"][:, ::-1], atol=0.15)
    for a, b in combinations(SHAPES, 2):
        union = np.maximum(masks[a], masks[b]).sum()
        assert np.minimum(masks[a], masks[b]).sum() / union < 0.8, (a, b)
    with pytest.raises(ValueError, match="unknown shape 'cross'"):
        shape_mask("cross", 9, 9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("relation", DEPTHS)
def test_one_object_hides_a_part_of_the_other(shape: str, relation: str) -> None:
    """Of each shape, and all four edges of what is behind still show."""
    rng = np.random.default_rng(11)
    spec = CaptionSpec((ObjectSpec(shape, "red"), ObjectSpec("circle", "blue")), relation)
    first, second = sample_scene(rng, spec).objects
    front, back = (first, second) if relation == "in front of" else (second, first)
    both = render(Scene(spec, (first, second), relation == "behind")).astype(int)
    alone = {o: render(Scene(CaptionSpec(()), (o,))).astype(int) for o in (front, back)}
    shown = {o: (np.abs(image - BACKGROUND).sum(-1) > 60) for o, image in alone.items()}
    # What is in front is drawn whole, and hides a part of the other one.
    whole = coverage_of(front) == 1
    assert np.abs(both - alone[front])[whole].max() == 0
    hidden = (shown[back] & whole).sum() / shown[back].sum()
    assert HIDDEN[0] - 0.05 < hidden < HIDDEN[1] + 0.05
    left = shown[back] & ~(coverage_of(front) > 0)
    for axis in (0, 1):
        before, after = (np.flatnonzero(mask.any(axis=axis)) for mask in (shown[back], left))
        assert abs(before[0] - after[0]) <= 1 and abs(before[-1] - after[-1]) <= 1
    other = {"in front of": "behind", "behind": "in front of"}[relation]
    turned = render(Scene(spec, (first, second), other == "behind"))
    assert (turned != both).any()
