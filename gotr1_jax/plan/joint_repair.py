"""The least move of all boxes at once after which every relation holds, as an integer program.

`repair` moves pair by pair, which fails where a pair must also be moved apart across its axis, and
where several relations share boxes. Here all conditions are linear in the boxes' shifts. The
IoU of a rule without a gap is not: for it one of several linear conditions must hold that each
keep it (overlap along the axis and across it at most so much), so a few solutions are not found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from gotr1_jax.plan.boxes import SCALE
from gotr1_jax.plan.relations import DEPTHS, NEAR, LayoutGoal, LayoutRule, relation_axis

_SHARES = (0.8, 0.65, 0.5, 0.35, 0.2, 0.0)  # of the smaller side: overlap across the axis
_MOST_NODES = 2000  # of the solver, so that a hopeless plan ends

Corners = tuple[int, int, int, int]
"""x1, y1, x2, y2 of a box, in thousandths."""
Row = tuple[dict[int, float], float]
"""Factors of the shifts, by 2 * box + axis, and the least value of their sum."""
Choices = list[list[Row]]
"""Of these conditions all rows of at least one must hold."""


def solve_layout(
    goal: LayoutGoal, boxes: Sequence[Corners], first: int, last: int
) -> list[Corners] | None:
    """The moved boxes, in `first`..`last`, one for each object of the goal; None: none found.

    Two boxes in depth are moved by the same.
    """
    choices: list[Choices] = []
    in_depth = [{i, j} for i, relation, j in goal.relations if relation in DEPTHS]
    for i, relation, j in goal.relations:
        choices += _relation(relation, _Pair(i, j, boxes[i], boxes[j]), goal.rule)
    if goal.rule.strict:
        for i, j in combinations(range(len(boxes)), 2):
            if {i, j} not in in_depth:
                choices.append(_Pair(i, j, boxes[i], boxes[j]).separate())
    low = [first - box[axis] for box in boxes for axis in (0, 1)]
    high = [last - box[axis + 2] for box in boxes for axis in (0, 1)]
    shifts = _least_shifts(choices, low, high)
    if shifts is None:
        return None
    return [
        (b[0] + dx, b[1] + dy, b[2] + dx, b[3] + dy)
        for b, dx, dy in zip(boxes, shifts[::2], shifts[1::2])
    ]


@dataclass(frozen=True)
class _Pair:
    """Conditions on the shifts of two boxes: a, of index i, on the low side of b, of index j."""

    i: int
    j: int
    a: Corners
    b: Corners

    @property
    def swapped(self) -> _Pair:
        return _Pair(self.j, self.i, self.b, self.a)

    def apart(self, axis: int, least: float) -> Row:
        """From a's far side to b's near side."""
        known = self.b[axis] - self.a[axis + 2]
        return {2 * self.i + axis: -1, 2 * self.j + axis: 1}, least - known

    def offset2(self, axis: int) -> int:
        return self.b[axis] + self.b[axis + 2] - self.a[axis] - self.a[axis + 2]

    def ahead(self, axis: int, least: float) -> Row:
        """Twice the offset of the centres."""
        return {2 * self.i + axis: -2, 2 * self.j + axis: 2}, least - self.offset2(axis)

    def within(self, axis: int, tilt: float, sign: int) -> Row:
        """The offset across the axis is at most `tilt` of that along it, to one side."""
        along, across = 2 * self.i + axis, 2 * self.i + 1 - axis
        to_b = 2 * (self.j - self.i)
        factors = {along: -2 * tilt, along + to_b: 2 * tilt,
                   across: 2.0 * sign, across + to_b: -2.0 * sign}  # fmt: skip
        return factors, -tilt * self.offset2(axis) + sign * self.offset2(1 - axis)

    def equal_shifts(self) -> list[Row]:
        """Both boxes are moved by the same."""
        return [
            ({2 * p.i + axis: -1, 2 * p.j + axis: 1}, 0)
            for p in (self, self.swapped) for axis in (0, 1)
        ]  # fmt: skip

    def separate(self) -> Choices:
        """The boxes do not overlap."""
        return [[p.apart(axis, 0)] for p in (self, self.swapped) for axis in (0, 1)]

    def little_overlap(self, axis: int, most: float) -> Choices:
        """An IoU of at most `most`, b after a along the axis."""
        sides = [[box[k + 2] - box[k] for k in (0, 1)] for box in (self.a, self.b)]
        shared = most / (1 + most) * sum(w * h for w, h in sides)
        across = min(side[1 - axis] for side in sides)
        choices = [[self.apart(axis, -shared / across)]]
        for share in _SHARES:
            for pair in (self, self.swapped):
                rows = [pair.apart(1 - axis, -share * across)]
                if share:
                    rows.append(self.apart(axis, -shared / (share * across)))
                choices.append(rows)
        return choices


def _relation(relation: str, pair: _Pair, rule: LayoutRule) -> list[Choices]:
    if relation in DEPTHS:
        return [[pair.equal_shifts()]]
    if relation in ("right of", "below"):
        return _relation("left of" if relation == "right of" else "above", pair.swapped, rule)
    if relation != "next to":
        return _ordered(pair, relation_axis(relation), rule)
    if rule.furthest is not None:
        sides = []
        for p in (pair, pair.swapped):
            rows = [row for (choice,) in _ordered(p, 0, rule) for row in choice]
            factors, least = p.apart(0, 0)
            closest = {k: -v for k, v in factors.items()}, -rule.furthest - least
            sides.append([*rows, closest])
        return [sides]
    near = [[p.ahead(axis, -2 * NEAR) for p in (pair, pair.swapped)] for axis in (0, 1)]
    free = [c for p in (pair, pair.swapped) for axis in (0, 1)
            for c in p.little_overlap(axis, rule.overlap)[:1]]  # fmt: skip
    return [near, free]


def _ordered(pair: _Pair, axis: int, rule: LayoutRule) -> list[Choices]:
    """a before b along the axis: rows that must all hold, and of a rule without gap its IoU."""
    rows = [pair.within(axis, rule.tilt, sign) for sign in (1, -1)]
    rows.append(pair.ahead(axis, 2))
    if rule.gap is None:
        return [*([[row]] for row in rows), pair.little_overlap(axis, rule.overlap)]
    rows.append(pair.apart(axis, rule.gap))
    return [[[row]] for row in rows]


def _least_shifts(
    choices: Sequence[Choices], low: Sequence[int], high: Sequence[int]
) -> list[int] | None:
    """Whole numbers in low..high with the least sum of absolute values that meet the choices.

    Columns: the shifts, their absolute values, and for each choice whether it is the one that
    holds; the rows of others are void.
    """
    shifts = len(low)
    columns = 2 * shifts + sum(map(len, choices))
    void = 8.0 * SCALE  # more than any row can be short of
    rows, least = [], []

    def add(factors: dict[int, float], bound: float) -> None:
        row = np.zeros(columns)
        row[list(factors)] = list(factors.values())
        rows.append(row)
        least.append(bound)

    for k in range(shifts):
        add({shifts + k: 1, k: -1}, 0)
        add({shifts + k: 1, k: 1}, 0)
    picked = 2 * shifts
    for options in choices:
        own = range(picked, picked + len(options))
        add(dict.fromkeys(own, 1.0), 1)
        for column, option in zip(own, options):
            for factors, bound in option:
                add({**factors, column: -void}, bound - void)
        picked = own.stop
    room = [max(-a, b) for a, b in zip(low, high)]
    found = milp(
        np.array([0.0] * shifts + [1.0] * shifts + [0.0] * (columns - 2 * shifts)),
        integrality=np.ones(columns),
        bounds=Bounds(
            [*low, *[0] * (columns - shifts)], [*high, *room, *[1] * (columns - 2 * shifts)]
        ),
        constraints=LinearConstraint(np.array(rows), np.array(least)),
        options={"node_limit": _MOST_NODES},
    )
    return None if found.x is None else [round(v) for v in found.x[:shifts]]
