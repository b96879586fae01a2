"""Geometric repair: boxes moved as little as possible so that a caption's relations hold.

After the plan repair of arXiv 2608.21713 (names, words and the sizes of the boxes stay, the boxes
are moved along the relation's axis and kept in the frame), with two differences: boxes that are
right already stay where they are, while the paper sets the centres of every plan symmetrically
around the middle; and boxes are also moved across the axis, separated, or brought together where
the relation asks for it. `margin` is the paper's: the distance of the centres along the axis that
is aimed for (it used 0.2). It is approached as far as the frame allows, and is no condition.

How: the pair is moved apart (or together) along the axis in equal parts; what one box cannot go
because of the frame the other goes. Then the boxes are moved towards each other across the axis,
until the relation holds. Boxes that overlap against a `strict` rule are moved to the nearest free
place. Where that fails (relations that share boxes, pairs that must also be moved apart across the
axis), all boxes are moved at once by an integer program (`joint_repair`).

Two boxes in depth ("in front of") are only moved together: where they overlap as they should, other
boxes are moved away from them, and where they do not, nothing is moved. How much of a shape is
hidden, and whether it can still be known, does not show in boxes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from gotr1_jax.plan.boxes import LAST, SCALE, Box
from gotr1_jax.plan.editing import replace_box
from gotr1_jax.plan.grammar import Plan
from gotr1_jax.plan.joint_repair import Corners, solve_layout
from gotr1_jax.plan.relations import (
    DEPTHS,
    NEAR,
    LayoutGoal,
    LayoutRule,
    check_layout,
    relation_axis,
    relation_margin,
)

_ROUNDS = 4  # over all relations: one pair's move can break another's relation
_NO_AIM = -(10**6)

Pair = tuple[Corners, Corners]


@dataclass(frozen=True)
class Repair:
    """The result of `repair_layout`.

    Attributes:
      plan: with the new boxes; the plan itself where nothing was moved.
      moved: indices of the plan's objects that were moved.
      holds: whether the layout is right now.
      reasons: why it is not.
    """

    plan: Plan
    moved: tuple[int, ...]
    holds: bool
    reasons: tuple[str, ...]


def repair_layout(goal: LayoutGoal, plan: Plan, margin: float = 0.0) -> Repair:
    """Moves the boxes of a plan until the goal holds; where that is impossible nothing is moved.

    margin: in [0, 1], distance of the centres of left of, right of, above and below aimed for.
    """
    before = check_layout(goal, plan)
    if before.holds and margin == 0:
        return Repair(plan, (), True, ())
    chosen = [index for index in before.chosen if index is not None]
    boxes = {i: box for i in chosen if (box := plan.objects[i].box) is not None}
    if len(boxes) < len(goal.objects):
        return Repair(plan, (), False, before.reasons)
    for first, relation, second in goal.relations:
        pair = boxes[chosen[first]], boxes[chosen[second]]
        if relation in DEPTHS and relation_margin(relation, *pair, goal.rule) < 0:
            return Repair(plan, (), False, (*before.reasons, "depth is not repaired"))
    frame = _frame_of(list(boxes.values()), goal.rule)
    corners: dict[int, Corners] = {}
    for i, box in boxes.items():
        inside = _into_frame((box.x1, box.y1, box.x2, box.y2), frame)
        if inside is None:
            return Repair(plan, (), False, before.reasons)
        corners[i] = inside
    found = _moved_corners(goal, chosen, corners, frame, round(margin * SCALE), before.holds)
    if found is None:
        holds = before.holds
        return Repair(plan, (), holds, () if holds else (*before.reasons, "no room to repair it"))
    new, moved = plan, []
    for i in sorted(found):
        box = Box(*found[i])
        if box != boxes[i]:
            new = replace_box(new, i, box)
            moved.append(i)
    after = check_layout(goal, new)
    if not after.holds:
        return Repair(plan, (), before.holds, after.reasons)
    return Repair(new, tuple(moved), True, ())


@dataclass(frozen=True)
class _Frame:
    """The coordinates from `first` to `last`."""

    first: int
    last: int


def _frame_of(boxes: Sequence[Box], rule: LayoutRule) -> _Frame:
    """The rule's frame if all boxes are in it, else the whole image."""
    low = min(min(box.x1, box.y1) for box in boxes)
    high = max(max(box.x2, box.y2) for box in boxes)
    inside = rule.first <= low and high <= rule.last
    return _Frame(rule.first, rule.last) if inside else _Frame(0, LAST)


def _into_frame(corners: Corners, frame: _Frame) -> Corners | None:
    """The box shifted into the frame; None if it has no area or is too large."""
    x1, y1, x2, y2 = corners
    if x1 >= x2 or y1 >= y2 or max(x2 - x1, y2 - y1) > frame.last - frame.first:
        return None
    dx, dy = (min(max(frame.first, low), frame.last - (high - low)) - low
              for low, high in ((x1, x2), (y1, y2)))  # fmt: skip
    return x1 + dx, y1 + dy, x2 + dx, y2 + dy


