"""Which questions share a prefix, and which go into one program: integers only.

Every length is rounded up to one of few bucket sizes, every number of rows to a power of two, so
that calls of any mixture run the same few compiled programs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

_BATCH_COST = 256
"""What one more batch costs besides its tokens, in tokens: its programs read all the weights."""


def next_bucket(size: int, least: int = 16) -> int:
    """The smallest bucket size not below `size`: eight sizes an octave, multiples of `least`."""
    step = max(least, 1 << max(0, (max(size, 1) - 1).bit_length() - 4))
    return -(-max(size, 1) // step) * step


def power_of_two(number: int) -> int:
    """The smallest power of two not below `number`."""
    return 1 << max(0, number - 1).bit_length()


@dataclass(frozen=True)
class QuestionTokens:
    """A question as tokens, or a span of it.

    Attributes:
      ids_S: int32 token ids.
      vector_index_S: int32 index of an image token's vector among the encoded ones; -1 for text.
      positions_3S: int32 positions in time, height and width.
      max_answer: longest answer in tokens.
    """

    ids_S: np.ndarray
    vector_index_S: np.ndarray
    positions_3S: np.ndarray
    max_answer: int

    @property
    def size(self) -> int:
        """Number of tokens."""
        return len(self.ids_S)

    def span(self, start: int, stop: int | None = None) -> QuestionTokens:
        """The tokens from `start` to `stop`, at their positions in the question."""
        cut = slice(start, stop)
        return replace(
            self, ids_S=self.ids_S[cut], vector_index_S=self.vector_index_S[cut],
            positions_3S=self.positions_3S[:, cut],
        )  # fmt: skip


@dataclass(frozen=True)
class PrefixGroup:
    """Questions whose first `prefix` tokens are the same; each has at least one more token."""

    prefix: int
    members: tuple[int, ...]


@dataclass
class _Node:
    """Rows that agree in `depth` tokens: finished groups, and rows in no group yet."""

    depth: int
    groups: list[PrefixGroup] = field(default_factory=list)
    cost: int = 0
    loose: list[int] = field(default_factory=list)

    def add(self, child: _Node) -> None:
        self.groups += child.groups
        self.cost += child.cost
        self.loose += child.loose


def share_prefixes(
    rows: Sequence[QuestionTokens], tail: int = 1, least: int = 16
) -> list[PrefixGroup]:
    """Groups that make the number of tokens to be read small; every row is in one of them.

    Walks the tree of common prefixes from the leaves: at each branch either everything below
    shares the prefix that ends there, or what is below keeps its longer prefixes.

    Args:
      rows: questions without the prefix that all of them share.
      tail: tokens at a row's end that are in no prefix.
      least: tokens of a prefix; a shorter one is not worth a program.
    """
    if not rows:
        return []
    keys = [np.where(row.vector_index_S >= 0, -1 - row.vector_index_S, row.ids_S) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: keys[i].tolist())
    stack = [_Node(0)]
    last = _Node(rows[order[0]].size, loose=[order[0]])
    for before, now in zip(order, [*order[1:], -1]):
        shared = -1
        if now >= 0:
            shared = common_prefix(keys[before], keys[now], tail)
            shared = shared if shared >= least else 0
        while stack and stack[-1].depth > shared:
            node = stack.pop()
            node.add(last)
            last = _settle(node, rows, final=not stack)
        if now < 0:
            break
        if stack[-1].depth < shared:
            stack.append(_Node(shared))
        stack[-1].add(last)
        last = _Node(rows[now].size, loose=[now])
    return last.groups


def common_prefix(a: np.ndarray, b: np.ndarray, tail: int = 0) -> int:
    """Length of the common prefix of two rows without their last `tail` values."""
    size = max(0, min(len(a), len(b)) - tail)
    different = np.flatnonzero(a[:size] != b[:size])
    return int(different[0]) if len(different) else size


def _settle(node: _Node, rows: Sequence[QuestionTokens], final: bool) -> _Node:
    """The cheaper of one group for all and the groups so far; a single loose row stays loose."""
    depth = node.depth
    everything = [*node.loose, *(i for group in node.groups for i in group.members)]
    joint = depth + sum(rows[i].size - depth for i in everything)
    # A single row may find no other further up: it counts whole.
    apart = node.cost + depth * bool(node.loose)
    apart += sum(rows[i].size - depth for i in node.loose)
    if node.groups and joint <= apart:
        return _Node(depth, [PrefixGroup(depth, tuple(sorted(everything)))], joint)
    if len(node.loose) > 1 or (final and node.loose):
        cost = node.cost + depth + sum(rows[i].size - depth for i in node.loose)
        return _Node(depth, [*node.groups, PrefixGroup(depth, tuple(sorted(node.loose)))], cost)
    return _Node(depth, node.groups, node.cost, node.loose)


@dataclass(frozen=True)
class ProgramLimits:
    """Largest sizes of one program.

    Attributes:
      rows: a power of two times `multiple`.
      tokens: rows times padded length.
      multiple: row shards of the mesh; every number of rows is a multiple.
    """

    rows: int
    tokens: int
    multiple: int = 1

    def fits(self, size: int, answer: int) -> bool:
        """Whether a question of `size` tokens can be asked at all."""
        # Shared prefix, group's prefix and the rest are each rounded up.
        return 1.125 * size + 48 + answer <= self.tokens // self.multiple

    def pad_rows(self, number: int) -> int:
        """The number of rows that a program has for `number` of them."""
        return self.multiple * power_of_two(-(-number // self.multiple))

    def max_rows(self, length: int) -> int:
        """Rows of `length` tokens that one program takes."""
        share = min(self.rows, self.tokens // length) // self.multiple
        return self.multiple * (1 << max(0, share.bit_length() - 1))


@dataclass(frozen=True)
class QuestionBatch:
    """Questions that go through the programs together, with padded lengths in tokens.

    Attributes:
      groups: the questions; each group has a prefix of its own.
      shared: of the prefix that all of them share.
      prefix: of the groups' prefixes; 0 where they have none.
      own: of the rest of each question.
      answer: of the longest answer, a power of two; 0 where nothing is decoded.
    """

    groups: tuple[PrefixGroup, ...]
    shared: int
    prefix: int
    own: int
    answer: int

    @property
    def members(self) -> list[int]:
        """Indices of the questions, group by group."""
        return [i for group in self.groups for i in group.members]

    @property
    def row_tokens(self) -> int:
        """Tokens of the context of one row, padding included."""
        return self.shared + self.prefix + self.own + self.answer

    def cost(self, limits: ProgramLimits) -> int:
        """Tokens that its programs read, padding included."""
        prefixes, rows = limits.pad_rows(len(self.groups)), limits.pad_rows(len(self.members))
        return prefixes * self.prefix + rows * self.own + _BATCH_COST

    def merge(self, other: QuestionBatch) -> QuestionBatch:
        """Both in one."""
        return QuestionBatch(
            (*self.groups, *other.groups),
            self.shared,
            max(self.prefix, other.prefix),
            max(self.own, other.own),
            max(self.answer, other.answer),
        )

    def fits(self, limits: ProgramLimits) -> bool:
        """Whether one program takes it."""
        return len(self.members) <= limits.max_rows(self.row_tokens)


def make_batches(
    groups: Sequence[PrefixGroup],
    rows: Sequence[QuestionTokens],
    limits: ProgramLimits,
    decode: bool,
    shared: int = 0,
) -> Iterator[QuestionBatch]:
    """Groups of like lengths together, as many as fit and as long as that costs no more.

    shared: length of the prefix that all rows share; it is not in `rows`.
    """
    parts = [
        part
        for group in groups
        for part in _split_group(group, rows, limits, decode, next_bucket(shared))
    ]
    parts.sort(key=lambda part: (part.answer, part.own, part.prefix))
    current: QuestionBatch | None = None
    for part in parts:
        if current is None:
            current = part
            continue
        merged = current.merge(part)
        cheaper = merged.cost(limits) <= current.cost(limits) + part.cost(limits)
        if cheaper and merged.fits(limits):
            current = merged
        else:
            yield current
            current = part
    if current is not None:
        yield current


def _split_group(
    group: PrefixGroup, rows: Sequence[QuestionTokens], limits: ProgramLimits, decode: bool,
    shared: int,
) -> Iterator[QuestionBatch]:  # fmt: skip
    """A group as batches of its own, one for each length of answers; large ones are split."""
    by_answer: dict[int, list[int]] = {}
    for i in sorted(group.members, key=lambda i: rows[i].size):
        answer = power_of_two(rows[i].max_answer) if decode else 0
        by_answer.setdefault(answer, []).append(i)
    prefix = next_bucket(group.prefix) if group.prefix else 0
    for answer, members in by_answer.items():
        longest = next_bucket(rows[members[-1]].size - group.prefix)
        most = limits.max_rows(shared + prefix + longest + answer)
        for start in range(0, len(members), most):
            part = tuple(members[start : start + most])
            own = next_bucket(rows[part[-1]].size - group.prefix)
            yield QuestionBatch((PrefixGroup(group.prefix, part),), shared, prefix, own, answer)
