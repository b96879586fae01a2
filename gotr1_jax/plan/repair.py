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
axis), all boxes are moved at once by an integer program (`joint_repair`). All of it happens on the
rule's coordinates; sizes in these steps do not change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gotr1_jax.plan.boxes import SCALE, Box
from gotr1_jax.plan.editing import replace_box
from gotr1_jax.plan.grammar import Plan
from gotr1_jax.plan.joint_repair import Cells, solve_layout
from gotr1_jax.plan.relations import (
    NEAR,
    LayoutGoal,
    LayoutRule,
    check_layout,
    relation_axis,
    relation_margin,
)

_ROUNDS = 4  # over all relations: one pair's move can break another's relation
_NO_AIM = -(10**6)

Pair = tuple[Cells, Cells]


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
    grid = _grid_of(list(boxes.values()), goal.rule)
    cells: dict[int, Cells] = {}
    for i, box in boxes.items():
        inside = _into_frame(grid.to_cells(box), grid)
        if inside is None:
            return Repair(plan, (), False, before.reasons)
        cells[i] = inside
    found = _moved_cells(goal, chosen, cells, grid, round(margin * SCALE), before.holds)
    if found is None:
        holds = before.holds
        return Repair(plan, (), holds, () if holds else (*before.reasons, "no room to repair it"))
    new, moved = plan, []
    for i in sorted(found):
        box = grid.to_box(found[i])
        if box != boxes[i]:
            new = replace_box(new, i, box)
            moved.append(i)
    after = check_layout(goal, new)
    if not after.holds:
        return Repair(plan, (), before.holds, after.reasons)
    return Repair(new, tuple(moved), True, ())


@dataclass(frozen=True)
class _Grid:
    """The coordinates round(step * k) for k in first..last."""

    step: float
    first: int
    last: int

    def to_cells(self, box: Box) -> Cells:
        x1, y1, x2, y2 = (round(v / self.step) for v in (box.x1, box.y1, box.x2, box.y2))
        return x1, y1, x2, y2

    def to_box(self, cells: Cells) -> Box:
        return Box(*(round(self.step * k) for k in cells))


def _grid_of(boxes: Sequence[Box], rule: LayoutRule) -> _Grid:
    """The rule's grid if all boxes are on it, else single thousandths."""
    grid = _Grid(rule.step, rule.first, rule.last)
    on_grid = all(grid.to_box(grid.to_cells(box)) == box for box in boxes)
    return grid if on_grid else _Grid(1, 0, SCALE - 1)


def _into_frame(cells: Cells, grid: _Grid) -> Cells | None:
    """The box shifted into the frame; None if it has no area or is too large."""
    x1, y1, x2, y2 = cells
    if x1 >= x2 or y1 >= y2 or max(x2 - x1, y2 - y1) > grid.last - grid.first:
        return None
    dx, dy = (min(max(grid.first, low), grid.last - (high - low)) - low
              for low, high in ((x1, x2), (y1, y2)))  # fmt: skip
    return x1 + dx, y1 + dy, x2 + dx, y2 + dy


def _moved_cells(
    goal: LayoutGoal, chosen: Sequence[int], cells: Mapping[int, Cells], grid: _Grid,
    margin: int, holds: bool,
) -> dict[int, Cells] | None:  # fmt: skip
    """Moved pair by pair; where that fails and a layout does not hold as it is, all at once.

    Pair by pair first, because it approaches `margin`, and because many layouts have the least sum
    of moves: which of them the solver returns may differ between its versions.
    """
    moved = dict(cells)
    if _move(goal, chosen, moved, grid, margin):
        return moved
    if holds:
        return None
    solved = solve_layout(goal, [cells[i] for i in chosen], grid.step, grid.first, grid.last)
    return None if solved is None else dict(zip(chosen, solved))


