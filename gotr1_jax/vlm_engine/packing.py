"""Which questions share a prefix, and which go into one program: integers only.

Every length is rounded up to one of few sizes, every number of rows to a power of two, so that
calls of any mixture run the same few compiled programs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

_CHUNK_COST = 256
"""What one more chunk costs besides its tokens, in tokens: its programs read all the weights."""


def rung(size: int, least: int = 16) -> int:
    """The smallest length not below `size` that programs are made for: eight an octave."""
    step = max(least, 1 << max(0, (max(size, 1) - 1).bit_length() - 4))
    return -(-max(size, 1) // step) * step


def power_of_two(number: int) -> int:
    """The smallest power of two not below `number`."""
    return 1 << max(0, number - 1).bit_length()


@dataclass(frozen=True)
class TokenRow:
    """A question as tokens.

    Attributes:
      ids_S: int32 token ids.
      places_S: int32 index of an image token's vector among those kept; -1 for text.
      positions_3S: int32 positions in time, height and width.
      limit: longest answer in tokens.
    """

    ids_S: np.ndarray
    places_S: np.ndarray
    positions_3S: np.ndarray
    limit: int

    @property
    def size(self) -> int:
        """Number of tokens."""
        return len(self.ids_S)

    @property
    def next_position(self) -> int:
        """Position of the first token of the answer; a question ends with text."""
        return int(self.positions_3S[0, -1]) + 1

    def part(self, start: int, stop: int | None = None) -> TokenRow:
        """The tokens from `start` to `stop`, where they stand."""
        cut = slice(start, stop)
        return replace(
            self, ids_S=self.ids_S[cut], places_S=self.places_S[cut],
            positions_3S=self.positions_3S[:, cut],
        )  # fmt: skip


@dataclass(frozen=True)
class PrefixGroup:
    """Questions whose first `prefix` tokens are the same; at least one each is left."""

    prefix: int
    members: tuple[int, ...]


@dataclass
class _Node:
    """Rows that agree in `depth` tokens: groups that are settled, and rows in none."""

    depth: int
    groups: list[PrefixGroup] = field(default_factory=list)
    cost: int = 0
    loose: list[int] = field(default_factory=list)

    def add(self, child: _Node) -> None:
        self.groups += child.groups
        self.cost += child.cost
        self.loose += child.loose


def share_prefixes(rows: Sequence[TokenRow], tail: int = 1, least: int = 16) -> list[PrefixGroup]:
    """Groups that make the number of tokens to be read small; every row is in one of them.

    Walks the tree of common prefixes from the leaves: at each branching either everything below
    shares the prefix that ends there, or what is below keeps its longer prefixes.

    Args:
      rows: questions, what all of them have in front taken off.
      tail: tokens at a row's end that are in no prefix.
      least: tokens of a prefix; a shorter one is not worth a program.
    """
    if not rows:
        return []
    keys = [np.where(row.places_S >= 0, -1 - row.places_S, row.ids_S) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: keys[i].tolist())
    stack = [_Node(0)]
    last = _Node(rows[order[0]].size, loose=[order[0]])
    for before, now in zip(order, [*order[1:], -1]):
        shared = -1
        if now >= 0:
            shared = common(keys[before], keys[now], tail)
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


def common(a: np.ndarray, b: np.ndarray, tail: int = 0) -> int:
    """How many values two rows have in common at their beginnings, of all but their last `tail`."""
    size = max(0, min(len(a), len(b)) - tail)
    different = np.flatnonzero(a[:size] != b[:size])
    return int(different[0]) if len(different) else size


def _settle(node: _Node, rows: Sequence[TokenRow], final: bool) -> _Node:
    """The cheaper of one group for all and the groups so far; a single loose row stays loose."""
    depth = node.depth
    everything = [*node.loose, *(i for group in node.groups for i in group.members)]
    together = depth + sum(rows[i].size - depth for i in everything)
    # A single one may find no other further up: it counts whole.
    apart = node.cost + depth * bool(node.loose)
    apart += sum(rows[i].size - depth for i in node.loose)
    if node.groups and together <= apart:
        return _Node(depth, [PrefixGroup(depth, tuple(sorted(everything)))], together)
    if len(node.loose) > 1 or (final and node.loose):
        cost = node.cost + depth + sum(rows[i].size - depth for i in node.loose)
        return _Node(depth, [*node.groups, PrefixGroup(depth, tuple(sorted(node.loose)))], cost)
    return _Node(depth, node.groups, node.cost, node.loose)


@dataclass(frozen=True)
class Limits:
    """Of one program.

    Attributes:
      rows: at most, a power of two times `multiple`.
      tokens: rows times padded length, at most.
      multiple: row shards of the mesh; every number of rows is a multiple.
    """

    rows: int
    tokens: int
    multiple: int = 1

    def fits(self, size: int, answer: int) -> bool:
        """Whether a question of `size` tokens can be asked at all."""
        # Head, prefix and rest are each rounded up.
        return 1.125 * size + 48 + answer <= self.tokens // self.multiple

    def padded(self, number: int) -> int:
        """The number of rows that a program has for `number` of them."""
        return self.multiple * power_of_two(-(-number // self.multiple))

    def most(self, length: int) -> int:
        """Rows of `length` tokens that one program takes."""
        share = min(self.rows, self.tokens // length) // self.multiple
        return self.multiple * (1 << max(0, share.bit_length() - 1))


@dataclass(frozen=True)
class Chunk:
    """Questions that go through the programs together.

    Attributes:
      groups: theirs; each has a prefix of its own.
      head, prefix, rest: padded lengths: of what stands in front of all of them, of the groups'
        prefixes (0: they have none), and of what is a question's own.
      answer: longest answer, rounded up to a power of two; 0 where nothing is decoded.
    """

    groups: tuple[PrefixGroup, ...]
    head: int
    prefix: int
    rest: int
    answer: int

    @property
    def members(self) -> list[int]:
        """Numbers of the questions, group by group."""
        return [i for group in self.groups for i in group.members]

    def cost(self, limits: Limits) -> int:
        """Tokens that its programs read, padding included."""
        prefixes, rows = limits.padded(len(self.groups)), limits.padded(len(self.members))
        return prefixes * self.prefix + rows * self.rest + _CHUNK_COST

    def joined(self, other: Chunk) -> Chunk:
        """Both in one."""
        return Chunk(
            (*self.groups, *other.groups),
            self.head,
            max(self.prefix, other.prefix),
            max(self.rest, other.rest),
            max(self.answer, other.answer),
        )

    @property
    def row_tokens(self) -> int:
        """What one of its rows sees, padding included."""
        return self.head + self.prefix + self.rest + self.answer

    def within(self, limits: Limits) -> bool:
        """Whether one program takes it."""
        return len(self.members) <= limits.most(self.row_tokens)


def make_chunks(
    groups: Sequence[PrefixGroup],
    rows: Sequence[TokenRow],
    limits: Limits,
    decode: bool,
    head: int = 0,
) -> Iterator[Chunk]:
    """Groups of like lengths together, as many as fit and as long as that costs no more.

    head: length of what stands in front of all rows.
    """
    pieces = [
        piece for group in groups for piece in _pieces(group, rows, limits, decode, rung(head))
    ]
    pieces.sort(key=lambda piece: (piece.answer, piece.rest, piece.prefix))
    current: Chunk | None = None
    for piece in pieces:
        if current is None:
            current = piece
            continue
        joined = current.joined(piece)
        cheaper = joined.cost(limits) <= current.cost(limits) + piece.cost(limits)
        if cheaper and joined.within(limits):
            current = joined
        else:
            yield current
            current = piece
    if current is not None:
        yield current


def _pieces(
    group: PrefixGroup, rows: Sequence[TokenRow], limits: Limits, decode: bool, head: int
) -> Iterator[Chunk]:
    """A group as chunks of its own, one for each length of answers; large ones are cut."""
    by_answer: dict[int, list[int]] = {}
    for i in sorted(group.members, key=lambda i: rows[i].size):
        answer = power_of_two(rows[i].limit) if decode else 0
        by_answer.setdefault(answer, []).append(i)
    prefix = rung(group.prefix) if group.prefix else 0
    for answer, members in by_answer.items():
        longest = rung(rows[members[-1]].size - group.prefix)
        most = limits.most(head + prefix + longest + answer)
        for start in range(0, len(members), most):
            part = tuple(members[start : start + most])
            rest = rung(rows[part[-1]].size - group.prefix)
            yield Chunk((PrefixGroup(group.prefix, part),), head, prefix, rest, answer)