def _moved_corners(
    goal: LayoutGoal, chosen: Sequence[int], corners: Mapping[int, Corners], frame: _Frame,
    margin: int, holds: bool,
) -> dict[int, Corners] | None:  # fmt: skip
    """Moved pair by pair; where that fails and a layout does not hold as it is, all at once.

    Pair by pair first, because it approaches `margin`, and because many layouts have the least sum
    of moves: which of them the solver returns may differ between its versions.
    """
    moved = dict(corners)
    if _move(goal, chosen, moved, frame, margin):
        return moved
    if holds:
        return None
    solved = solve_layout(goal, [corners[i] for i in chosen], frame.first, frame.last)
    return None if solved is None else dict(zip(chosen, solved))


def _move(
    goal: LayoutGoal, chosen: Sequence[int], corners: dict[int, Corners], frame: _Frame, margin: int
) -> bool:
    """Moves `corners` until all relations hold and, if asked for, no boxes overlap."""
    for _ in range(_ROUNDS):
        for first, relation, second in goal.relations:
            i, j = chosen[first], chosen[second]
            pair = _repair_pair(relation, corners[i], corners[j], goal.rule, frame, margin)
            if pair is None:
                return False
            corners[i], corners[j] = pair
        related = {chosen[k] for a, _, b in goal.relations for k in (a, b)}
        if goal.rule.strict and not _separate(corners, related, frame, goal.rule.gap or 0):
            return False
        boxes = {k: Box(*corners[i]) for k, i in enumerate(chosen)}
        if all(
            relation_margin(name, boxes[a], boxes[b], goal.rule) >= 0
            for a, name, b in goal.relations
        ):
            return True
    return False


def _repair_pair(
    relation: str, a: Corners, b: Corners, rule: LayoutRule, frame: _Frame, margin: int
) -> Pair | None:
    """The least move of two boxes after which a is `relation` b; None: there is none."""
    if relation in ("right of", "below"):
        opposite = "left of" if relation == "right of" else "above"
        pair = _repair_pair(opposite, b, a, rule, frame, margin)
        return None if pair is None else (pair[1], pair[0])

    def holds(pair: Pair) -> bool:
        return relation_margin(relation, Box(*pair[0]), Box(*pair[1]), rule) >= 0

    if relation in DEPTHS or relation == "next to":
        if holds((a, b)):
            return a, b
        return None if relation in DEPTHS else _nearest_pair(a, b, rule, frame, holds)
    axis = relation_axis(relation)
    aim = _limit_aim(a, b, axis, margin, frame)
    if holds((a, b)) and _offset2(a, b, axis) >= aim:
        return a, b
    found = next((p for p in _pairs_along(a, b, axis, rule, frame, aim) if holds(p)), None)
    if found is None and holds((a, b)):
        return a, b
    return found


def _limit_aim(a: Corners, b: Corners, axis: int, margin: int, frame: _Frame) -> int:
    """Twice the distance of the centres that is aimed for, as far as the frame allows."""
    sizes = a[axis + 2] - a[axis] + b[axis + 2] - b[axis]
    most = 2 * (frame.last - frame.first) - sizes
    return min(2 * margin, most) if margin else _NO_AIM