def _move(
    goal: LayoutGoal, chosen: Sequence[int], cells: dict[int, Cells], grid: _Grid, margin: int
) -> bool:
    """Moves `cells` until all relations hold and, if asked for, no boxes overlap."""
    for _ in range(_ROUNDS):
        for first, relation, second in goal.relations:
            i, j = chosen[first], chosen[second]
            pair = _repair_pair(relation, cells[i], cells[j], goal.rule, grid, margin)
            if pair is None:
                return False
            cells[i], cells[j] = pair
        related = {chosen[k] for a, _, b in goal.relations for k in (a, b)}
        if goal.rule.strict and not _separate(cells, related, grid, goal.rule.gap or 0):
            return False
        boxes = {k: grid.to_box(cells[i]) for k, i in enumerate(chosen)}
        if all(
            relation_margin(name, boxes[a], boxes[b], goal.rule) >= 0
            for a, name, b in goal.relations
        ):
            return True
    return False


def _repair_pair(
    relation: str, a: Cells, b: Cells, rule: LayoutRule, grid: _Grid, margin: int
) -> Pair | None:
    """The least move of two boxes after which a is `relation` b; None: there is none."""
    if relation in ("right of", "below"):
        opposite = "left of" if relation == "right of" else "above"
        pair = _repair_pair(opposite, b, a, rule, grid, margin)
        return None if pair is None else (pair[1], pair[0])

    def holds(pair: Pair) -> bool:
        first, second = map(grid.to_box, pair)
        return relation_margin(relation, first, second, rule) >= 0

    if relation == "next to":
        if holds((a, b)):
            return a, b
        return min(
            (pair for pair in _pairs_next_to(a, b, rule, grid) if holds(pair)),
            key=lambda pair: _moved_by((a, b), pair), default=None,
        )  # fmt: skip
    axis = relation_axis(relation)
    aim = _limit_aim(a, b, axis, margin, grid)
    if holds((a, b)) and _offset2(a, b, axis) >= aim:
        return a, b
    found = next((p for p in _pairs_along(a, b, axis, rule, grid, aim) if holds(p)), None)
    if found is None and holds((a, b)):
        return a, b
    return found


def _limit_aim(a: Cells, b: Cells, axis: int, margin: int, grid: _Grid) -> int:
    """Twice the distance of the centres that is aimed for, in steps, as far as the frame allows."""
    sizes = a[axis + 2] - a[axis] + b[axis + 2] - b[axis]
    most = 2 * (grid.last - grid.first) - sizes
    return min(math.ceil(2 * margin / grid.step), most) if margin else _NO_AIM


