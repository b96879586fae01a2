"""Whether the boxes of a plan hold what a caption asks for: its objects and their relations.

A relation is one of RELATIONS or DEPTHS. `relation_margin` says by how much it holds under a
`LayoutRule`, distances in fractions of the image and areas in fractions of a box; all conditions
are on the boxes as written, in thousandths:

left of, right of, above, below
    Along the relation's axis the second centre lies on the right side of the first, by at least
    the offset across that axis divided by `tilt`. The boxes are `gap` apart along the axis; of a
    rule without one their IoU is at most `overlap`.
next to, of a rule with `furthest`
    As left of or right of, whichever is better, with at most so much distance between the boxes.
next to, of other rules
    The smaller of the centres' two offsets is at most NEAR, and the IoU at most `overlap`.
in front of, behind (DEPTHS), of a rule with `covered`
    The boxes share at least that much of the smaller one, and at most `hidden` of the one behind.
    Which of the two is in front is not said by boxes.

A pair of boxes that holds under UNIDET_RULE scores 1 under T2I-CompBench's UniDet rule (2307.06350;
its "next to" and its four sides), one that holds under the shapes world's rule (`SHAPES_RULE`)
scores 1 under that world's `relation_score`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.optimize import linear_sum_assignment

from gotr1_jax.plan.boxes import LAST, SCALE, Box, iou, shared_area
from gotr1_jax.plan.grammar import Plan, normalise_name

RELATIONS = ("left of", "right of", "above", "below", "next to")  # where boxes stand
DEPTHS = ("in front of", "behind")  # of objects that overlap
NEAR = 300  # below UniDet's 150 of 479 pixels
_ARTICLES = frozenset(("a", "an", "the"))


@dataclass(frozen=True)
class LayoutRule:
    """When a layout counts as right; distances in thousandths of the image.

    Attributes:
      gap: least distance between related boxes along the axis; None: they may overlap.
      tilt: largest offset of the centres across the axis, divided by that along it.
      overlap: largest IoU of related boxes where there is no gap.
      furthest: largest distance of boxes that are next to each other; None: by NEAR.
      covered: least shared area of two boxes in depth, as a share of the smaller one; None: the
        rule has no relations in depth.
      hidden: largest share of the box behind that the other one covers.
      strict: the plan names each object with all the words of the caption and no further objects,
        and no two boxes overlap but those in depth.
      first, last: the frame, the coordinates that repaired boxes have where they had them before.
    """

    gap: int | None = None
    tilt: float = 0.99
    overlap: float = 0.09
    furthest: int | None = None
    covered: float | None = None
    hidden: float = 1.0
    strict: bool = False
    first: int = 0
    last: int = LAST


UNIDET_RULE = LayoutRule()
# FULL_GAP, FULL_TILT, FULL_NEAR, FULL_COVER, FULL_HIDE and BORDER of `shapes.vocabulary`; a test
# compares them.
SHAPES_RULE = LayoutRule(
    gap=30, tilt=0.6, furthest=160, covered=0.12, hidden=0.75, strict=True, first=15, last=985
)


@dataclass(frozen=True)
class LayoutGoal:
    """What a caption asks of a layout.

    Attributes:
      objects: names, without articles.
      relations: (index of the first object, relation, index of the second).
      rule: when they count as right.
    """

    objects: tuple[str, ...]
    relations: tuple[tuple[int, str, int], ...]
    rule: LayoutRule = UNIDET_RULE


@dataclass(frozen=True)
class LayoutCheck:
    """The result of `check_layout`.

    Attributes:
      margin: 0 or more: the layout is right. Below 0 the more is wrong the lower: by 1 for each
        object that is missing or too many, and by the worst of the distances that are not kept.
      reasons: what is wrong, in words; empty for a right layout.
      chosen: the index of the plan's object for each object of the goal; None: there is none.
    """

    margin: float
    reasons: tuple[str, ...]
    chosen: tuple[int | None, ...]

    @property
    def holds(self) -> bool:
        """Whether the layout is right."""
        return self.margin >= 0


def relation_margin(relation: str, a: Box, b: Box, rule: LayoutRule) -> float:
    """By how much box a is `relation` box b, in fractions; below 0: it is not.

    Raises ValueError for a relation that the rule does not have.

    >>> relation_margin("left of", Box(0, 0, 100, 100), Box(300, 0, 400, 100), SHAPES_RULE)
    0.17
    """
    known = RELATIONS if rule.covered is None else (*RELATIONS, *DEPTHS)
    if relation not in known:
        raise ValueError(f"unknown relation {relation!r}; known: {', '.join(known)}")
    if relation in DEPTHS:
        return _depth_margin(*((a, b) if relation == "in front of" else (b, a)), rule)
    overlap = iou(a, b)
    apart = rule.overlap - overlap if overlap else 1.0
    if relation == "next to":
        if rule.furthest is None:
            nearest = min(abs(_offset(a, b, axis)) for axis in (0, 1))
            return min(apart, (NEAR - nearest) / SCALE)
        side = max(relation_margin(name, a, b, rule) for name in ("left of", "right of"))
        return min(side, (rule.furthest - _gap(a, b, 0)) / SCALE)
    if relation in ("right of", "below"):
        a, b = b, a
    axis = relation_axis(relation)
    along, across = _offset(a, b, axis), abs(_offset(a, b, 1 - axis))
    margin = min(rule.tilt * along - across, along - 1)
    if rule.gap is not None:  # boxes that keep it do not overlap
        return min(margin, _distance(a, b, axis) - rule.gap) / SCALE
    return min(apart, margin / SCALE)


def _depth_margin(front: Box, back: Box, rule: LayoutRule) -> float:
    """By how much two boxes overlap enough and not too much, in shares of a box."""
    shared, smaller = shared_area(front, back), min(front.area, back.area)
    if smaller == 0:
        return -1.0
    return min(shared / smaller - (rule.covered or 0.0), rule.hidden - shared / back.area)


def relation_axis(relation: str) -> int:
    """0 for x, 1 for y."""
    return 1 if relation in ("above", "below") else 0


def check_layout(goal: LayoutGoal, plan: Plan) -> LayoutCheck:
    """Compare a plan's boxes with what a caption asks for."""
    chosen = match_names(goal.objects, [item.name for item in plan.objects], goal.rule.strict)
    chosen = _order_equal(goal, plan, chosen)
    boxes = [None if i is None else plan.objects[i].box for i in chosen]
    reasons, margin, wrong = [], 1.0, 0
    for name, box in zip(goal.objects, boxes):
        if box is None or not box.is_valid:
            wrong += 1
            reasons.append(f"no {name}" if box is None else f"the box of {name} is not valid")
    if goal.rule.strict:
        extra = max(0, len(plan.objects) + plan.num_dropped - len(goal.objects))
        wrong += extra
        reasons += [f"{extra} objects too many"] * (extra > 0)
        in_depth = [{i, j} for i, relation, j in goal.relations if relation in DEPTHS]
        valid = [(i, b) for i, b in enumerate(boxes) if b is not None and b.is_valid]
        for (i, p), (j, q) in combinations(valid, 2):
            if {i, j} not in in_depth and (overlap := max(_gap(p, q, 0), _gap(p, q, 1))) < 0:
                margin = min(margin, overlap / SCALE)
                reasons.append("boxes overlap")
    for first, relation, second in goal.relations:
        a, b = boxes[first], boxes[second]
        if a is None or b is None or not (a.is_valid and b.is_valid):
            continue
        found = relation_margin(relation, a, b, goal.rule)
        margin = min(margin, found)
        if found < 0:
            reasons.append(f"{goal.objects[first]} is not {relation} {goal.objects[second]}")
    return LayoutCheck(min(margin, 0.0) - wrong if wrong else margin, tuple(reasons), chosen)


