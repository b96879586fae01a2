"""The judge of the shapes world: exact, from the plan's text and the image's pixels.

How the terms are computed (each in [0, 1], 1 only when everything is right):

likeness of an object to one in the caption (a wanted one)
    (half for the color + half for the shape)²; in an image the shape's half is multiplied by
    `DetectedObject.fit`. One wrong attribute thus leaves a quarter. A wrong size, or a missing one
    where the caption states a size, leaves half of that. Objects are assigned to wanted ones one
    to one, for the largest sum of likenesses.

agreement of a list of objects with a caption
    That sum, divided by the larger of the two counts: missing and extra objects both lower it.

sem     agreement of the planned names with the caption, times 1/2 if the words between the first
        two objects contradict the caption's relation, times the share of the plan's markers that
        belong to complete objects. A name that is not exactly "[size] color shape" has likeness 0.

spa     layout · relation. layout = (share of planned objects whose box is valid as written)
        · (smaller over larger count of planned and wanted objects) · (1 - the largest share of
        one planned box that is inside another, but for two of which one is in front).
        relation = `relation_score` of the planned boxes of the first two objects; 0 if one of
        them is not planned or its box is invalid; 1 if the caption has no relation.

ri      mean IoU of the planned boxes and the detected boxes of the same color and shape, matched
        optimally; 0 for each object that is not found, has no box, or is past the parser's limit.
        Sizes are not compared by name: a wrong size already lowers the IoU.

pi      agreement of the detected objects with the caption, times 1/4 + 3/4 the relation of the
        first two objects: `relation_score` of their detected boxes, or for "in front of" and
        "behind" `DetectedObject.in_front`; 0 if one is missing.

verdict 1 if the whole caption is true of the image, else 0: exactly the objects that it names,
        each with its color, shape and stated size, and the relation of the first two. Shape and
        relation are graded and count as true from TRUE_FROM on. The plan does not count.

A plan without any object gets sem = spa = ri = 0. For a caption that is not of this world sem,
spa, pi and verdict are NaN, and ri too unless a planned name is of this world.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import numpy as np
from scipy.optimize import linear_sum_assignment

from gotr1_jax.plan import Box, Plan, box_to_pixels, match_objects, normalise_name
from gotr1_jax.shapes.captions import CaptionSpec, ObjectSpec, parse_caption
from gotr1_jax.shapes.detect import DetectedObject, find_objects
from gotr1_jax.shapes.scenes import relation_score
from gotr1_jax.shapes.vocabulary import DEPTHS, OPPOSITES, RELATIONS

SHAPES_TERMS = ("sem", "spa", "ri", "pi", "verdict")

WRONG_SIZE = 1 / 2  # factor of a likeness
AGAINST_RELATION = 0.5  # factor of sem
PI_FLOOR = 0.25  # factor of pi at relation 0
TRUE_FROM = 0.5  # degree from which verdict takes a shape or a relation as true
_MARKERS_EACH = 4  # of a complete object


@dataclass(frozen=True)
class ShapesScores:
    """The result of `judge_sample`.

    Attributes:
        scores: one value in [0, 1] or NaN for each of SHAPES_TERMS.
        found: the objects in the image, largest first.
        plan_relation: degree in [0, 1] to which the planned boxes fit the caption's relation; 1 if
            it has none, 0 without a planned object.
        rationale: the counts and relations behind the scores, one line.
    """

    scores: dict[str, float]
    found: tuple[DetectedObject, ...]
    plan_relation: float
    rationale: str

    @property
    def detections(self) -> tuple[tuple[str, Box], ...]:
        """(name, box) of the objects found."""
        return tuple((item.name, item.box) for item in self.found)


def judge_sample(caption: str, plan: Plan, image: np.ndarray) -> ShapesScores:
    """Score a caption, its plan and its image, uint8 (H, W, 3) RGB; see the module's text.

    Deterministic; takes a few milliseconds at most.
    """
    spec, found = parse_caption(caption), find_objects(image)
    names = [parse_name(item.name) for item in plan.objects]
    ri, num_found = _score_overlap(plan, names, found) if plan.objects else (0.0, 0)
    sem = spa = plan_relation = 0.0
    notes = []
    if spec is None:
        sem = spa = pi = verdict = relation = float("nan")
        ri = ri if any(names) else float("nan")
        notes.append("the caption is not of the shapes world")
    else:
        pi, relation = _score_image(spec, found)
        verdict = float(is_true_of(spec, found))
        if plan.objects:
            sem, spa, plan_relation = _score_plan(plan, spec, names)
        notes.append(f"wanted {len(spec.objects)}")
    if plan.objects:
        notes.append(f"planned {len(plan.objects) + plan.num_dropped}, {num_found} of them found")
    notes.append(f"in the image: {', '.join(f.name for f in found) or 'nothing'}")
    if spec is not None and spec.relation is not None:
        planned = f"plan {plan_relation:.2f}, " if plan.objects else ""
        notes.append(f"{spec.relation}: {planned}image {relation:.2f}")
    return ShapesScores(
        dict(zip(SHAPES_TERMS, (sem, spa, ri, pi, verdict))),
        tuple(found),
        plan_relation,
        "; ".join(notes),
    )


@lru_cache(maxsize=4096)
def parse_name(name: str) -> ObjectSpec | None:
    """The object named "[size] color shape", else None; case and spacing are ignored."""
    caption = parse_caption(f"a {normalise_name(name)}")
    return caption.objects[0] if caption is not None and len(caption.objects) == 1 else None


def likeness(wanted: ObjectSpec, given: ObjectSpec | DetectedObject | None) -> float:
    """Likeness in [0, 1] of a planned or detected object to a wanted one; 0 for None."""
    if given is None:
        return 0.0
    fit = given.fit if isinstance(given, DetectedObject) else 1.0
    kind = ((given.color == wanted.color) + fit * (given.shape == wanted.shape)) / 2
    return kind**2 * (1.0 if wanted.size in (None, given.size) else WRONG_SIZE)


def _assign(
    caption: CaptionSpec, given: Sequence[ObjectSpec | DetectedObject | None], num_given: int
) -> tuple[float, list[int | None]]:
    """Agreement in [0, 1] of given objects with the caption, and the index of the given object
    assigned to each wanted one, None if no object of likeness above 0 was left.

    `num_given` also counts objects that are not in `given`.
    """
    table = np.array([[likeness(wanted, item) for item in given] for wanted in caption.objects])
    chosen: list[int | None] = [None] * len(table)
    total = 0.0
    for row, column in zip(*linear_sum_assignment(table, maximize=True)):
        if table[row, column] > 0:
            chosen[row] = int(column)
            total += float(table[row, column])
    return total / max(len(table), num_given), chosen


def _planned_relation(caption: CaptionSpec, first: Box | None, second: Box | None) -> float:
    """Degree in [0, 1] to which two planned boxes fit the caption's relation; 1 if it has none."""
    if caption.relation is None:
        return 1.0
    if first is None or second is None:
        return 0.0
    a, b = (box_to_pixels(box, 1, 1) for box in (first, second))  # fractions of the image
    score = relation_score(caption.relation, a, b)
    if caption.objects[0] == caption.objects[1]:  # either order is right
        score = max(score, relation_score(caption.relation, b, a))
    return score