def _pairs_along(
    a: Cells, b: Cells, axis: int, rule: LayoutRule, grid: _Grid, aim: int = _NO_AIM
) -> Iterator[Pair]:
    """The pair with a on the low side of b, ever further apart, each also aligned."""
    offset = _offset2(a, b, axis)
    first = max(0, -(-(aim - offset) // 2))
    for extra in range(first, 2 * (grid.last - grid.first) + 1):
        moved = _spread(a, b, axis, extra, grid)
        if moved is None:
            return
        if _offset2(*moved, axis) > 0:
            yield _align(*moved, 1 - axis, rule.tilt * _offset2(*moved, axis), grid)


def _pairs_next_to(a: Cells, b: Cells, rule: LayoutRule, grid: _Grid) -> Iterator[Pair]:
    """Pairs that may be next to each other, from every side."""
    for axis in (0,) if rule.furthest is not None else (0, 1):
        for sign in (1, -1):
            yield from _pairs_near(a, b, axis, sign, rule, grid)


def _pairs_near(
    a: Cells, b: Cells, axis: int, sign: int, rule: LayoutRule, grid: _Grid
) -> Iterator[Pair]:
    if sign < 0:
        yield from ((q, p) for p, q in _pairs_near(b, a, axis, 1, rule, grid))
        return
    # Together first: boxes that are too far apart for a rule with `furthest`, or on no level.
    if rule.furthest is not None:
        for extra in range(1, _offset2(a, b, axis) // 2 + 1):
            closer = _spread(a, b, axis, -extra, grid)
            if closer is not None and _offset2(*closer, axis) > 0:
                yield _align(*closer, 1 - axis, rule.tilt * _offset2(*closer, axis), grid)
        yield from _pairs_along(a, b, axis, rule, grid)
        return
    level = 2 * NEAR // grid.step
    yield _align(a, b, 1 - axis, level, grid)
    for extra in range(1, 2 * (grid.last - grid.first) + 1):
        moved = _spread(a, b, axis, extra, grid)
        if moved is None:
            return
        yield moved
        yield _align(*moved, 1 - axis, level, grid)


def _offset2(a: Cells, b: Cells, axis: int) -> int:
    """Twice the offset of b's centre from a's, in steps."""
    return b[axis] + b[axis + 2] - a[axis] - a[axis + 2]


def _shift(cells: Cells, axis: int, by: int) -> Cells:
    x1, y1, x2, y2 = cells
    return (x1, y1 + by, x2, y2 + by) if axis else (x1 + by, y1, x2 + by, y2)


def _room(cells: Cells, axis: int, grid: _Grid) -> tuple[int, int]:
    """How far a box can go down and up along an axis."""
    return cells[axis] - grid.first, grid.last - cells[axis + 2]


def _spread(a: Cells, b: Cells, axis: int, extra: int, grid: _Grid) -> Pair | None:
    """The boxes moved apart by `extra` steps in all (together where below 0); None: no room."""
    steps, closer = abs(extra), extra < 0
    room_a, room_b = _room(a, axis, grid)[closer], _room(b, axis, grid)[not closer]
    if steps > room_a + room_b:
        return None
    own = min(max(steps // 2, steps - room_b), room_a)
    sign = -1 if closer else 1
    return _shift(a, axis, -sign * own), _shift(b, axis, sign * (steps - own))


def _align(a: Cells, b: Cells, axis: int, most: float, grid: _Grid) -> Pair:
    """The boxes moved towards each other until twice their offset is at most `most`."""
    offset = _offset2(a, b, axis)
    steps = -int(-max(0.0, abs(offset) - most) // 2)
    if offset < 0:
        pair = _spread(b, a, axis, -steps, grid)
        return (a, b) if pair is None else (pair[1], pair[0])
    return _spread(a, b, axis, -steps, grid) or (a, b)


def _moved_by(before: Sequence[Cells], after: Sequence[Cells]) -> int:
    """The sum of all moves, in steps."""
    return sum(abs(p[k] - q[k]) for p, q in zip(before, after) for k in (0, 1))


def _separate(cells: dict[int, Cells], fixed: set[int], grid: _Grid, gap: int) -> bool:
    """Moves boxes that overlap others to their nearest free place; those in `fixed` stay."""
    placed = {i: cells[i] for i in fixed}
    apart = -int(-gap // grid.step)
    for i in sorted(set(cells) - fixed):
        others = list(placed.values())
        if not _is_free(cells[i], others, 0):
            place = _nearest_place(cells[i], others, apart, grid)
            place = place or _nearest_place(cells[i], others, 0, grid)
            if place is None:
                return False
            cells[i] = place
        placed[i] = cells[i]
    return True


def _is_free(box: Cells, others: Sequence[Cells], apart: int) -> bool:
    return all(
        max(o[k] - box[k + 2] for k in (0, 1)) >= apart
        or max(box[k] - o[k + 2] for k in (0, 1)) >= apart
        for o in others
    )


def _nearest_place(box: Cells, others: Sequence[Cells], apart: int, grid: _Grid) -> Cells | None:
    """The free place with the least move.

    Its coordinates are the box's own, those next to another box, or the frame's.
    """
    places = [box]
    for axis in (0, 1):
        size = box[axis + 2] - box[axis]
        low = {grid.first, grid.last - size, box[axis]}
        low |= {v for o in others for v in (o[axis] - apart - size, o[axis + 2] + apart)}
        inside = [v for v in sorted(low) if grid.first <= v <= grid.last - size]
        places = [_shift(place, axis, v - box[axis]) for place in places for v in inside]
    free = [place for place in places if _is_free(place, others, apart)]
    return min(free, key=lambda place: (_moved_by([box], [place]), place), default=None)