def match_names(
    wanted: Sequence[str], given: Sequence[str], strict: bool
) -> tuple[int | None, ...]:
    """For each wanted name the index of a given one that fits it, one to one; None: none fits.

    A name fits if it has the wanted name's last word or, if `strict`, all of its words. Names with
    the most words in common are preferred, then earlier ones.

    >>> match_names(["dog", "red cup"], ["a shiny red cup", "small dog"], strict=False)
    (1, 0)
    """
    if not wanted or not given:
        return (None,) * len(wanted)
    table = np.array([[_likeness(w, g, strict) for g in given] for w in wanted])
    # Of equal names the order of the caption is kept.
    order = 1e-6 * np.abs(np.subtract.outer(np.arange(len(wanted)), np.arange(len(given))))
    rows, columns = linear_sum_assignment(np.where(table > 0, table - order, 0), maximize=True)
    found = {r: int(c) for r, c in zip(rows, columns) if table[r, c] > 0}
    return tuple(found.get(i) for i in range(len(wanted)))


def name_words(name: str) -> list[str]:
    """The words of a name in small letters, without articles, singular."""
    return [_singular(w) for w in normalise_name(name).split() if w not in _ARTICLES]


def _likeness(wanted: str, given: str, strict: bool) -> float:
    ours, theirs = name_words(wanted), name_words(given)
    if not ours or not theirs:
        return 0.0
    fits = set(ours) <= set(theirs) if strict else ours[-1] in theirs
    return len(set(ours) & set(theirs)) / len({*ours, *theirs}) if fits else 0.0


def _singular(word: str) -> str:
    """An English noun without the usual ending of its plural; other words as they are."""
    if len(word) > 3 and word.endswith(("ches", "shes", "sses", "xes")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and word[-2] not in "su" else word


def _order_equal(
    goal: LayoutGoal, plan: Plan, chosen: tuple[int | None, ...]
) -> tuple[int | None, ...]:
    """Objects of equal names in the order in which their relation holds better."""
    result = list(chosen)
    for first, relation, second in goal.relations:
        i, j = result[first], result[second]
        if goal.objects[first] != goal.objects[second] or i is None or j is None:
            continue
        a, b = plan.objects[i].box, plan.objects[j].box
        if a is not None and b is not None and (
            relation_margin(relation, b, a, goal.rule) > relation_margin(relation, a, b, goal.rule)
        ):  # fmt: skip
            result[first], result[second] = j, i
    return tuple(result)


def _offset(a: Box, b: Box, axis: int) -> float:
    """Of b's centre from a's."""
    if axis:
        return (b.y1 + b.y2 - a.y1 - a.y2) / 2
    return (b.x1 + b.x2 - a.x1 - a.x2) / 2


def _distance(a: Box, b: Box, axis: int) -> int:
    """From a's far side to b's near side; below 0 where they overlap along the axis."""
    return b.y1 - a.y2 if axis else b.x1 - a.x2


def _gap(a: Box, b: Box, axis: int) -> int:
    """The distance of two boxes along an axis, in either order; below 0: they overlap there."""
    return max(_distance(a, b, axis), _distance(b, a, axis))
