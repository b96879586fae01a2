"""Plans as objects: the grammar of a reasoning chain; boxes, editing, matching, drawing.

>>> from gotr1_jax.plan import Box, parse_plan, replace_box
>>> plan = parse_plan("A <|obj_start|>cat<|obj_end|> <|box_start|>(10,20),(400,500)<|box_end|>")
>>> plan.objects[0].name, plan.objects[0].box
('cat', Box(x1=10, y1=20, x2=400, y2=500))
>>> str(replace_box(plan, plan.index("cat"), Box(500, 20, 900, 500)))
'A <|obj_start|>cat<|obj_end|> <|box_start|>(500,20),(900,500)<|box_end|>'
"""

from __future__ import annotations

from gotr1_jax.plan.boxes import Box, box_from_pixels, box_to_pixels, iou
from gotr1_jax.plan.drawing import draw_overlay
from gotr1_jax.plan.editing import add_object, remove_object, rename_object, replace_box, swap_boxes
from gotr1_jax.plan.grammar import (
    BOX_END,
    BOX_START,
    MAX_OBJECTS,
    OBJ_END,
    OBJ_START,
    Plan,
    PlanObject,
    format_object,
    has_unread_boxes,
    normalise_name,
    parse_plan,
)
from gotr1_jax.plan.matching import match_objects

__all__ = [
    "BOX_END",
    "BOX_START",
    "MAX_OBJECTS",
    "OBJ_END",
    "OBJ_START",
    "Box",
    "Plan",
    "PlanObject",
    "add_object",
    "box_from_pixels",
    "box_to_pixels",
    "draw_overlay",
    "format_object",
    "has_unread_boxes",
    "iou",
    "match_objects",
    "normalise_name",
    "parse_plan",
    "remove_object",
    "rename_object",
    "replace_box",
    "swap_boxes",
]
