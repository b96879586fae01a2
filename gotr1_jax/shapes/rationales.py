"""Rationales of the shapes world: plans in plain words, without boxes.

"a small red circle (above left) left of a large blue square (right)": what is drawn, every size
said, and where on the canvas each object stands, in thirds of it. Only words that captions and
plans have, but for "center".
"""

from __future__ import annotations

from gotr1_jax.shapes.relations import relation_score
from gotr1_jax.shapes.vocabulary import IMAGE_SIZE, OPPOSITES
from gotr1_jax.shapes.world import PixelBox, Scene

_ROWS = ("above", "", "below")
_COLUMNS = ("left", "", "right")
CENTER = "center"


def write_rationale(scene: Scene) -> str:
    """The rationale of what is drawn, objects in the caption's order.

    Where the image contradicts the caption, so does the rationale: it is true of the image.
    """
    pieces = [f"a {obj.spec.name} ({place_in_words(obj.box)})" for obj in scene.objects]
    relation = _true_relation(scene)
    if relation is not None:
        pieces[:2] = [f"{pieces[0]} {relation} {pieces[1]}"]
    return " and ".join(pieces)


def place_in_words(box: PixelBox) -> str:
    """The third of the canvas, each way, that the middle of a box lies in: "above left"."""
    x1, y1, x2, y2 = box
    row, column = (min(3 * (a + b) // (2 * IMAGE_SIZE), 2) for a, b in ((y1, y2), (x1, x2)))
    return " ".join(word for word in (_ROWS[row], _COLUMNS[column]) if word) or CENTER


def _true_relation(scene: Scene) -> str | None:
    """The caption's relation where it is drawn so, else the side on which the first object is."""
    relation = scene.caption.relation
    if relation is None:
        return None
    first, second = (tuple(v / IMAGE_SIZE for v in obj.box) for obj in scene.objects[:2])
    return max((relation, *OPPOSITES), key=lambda name: relation_score(name, first, second))