def _pairs_along(
    a: Corners, b: Corners, axis: int, rule: LayoutRule, frame: _Frame, aim: int = _NO_AIM
) -> Iterator[Pair]:
    """The pair with a on the low side of b, ever further apart, each also aligned."""
    offset = _offset2(a, b, axis)
    # Nearer than that nothing holds: the centres in the other order, or less than the gap.
    first = max(0, -(-(aim - offset) // 2), -offset // 2 + 1)
    if rule.gap is not None:
        first = max(first, rule.gap - (b[axis] - a[axis + 2]))
    for extra in range(first, 2 * (frame.last - frame.first) + 1):
        moved = _spread(a, b, axis, extra, frame)
        if moved is None:
            return
        yield _align(*moved, 1 - axis, rule.tilt * _offset2(*moved, axis), frame)


def _nearest_pair(
    a: Corners, b: Corners, rule: LayoutRule, frame: _Frame, holds: Callable[[Pair], bool]
) -> Pair | None:
    """The least move of two boxes after which they are next to each other; None: there is none."""
    nearest, least = None, math.inf
    for axis in (0,) if rule.furthest is not None else (0, 1):
        for swapped in (False, True):
            first, second = (b, a) if swapped else (a, b)
            for pairs in _pairs_near(first, second, axis, rule, frame):
                for p, q in pairs:
                    # Later ones are moved further along the axis.
                    if abs(p[axis] - first[axis]) + abs(q[axis] - second[axis]) >= least:
                        break
                    far = _moved_by((first, second), (p, q))
                    if far < least and holds((p, q)):
                        nearest, least = (q, p) if swapped else (p, q), far
    return nearest


def _pairs_near(
    a: Corners, b: Corners, axis: int, rule: LayoutRule, frame: _Frame
) -> tuple[Iterator[Pair], ...]:
    """Pairs with a on the low side of b that may be next to each other, ever further moved."""
    if rule.furthest is None:
        return (_pairs_level(a, b, axis, frame),)
    # Together: boxes that are too far apart, or on no level.
    return _pairs_closer(a, b, axis, rule, frame), _pairs_along(a, b, axis, rule, frame)


def _pairs_closer(
    a: Corners, b: Corners, axis: int, rule: LayoutRule, frame: _Frame
) -> Iterator[Pair]:
    first = max(1, b[axis] - a[axis + 2] - (rule.furthest or 0))
    for extra in range(first, _offset2(a, b, axis) // 2 + 1):
        closer = _spread(a, b, axis, -extra, frame)
        if closer is not None and _offset2(*closer, axis) > 0:
            yield _align(*closer, 1 - axis, rule.tilt * _offset2(*closer, axis), frame)


def _pairs_level(a: Corners, b: Corners, axis: int, frame: _Frame) -> Iterator[Pair]:
    yield _align(a, b, 1 - axis, 2 * NEAR, frame)
    for extra in range(1, 2 * (frame.last - frame.first) + 1):
        moved = _spread(a, b, axis, extra, frame)
        if moved is None:
            return
        yield moved
        yield _align(*moved, 1 - axis, 2 * NEAR, frame)


def _offset2(a: Corners, b: Corners, axis: int) -> int:
    """Twice the offset of b's centre from a's, in thousandths."""
    return b[axis] + b[axis + 2] - a[axis] - a[axis + 2]


def _shift(corners: Corners, axis: int, by: int) -> Corners:
    x1, y1, x2, y2 = corners
    return (x1, y1 + by, x2, y2 + by) if axis else (x1 + by, y1, x2 + by, y2)


def _room(corners: Corners, axis: int, frame: _Frame) -> tuple[int, int]:
    """How far a box can go down and up along an axis."""
    return corners[axis] - frame.first, frame.last - corners[axis + 2]


def _spread(a: Corners, b: Corners, axis: int, extra: int, frame: _Frame) -> Pair | None:
    """The boxes moved apart by `extra` in all (together where below 0); None: no room."""
    steps, closer = abs(extra), extra < 0
    room_a, room_b = _room(a, axis, frame)[closer], _room(b, axis, frame)[not closer]
    if steps > room_a + room_b:
        return None
    own = min(max(steps // 2, steps - room_b), room_a)
    sign = -1 if closer else 1
    return _shift(a, axis, -sign * own), _shift(b, axis, sign * (steps - own))


def _align(a: Corners, b: Corners, axis: int, most: float, frame: _Frame) -> Pair:
    """The boxes moved towards each other until twice their offset is at most `most`."""
    offset = _offset2(a, b, axis)
    steps = -int(-max(0.0, abs(offset) - most) // 2)
    if offset < 0:
        pair = _spread(b, a, axis, -steps, frame)
        return (a, b) if pair is None else (pair[1], pair[0])
    return _spread(a, b, axis, -steps, frame) or (a, b)


def _moved_by(before: Sequence[Corners], after: Sequence[Corners]) -> int:
    """The sum of all moves, in thousandths."""
    return sum(abs(p[k] - q[k]) for p, q in zip(before, after) for k in (0, 1))


def _separate(corners: dict[int, Corners], fixed: set[int], frame: _Frame, gap: int) -> bool:
    """Moves boxes that overlap others to their nearest free place; those in `fixed` stay."""
    placed = {i: corners[i] for i in fixed}
    for i in sorted(set(corners) - fixed):
        others = list(placed.values())
        if not _is_free(corners[i], others, 0):
            place = _nearest_place(corners[i], others, gap, frame)
            place = place or _nearest_place(corners[i], others, 0, frame)
            if place is None:
                return False
            corners[i] = place
        placed[i] = corners[i]
    return True


def _is_free(box: Corners, others: Sequence[Corners], apart: int) -> bool:
    return all(
        max(o[k] - box[k + 2] for k in (0, 1)) >= apart
        or max(box[k] - o[k + 2] for k in (0, 1)) >= apart
        for o in others
    )


def _nearest_place(
    box: Corners, others: Sequence[Corners], apart: int, frame: _Frame
) -> Corners | None:
    """The free place with the least move.

    Its coordinates are the box's own, those next to another box, or the frame's.
    """
    places = [box]
    for axis in (0, 1):
        size = box[axis + 2] - box[axis]
        low = {frame.first, frame.last - size, box[axis]}
        low |= {v for o in others for v in (o[axis] - apart - size, o[axis + 2] + apart)}
        inside = [v for v in sorted(low) if frame.first <= v <= frame.last - size]
        places = [_shift(place, axis, v - box[axis]) for place in places for v in inside]
    free = [place for place in places if _is_free(place, others, apart)]
    return min(free, key=lambda place: (_moved_by([box], [place]), place), default=None)
