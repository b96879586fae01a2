"""Shared prefixes, batches and score distributions, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gotr1_jax.errors import InputError
from gotr1_jax.vlm_engine.config import QwenEngineConfig
from gotr1_jax.vlm_engine.packing import (
    PrefixGroup,
    ProgramLimits,
    QuestionBatch,
    QuestionTokens,
    make_batches,
    next_bucket,
    power_of_two,
    share_prefixes,
)
from gotr1_jax.vlm_engine.scores import score_tokens


def row(ids: list[int], places: dict[int, int] | None = None, limit: int = 8) -> QuestionTokens:
    where = np.full(len(ids), -1, np.int32)
    for at, place in (places or {}).items():
        where[at] = place
    positions = np.tile(np.arange(len(ids), dtype=np.int32), (3, 1))
    return QuestionTokens(np.array(ids, np.int32), where, positions, limit)


def test_sizes_of_programs() -> None:
    assert [next_bucket(n) for n in (0, 1, 16, 17, 196, 256, 257, 500, 513, 1100)] == [
        16, 16, 16, 32, 208, 256, 288, 512, 576, 1152,
    ]  # fmt: skip
    assert all(next_bucket(n) <= max(n + 15, 1.125 * n) for n in range(1, 5000))
    assert [power_of_two(n) for n in (1, 2, 3, 8, 9)] == [1, 2, 4, 8, 16]


def test_prefixes_are_shared_where_it_saves_most() -> None:
    # Two that share four tokens, two others that share three, one that shares nothing.
    rows = [
        row([3, 4, 5, 6, 10]),
        row([9, 9, 9, 8]),
        row([3, 4, 5, 6, 11, 12]),
        row([7, 7]),
        row([9, 9, 9, 7, 7]),
    ]
    groups = share_prefixes(rows, least=1)
    assert sorted(groups, key=lambda g: g.members) == [
        PrefixGroup(4, (0, 2)), PrefixGroup(3, (1, 4)), PrefixGroup(0, (3,)),
    ]  # fmt: skip
    # Three tokens are not worth a program.
    assert sorted(share_prefixes(rows, least=4), key=lambda g: g.members) == [
        PrefixGroup(4, (0, 2)), PrefixGroup(0, (1, 3, 4)),
    ]  # fmt: skip
    # One token more for two of four is not worth a prefix of its own.
    rows = [row([2, 3, 4, 5, n, 20]) for n in (6, 6, 7, 8)]
    assert share_prefixes(rows, least=1) == [PrefixGroup(4, (0, 1, 2, 3))]


def test_a_prefix_leaves_the_end_of_every_row() -> None:
    rows = [row([1, 2, 3]), row([1, 2, 3, 4]), row([1, 2, 3, 4, 5])]
    assert share_prefixes(rows, least=1) == [PrefixGroup(2, (0, 1, 2))]
    assert share_prefixes(rows, tail=2, least=1) == [PrefixGroup(1, (0, 1, 2))]
    assert share_prefixes(rows[:1]) == [PrefixGroup(0, (0,))]
    assert share_prefixes([]) == []
    # Many that are one another's beginnings: no recursion.
    deep = [row(list(range(n))) for n in range(3, 1500, 2)]
    groups = share_prefixes(deep)
    assert sorted(i for group in groups for i in group.members) == list(range(len(deep)))
    assert all(group.prefix < min(deep[i].size for i in group.members) for group in groups)


def test_different_images_are_not_the_same_prefix() -> None:
    ids = [1, 9, 9, 4, 5]
    same = [row(ids, {1: 0, 2: 1}), row([*ids[:4], 6], {1: 0, 2: 1})]
    assert share_prefixes(same, least=1) == [PrefixGroup(4, (0, 1))]
    other = [same[0], row(ids, {1: 2, 2: 3})]
    assert share_prefixes(other, least=1) == [PrefixGroup(1, (0, 1))]


@pytest.mark.parametrize("multiple, shared", [(1, 0), (3, 0), (1, 100)])
def test_batches_hold_every_question_once_and_keep_the_limits(multiple: int, shared: int) -> None:
    rng = np.random.default_rng(0)
    rows = [
        row([1] * 9 + [int(a)] * 9 + [*rng.integers(5, 90, int(n)).tolist()], limit=int(limit))
        for a, n, limit in zip(
            rng.integers(2, 9, 300), rng.integers(1, 300, 300), rng.integers(1, 200, 300)
        )
    ]
    limits = ProgramLimits(8 * multiple, 3000 * multiple, multiple)
    assert all(limits.fits(shared + r.size, power_of_two(r.max_answer)) for r in rows)
    batches = list(make_batches(share_prefixes(rows), rows, limits, decode=True, shared=shared))
    assert any(batch.prefix for batch in batches)
    assert sorted(i for batch in batches for i in batch.members) == list(range(300))
    for batch in batches:
        number = limits.pad_rows(len(batch.members))
        assert number % multiple == 0 and number <= limits.rows
        assert batch.shared >= shared and number * batch.row_tokens <= limits.tokens
        for group in batch.groups:
            assert group.prefix <= batch.prefix
            assert all(rows[i].size - group.prefix <= batch.own for i in group.members)
            assert all(rows[i].max_answer <= batch.answer for i in group.members)
    assert not limits.fits(3000, 64)


def test_like_lengths_go_together() -> None:
    limits = ProgramLimits(8, 100_000)
    rows = [row(list(range(n))) for n in (20, 21, 22, 2000)]
    groups = [PrefixGroup(1, (i,)) for i in range(4)]
    batches = list(make_batches(groups, rows, limits, decode=False))
    assert [batch.members for batch in batches] == [[0, 1, 2], [3]]
    assert batches[0] == QuestionBatch(tuple(groups[:3]), shared=16, prefix=16, own=32, answer=0)


def test_a_long_answer_and_a_long_question_need_not_fit_together() -> None:
    limits = ProgramLimits(4, 1000)
    rows = [row([1, 2, *range(10, 700)], limit=4), row([1, 2, 3], limit=512)]
    assert all(limits.fits(r.size, power_of_two(r.max_answer)) for r in rows)
    batches = list(make_batches([PrefixGroup(2, (0, 1))], rows, limits, decode=True))
    assert [(batch.members, batch.answer) for batch in batches] == [([0], 4), ([1], 512)]


def single_digits(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_ten_is_one_and_zero() -> None:
    scale = score_tokens(single_digits, '{"score": ', 0, 10)
    assert (scale.prompt[-2:], scale.num_logits) == ((ord(" "), ord("1")), 2)
    assert [chr(t) for t in scale.tokens_at(0)] == list("0123456789")
    assert [chr(t) for t in scale.tokens_at(1)] == ["0"]
    # "1" .5, "7" .2, the others next to nothing, and "0" behind "1" .4.
    first = [math.log({"1": 0.5, "7": 0.2}.get(d, 1e-30)) for d in "0123456789"]
    mean = scale.mean([first, [math.log(0.4)]])
    assert mean == pytest.approx((1 * 0.3 + 10 * 0.2 + 7 * 0.2) / 0.7)
    certain = scale.mean([first, [0.0]])  # a 1 is always a 10
    assert certain == pytest.approx((10 * 0.5 + 7 * 0.2) / 0.7)
    from_one = score_tokens(single_digits, "", 1, 10)
    assert [chr(t) for t in from_one.tokens_at(0)] == list("123456789")
    assert math.isnan(scale.mean([[-math.inf] * 10, [-1.0]]))


def test_ten_may_be_one_token() -> None:
    def encode(text: str) -> list[int]:
        return [7, 100 + int(text[1:])]

    scale = score_tokens(encode, " ", 8, 10)
    assert (scale.prompt, scale.num_logits, scale.tokens_at(0)) == ((7,), 1, [108, 109, 110])
    assert scale.mean([[math.log(0.1), math.log(0.1), math.log(0.2)]]) == pytest.approx(9.25)


def test_a_scale_with_many_branches_is_refused() -> None:
    with pytest.raises(InputError, match="from 0 to 100 cannot be read in one pass"):
        score_tokens(single_digits, "", 0, 100)


@pytest.mark.parametrize(
    "field, value",
    [("checkpoint", ""), ("rows", 0), ("tokens", 100), ("patches", 64), ("image_tokens", 9)],
)
def test_sizes_that_do_not_fit(field: str, value: object) -> None:
    QwenEngineConfig("model")
    with pytest.raises(InputError, match=f"^{field} is"):
        QwenEngineConfig(**({"checkpoint": "model"} | {field: value}))  # type: ignore