def _shown_relation(
    caption: CaptionSpec, found: Sequence[DetectedObject], first: int | None, second: int | None
) -> float:
    """Degree in [0, 1] to which two of the found objects show the caption's relation."""
    if caption.relation not in DEPTHS or first is None or second is None:
        boxes = (None if i is None else found[i].box for i in (first, second))
        return _planned_relation(caption, *boxes)
    front, back = (first, second) if caption.relation == "in front of" else (second, first)
    return found[front].in_front[back]


def _contradicts(plan: Plan, caption: CaptionSpec, chosen: Sequence[int | None]) -> bool:
    """Whether the words between the first two objects contradict the caption's relation.

    "next to" does not contradict left or right.
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
    if "next to" in (stated, caption.relation):
        return not {stated, caption.relation} <= {"next to", "left of", "right of"}
    return stated != caption.relation


def _layout(plan: Plan, num_planned: int, num_wanted: int, overlapping: Sequence[int]) -> float:
    """The layout factor of spa; the two objects of the indices `overlapping` may overlap."""
    given = [(i, o.box) for i, o in enumerate(plan.objects) if o.box and o.box.is_valid]
    boxes = np.array([(b.x1, b.y1, b.x2, b.y2) for _, b in given], np.float64).reshape(-1, 4)
    share = len(boxes) / num_planned
    count = min(num_planned, num_wanted) / max(num_planned, num_wanted)
    corner = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    inner = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - corner
    shared = np.clip(inner, 0, None).prod(axis=-1)
    area = np.diagonal(shared)
    covered = shared / np.maximum(np.minimum(area[:, None], area[None, :]), 1.0)
    excused = np.array([i in overlapping for i, _ in given], bool)
    covered[np.outer(excused, excused)] = 0.0
    np.fill_diagonal(covered, 0.0)
    return share * count * (1.0 - float(covered.max(initial=0.0)))


def _score_plan(
    plan: Plan, caption: CaptionSpec, names: Sequence[ObjectSpec | None]
) -> tuple[float, float, float]:
    """(sem, spa, relation of the planned boxes) of a plan that has objects."""
    num_planned = len(plan.objects) + plan.num_dropped
    agreement, chosen = _assign(caption, names, num_planned)
    complete = _MARKERS_EACH * (len(plan.boxes) + plan.num_dropped)
    sem = agreement * (complete / (complete + plan.num_stray))
    if _contradicts(plan, caption, chosen):
        sem *= AGAINST_RELATION
    boxes = [None if i is None else plan.objects[i].box for i in chosen[:2]]
    first, second, *_ = [b if b is not None and b.is_valid else None for b in boxes] + [None]
    relation = _planned_relation(caption, first, second)
    overlapping = [i for i in chosen[:2] if i is not None] if caption.relation in DEPTHS else []
    layout = _layout(plan, num_planned, len(caption.objects), overlapping)
    return sem, layout * relation, relation


def _score_image(caption: CaptionSpec, found: Sequence[DetectedObject]) -> tuple[float, float]:
    """(pi, relation of the detected boxes)."""
    agreement, chosen = _assign(caption, found, len(found)) if found else (0.0, [])
    first, second, *_ = [*chosen, None, None]
    relation = _shown_relation(caption, found, first, second)
    return agreement * (PI_FLOOR + (1 - PI_FLOOR) * relation), relation


def is_shown_by(wanted: ObjectSpec, given: DetectedObject) -> bool:
    """Whether an object in the image has the color, shape and stated size of one in a caption."""
    kind = given.fit >= TRUE_FROM and given.kind == wanted.kind
    return kind and wanted.size in (None, given.size)


def is_true_of(caption: CaptionSpec, found: Sequence[DetectedObject]) -> bool:
    """The verdict: whether a caption is true of the objects detected in an image."""

    def holds(order: Sequence[int]) -> bool:
        first, second, *_ = [*order, None]
        named = all(is_shown_by(w, found[i]) for w, i in zip(caption.objects, order))
        return named and _shown_relation(caption, found, first, second) >= TRUE_FROM

    everything = range(len(found))
    return len(found) == len(caption.objects) and any(map(holds, permutations(everything)))


def _score_overlap(
    plan: Plan, names: Sequence[ObjectSpec | None], found: Sequence[DetectedObject]
) -> tuple[float, int]:
    """(ri, number of planned objects that were detected) of a plan that has objects."""
    planned = [
        (f"{spec.color} {spec.shape}" if spec else item.name, item.box if spec else None)
        for spec, item in zip(names, plan.objects)
    ]
    seen = [(" ".join(f.kind), f.box) for f in found if f.kind is not None]
    matches = match_objects(planned, seen)
    total = sum(overlap for _, _, overlap in matches)
    return total / (len(planned) + plan.num_dropped), sum(j is not None for _, j, _ in matches)
