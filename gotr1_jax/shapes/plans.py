"""Plans of scenes: with boxes, or as a rationale in plain words.

Both describe what is drawn: where the image contradicts the caption, so does the plan.
"""

from __future__ import annotations

from gotr1_jax.plan import Box, format_object
from gotr1_jax.plan.boxes import SCALE
from gotr1_jax.shapes.scenes import Scene, relation_score
from gotr1_jax.shapes.vocabulary import DEPTHS, SIDES

_ROWS = ("above", "", "below")
_COLUMNS = ("left", "", "right")
CENTER = "center"


def write_plan(scene: Scene) -> str:
    """Every object with its size and its true box, in caption order, joined by the caption's
    relation and by "and"."""
    pieces = [format_object(obj.spec.name, obj.box) for obj in scene.objects]
    return _join(pieces, scene.caption.relation)


def write_rationale(scene: Scene) -> str:
    """ "a small red circle (above left) left of a large blue square (right)".

    Every object with its size and its third of the canvas, in caption order; the relation is the
    caption's if the scene shows it, else the side on which the first object is.
    """
    relation = scene.caption.relation
    if relation is not None:
        first, second = (obj.relative_box for obj in scene.objects[:2])
        # Which one is in front does not show in the boxes, and scenes never reverse it.
        others = (relation,) if relation in DEPTHS else (relation, *SIDES)
        if relation in DEPTHS and relation_score(relation, first, second) == 0:
            others = SIDES
        relation = max(others, key=lambda r: relation_score(r, first, second))
    pieces = [f"a {obj.spec.name} ({place_in_words(obj.box)})" for obj in scene.objects]
    return _join(pieces, relation)


def place_in_words(box: Box) -> str:
    """The third of the canvas, each way, that holds the centre of a box: "above left"."""
    middles = (box.y1 + box.y2, box.x1 + box.x2)
    row, column = (min(3 * both // (2 * SCALE), 2) for both in middles)
    return " ".join(word for word in (_ROWS[row], _COLUMNS[column]) if word) or CENTER


def _join(pieces: list[str], relation: str | None) -> str:
    """Object texts joined by "and", the first two by the relation if there is one."""
    if relation is not None:
        pieces[:2] = [f"{pieces[0]} {relation} {pieces[1]}"]
    return " and ".join(pieces)
