"""The judge of the shapes world: exact, from the plan's text and the image's pixels.

How its terms are graded (each in [0, 1], 1 only when everything is right):

likeness of an object to a wanted one
    The square of: half for the color, half for the shape (in an image, times how sure the shape
    is). So one wrong attribute leaves a quarter: a red circle is no blue one. A size that is
    wrong, or is not said where the caption says one, leaves half of that. Objects are assigned to
    wanted ones so that the sum of likenesses is largest, one to one.

agreement of a list of objects with a caption
    That sum, divided by the larger of the two counts: missing and extra objects both lower it.

sem     agreement of the planned names with the caption, times 1/2 where the words between the
        first two objects state a relation against the caption's, times the share of the plan's
        markers that belong to complete objects. A name that is not exactly "[size] color shape"
        is like nothing.

spa     layout · relation. layout = (share of planned objects whose box is valid as written)
        · (smaller over larger count of planned and wanted objects) · (1 - the largest share of
        one planned box that lies inside another). relation = `relation_score` of the planned
        boxes of the first two objects; 0 when one of them is not planned or its box is not
        valid; 1 where the caption has no relation.

ri      mean IoU of the planned boxes and the boxes found of the same color and shape, matched
        optimally; 0 for each object that is not found, has no box, or is past the parser's cap.
        The size is not compared by name: a wrong size already costs overlap.

pi      agreement of the found objects with the caption, times 1/4 + 3/4 `relation_score` of the
        first two objects' found boxes (relation 0 when one is missing).

verdict 1 when everything in the caption is true of the image, else 0: as many objects as it
        names, no more, each of its color and shape, and of its size where that is said, and the
        relation between the first two. Shape and relation, which come in degrees, are true from
        TRUE_FROM on. The plan plays no part. Scored only where it is asked for.

A plan without any object gets sem = spa = ri = 0. A caption that is not of this world cannot be
judged: sem, spa, pi and verdict are NaN, and ri too unless a planned name is of this world.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import numpy as np
from scipy.optimize import linear_sum_assignment

from gotr1_jax.plan import Box, Plan, match_objects, normalise_name
from gotr1_jax.plan.boxes import SCALE
from gotr1_jax.shapes.captions import CaptionSpec, ObjectSpec, parse_caption
from gotr1_jax.shapes.detect import DetectedObject
from gotr1_jax.shapes.relations import relation_score
from gotr1_jax.shapes.vocabulary import OPPOSITES, RELATIONS

WRONG_SIZE = 1 / 2


AGAINST_RELATION = 0.5


PI_FLOOR = 0.25


TRUE_FROM = 0.5


SHAPES_TERMS = ("sem", "spa", "ri", "pi", "verdict")


_MARKERS_EACH = 4


@lru_cache(maxsize=4096)
def parse_name(name: str) -> ObjectSpec | None:
    """The object that a name "[size] color shape" names, or None; case and spacing are free."""
    caption = parse_caption(f"a {normalise_name(name)}")
    return caption.objects[0] if caption is not None and len(caption.objects) == 1 else None


def name_likeness(wanted: ObjectSpec, named: ObjectSpec | None) -> float:
    """Likeness in [0, 1] of a planned name to a wanted object; see the module's text."""
    if named is None:
        return 0.0
    kind = ((named.color == wanted.color) + (named.shape == wanted.shape)) / 2
    return kind**2 * (1.0 if wanted.size in (None, named.size) else WRONG_SIZE)


def found_likeness(wanted: ObjectSpec, found: DetectedObject) -> float:
    """Likeness in [0, 1] of an object in the image to a wanted one."""
    kind = ((found.color == wanted.color) + found.fit * (found.shape == wanted.shape)) / 2
    return kind**2 * (1.0 if wanted.size in (None, found.size) else WRONG_SIZE)


@dataclass(frozen=True)
class _Assignment:
    """The best one-to-one assignment of given objects to wanted ones.

    `agreement` in [0, 1]; `chosen` has, for each wanted object, the index of its given one, or
    None where nothing like it was left.
    """

    agreement: float
    chosen: tuple[int | None, ...]


def _assign(likeness: np.ndarray, num_given: int) -> _Assignment:
    """Assign by a table (wanted, given); `num_given` counts given objects off the table too."""
    chosen: list[int | None] = [None] * len(likeness)
    total = 0.0
    for row, column in zip(*linear_sum_assignment(likeness, maximize=True)):
        if likeness[row, column] > 0:
            chosen[row] = int(column)
            total += float(likeness[row, column])
    return _Assignment(total / max(len(likeness), num_given), tuple(chosen))


def _relation(caption: CaptionSpec, first: Box | None, second: Box | None) -> float:
    """Degree in [0, 1] to which two boxes obey the caption's relation; 1 if it has none."""
    if caption.relation is None:
        return 1.0
    if first is None or second is None:
        return 0.0
    a, b = ((v.x1 / SCALE, v.y1 / SCALE, v.x2 / SCALE, v.y2 / SCALE) for v in (first, second))
    score = relation_score(caption.relation, a, b)
    if caption.objects[0] == caption.objects[1]:  # which is which is then free
        score = max(score, relation_score(caption.relation, b, a))
    return score


