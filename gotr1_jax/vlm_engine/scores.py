"""A score's distribution from the logits behind a fixed answer prefix.

The numbers of a scale are strings of tokens: a tree. The probability of a number is the product
along its branch; for a number that others extend (1, where there is 10) times the probability that
none of them follows. With Qwen's single digits P(10) = P("1") P("0" | "1") and
P(1) = P("1") (1 - P("0" | "1")). Tokens outside of the scale are left out, and the rest is
normalised to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gotr1_jax.errors import InputError
from gotr1_jax.vlm_engine.base import FirstWords


@dataclass(frozen=True)
class ScoreTokens:
    """How a scale's numbers are tokens.

    Attributes:
      prompt: tokens that follow the question: the answer prefix, then the tokens of the one
        branch that others extend. The logits at its last `num_logits` tokens are needed.
      num_logits: number of positions at which tokens are predicted.
      values: the scale's numbers.
      tails: tokens of each number after the answer prefix.
    """

    prompt: tuple[int, ...]
    num_logits: int
    values: tuple[int, ...]
    tails: tuple[tuple[int, ...], ...]

    def tokens_at(self, position: int) -> list[int]:
        """Tokens whose probability at a position is needed, ascending."""
        branch = self.prompt[len(self.prompt) - self.num_logits + 1 :][:position]
        return sorted(
            {t[position] for t in self.tails if len(t) > position and t[:position] == branch}
        )

    def mean(self, logps: Sequence[Sequence[float]]) -> float:
        """The probability-weighted mean; logps[i] belongs to `tokens_at(i)`, in nats."""
        known = [dict(zip(self.tokens_at(i), map(float, row))) for i, row in enumerate(logps)]
        branch = self.prompt[len(self.prompt) - self.num_logits + 1 :]
        weights = []
        for tail in self.tails:
            logp = sum(known[i][token] for i, token in enumerate(tail))
            end = len(tail)
            if end < self.num_logits and branch[:end] == tail:
                extended = sum(math.exp(p) for p in known[end].values())
                logp = logp + math.log1p(-extended) if extended < 1 else -math.inf
            weights.append(logp)
        top = max(weights)
        if not math.isfinite(top):
            return math.nan
        shares = np.exp(np.array(weights) - top)
        return float(shares @ np.array(self.values) / shares.sum())


@dataclass(frozen=True)
class WordTokens:
    """The first tokens of the right answer's forms; read as `ScoreTokens` are.

    A token with which several forms begin counts once.
    """

    tokens: tuple[int, ...]
    prompt: tuple[int, ...] = ()
    num_logits: int = 1

    def tokens_at(self, position: int) -> list[int]:
        """The tokens, ascending."""
        return list(self.tokens)

    def mean(self, logps: Sequence[Sequence[float]]) -> float:
        """The probability of any of the tokens; logps[0] belongs to them, in nats."""
        return min(1.0, math.fsum(math.exp(float(logp)) for logp in logps[0]))


def word_tokens(encode: Callable[[str], list[int]], words: FirstWords) -> WordTokens:
    """The first tokens of the right answer; InputError where no form has any."""
    tokens = {ids[0] for form in words.right if (ids := encode(form))}
    if not tokens:
        raise InputError(f"the right answer {words.right!r} has no token")
    return WordTokens(tuple(sorted(tokens)))


def score_tokens(
    encode: Callable[[str], list[int]], prefix: str, low: int, high: int
) -> ScoreTokens:
    """The numbers low..high after the text `prefix` as tokens.

    Raises InputError for a scale that one pass cannot read: numbers extend more than one branch
    (with single digits: more than one of the scale's first digits has a second).
    """
    values = tuple(range(low, high + 1))
    ids = [tuple(encode(f"{prefix}{value}")) for value in values]
    shared = 0
    while len({row[: shared + 1] for row in ids}) == 1 and shared < min(map(len, ids)) - 1:
        shared += 1
    tails = tuple(row[shared:] for row in ids)
    longest = max(tails, key=len)
    branch = longest[:-1]
    if any(tail[:-1] != branch[: len(tail) - 1] for tail in tails):
        raise InputError(
            f"a score from {low} to {high} cannot be read in one pass; use the reading text"
        )
    return ScoreTokens((*ids[0][:shared], *branch), len(branch) + 1, values, tails)
