"""A small world of colored shapes with exact captions, plans and images."""

from gotr1_jax.shapes.captions import (
    CaptionSpec,
    ObjectSpec,
    is_heldout,
    parse_caption,
    sample_caption,
    write_caption,
)
from gotr1_jax.shapes.relations import relation_score
from gotr1_jax.shapes.render import render, shape_mask
from gotr1_jax.shapes.vocabulary import BACKGROUND, COLORS, IMAGE_SIZE, RELATIONS, SHAPES, SIZES
from gotr1_jax.shapes.world import (
    Example,
    Scene,
    SceneObject,
    make_plan,
    sample_example,
    sample_scene,
)

__all__ = [
    "BACKGROUND",
    "COLORS",
    "IMAGE_SIZE",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "CaptionSpec",
    "Example",
    "ObjectSpec",
    "Scene",
    "SceneObject",
    "is_heldout",
    "make_plan",
    "parse_caption",
    "relation_score",
    "render",
    "sample_caption",
    "sample_example",
    "sample_scene",
    "shape_mask",
    "write_caption",
]