def _stated_against(plan: Plan, caption: CaptionSpec, chosen: Sequence[int | None]) -> bool:
    """Whether the words between the first two objects state another relation than the caption.

    "next to" and the two sides do not contradict each other: beside is to the left or right.
    """
    if caption.relation is None:
        return False
    first, second = chosen[0], chosen[1]
    if first is None or second is None or abs(first - second) != 1:
        return False
    earlier, later = sorted((first, second))
    words = normalise_name(plan.text[plan.objects[earlier].end : plan.objects[later].start])
    if words not in RELATIONS:
        return False
    stated = words if first < second else OPPOSITES.get(words, words)
    beside = {"next to", "left of", "right of"}
    if "next to" in (stated, caption.relation):
        return not {stated, caption.relation} <= beside
    return stated != caption.relation


def _layout(plan: Plan, num_planned: int, num_wanted: int) -> float:
    """How well the planned boxes could stand in an image of `num_wanted` objects."""
    boxes = np.array(
        [(b.x1, b.y1, b.x2, b.y2) for _, b in plan.boxes if b.is_valid], np.float64
    ).reshape(-1, 4)
    share = len(boxes) / num_planned
    count = min(num_planned, num_wanted) / max(num_planned, num_wanted)
    corner = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    inner = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - corner
    shared = np.clip(inner, 0, None).prod(axis=-1)
    area = np.diagonal(shared)
    covered = shared / np.maximum(np.minimum(area[:, None], area[None, :]), 1.0)
    np.fill_diagonal(covered, 0.0)
    return share * count * (1.0 - float(covered.max(initial=0.0)))


def _plan_scores(
    plan: Plan, caption: CaptionSpec, specs: Sequence[ObjectSpec | None]
) -> tuple[float, float, float]:
    """(sem, spa, relation of the planned boxes) of a plan that has objects."""
    num_planned = len(plan.objects) + plan.num_dropped
    likeness = np.array([[name_likeness(w, spec) for spec in specs] for w in caption.objects])
    match = _assign(likeness, num_planned)
    complete = _MARKERS_EACH * (len(plan.boxes) + plan.num_dropped)
    clear = complete / (complete + plan.num_stray)
    sem = match.agreement * clear
    if _stated_against(plan, caption, match.chosen):
        sem *= AGAINST_RELATION
    boxes = [None if i is None else plan.objects[i].box for i in match.chosen[:2]]
    first, second, *_ = [b if b is not None and b.is_valid else None for b in boxes] + [None]
    relation = _relation(caption, first, second)
    return sem, _layout(plan, num_planned, len(caption.objects)) * relation, relation


def _paint_score(caption: CaptionSpec, found: Sequence[DetectedObject]) -> tuple[float, float]:
    """(pi, relation of the found boxes)."""
    if not found:
        return 0.0, _relation(caption, None, None)
    likeness = np.array([[found_likeness(w, f) for f in found] for w in caption.objects])
    match = _assign(likeness, len(found))
    first, second, *_ = [None if i is None else found[i].plan_box for i in match.chosen] + [None]
    relation = _relation(caption, first, second)
    return match.agreement * (PI_FLOOR + (1 - PI_FLOOR) * relation), relation


def _is_true(wanted: ObjectSpec, found: DetectedObject) -> bool:
    """Whether an object in the image is the wanted one, in full."""
    kind = found.fit >= TRUE_FROM and found.kind == wanted.kind
    return kind and wanted.size in (None, found.size)


def verdict(caption: CaptionSpec, found: Sequence[DetectedObject]) -> bool:
    """Whether a caption is true of the objects found in an image; see the module's text."""
    if len(found) != len(caption.objects):
        return False

    def holds(order: Sequence[DetectedObject]) -> bool:
        first, second, *_ = [*(f.plan_box for f in order), None]
        named = all(map(_is_true, caption.objects, order))
        return named and _relation(caption, first, second) >= TRUE_FROM

    return any(map(holds, permutations(found)))


def _overlap_score(
    plan: Plan, specs: Sequence[ObjectSpec | None], found: Sequence[DetectedObject]
) -> tuple[float, int]:
    """(ri, number of planned objects that were found) of a plan that has objects."""
    planned = [
        (f"{spec.color} {spec.shape}" if spec else item.name, item.box if spec else None)
        for spec, item in zip(specs, plan.objects)
    ]
    seen = [(" ".join(f.kind), f.plan_box) for f in found if f.kind is not None]
    matches = match_objects(planned, seen)
    total = sum(overlap for _, _, overlap in matches)
    return total / (len(planned) + plan.num_dropped), sum(j is not None for _, j, _ in matches)
