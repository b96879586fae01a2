"""Combination of reward terms, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from gotr1_jax.errors import InputError
from gotr1_jax.rewards.base import JudgeResult, stack_scores
from gotr1_jax.rewards.combine import combine, term_statistics
from gotr1_jax.rewards.factory import make_judge
from gotr1_jax.rewards.judge_config import JudgeConfig

NAN = float("nan")
TERMS = ("sem", "spa", "ri", "pi", "hps", "verdict")
SCORES = {
    "sem": np.array([0.8, 1.0, NAN]),
    "spa": np.array([0.4, 1.0, 0.5]),
    "ri": np.array([0.5, 1.0, 0.5]),
    "pi": np.array([0.5, 1.0, 0.5]),
    "hps": np.array([0.3, 1.0, 0.0]),
    "verdict": np.array([1.0, 1.0, 0.0]),
}
FOUR = ("sem", "spa", "ri", "pi")
FIVE = (*FOUR, "hps")


@pytest.mark.parametrize(
    ("rule", "terms", "first"),
    [
        ("v1", FOUR, 0.3),  # 0.5 (0.8 + 0.4) 0.5
        ("v2", FOUR, 0.15),
        ("v2", FIVE, 0.045),  # 0.15 · 0.3
        ("sum", FOUR, 0.55),  # 2.2 / 4
        ("sum", FIVE, 0.5),  # 2.5 / 5
        ("sum", ("verdict",), 1.0),
        ("sum", TERMS, 3.5 / 6),
        ("v1", ("sem",), 0.8),
        ("v2", ("sem",), 0.8),
        ("v1", ("sem", "spa"), 1.2),
        ("v2", ("sem", "spa"), 0.6),
        ("v1", ("pi", "spa"), 0.2),
        ("v2", ("ri", "pi"), 0.25),
        ("v2", ("hps",), 0.3),
        ("sum", ("ri", "hps"), 0.4),
    ],
)
def test_totals_by_hand(rule: str, terms: tuple[str, ...], first: float) -> None:
    total = combine(SCORES, rule, terms)
    assert total.dtype == np.float32 and total.shape == (3,)
    assert total[0] == pytest.approx(first)
    assert total[1] == (2.0 if rule == "v1" and {"sem", "spa"} <= set(terms) else 1.0)
    # Only a term that is used can make a row unknown, and then 0 does not hide it.
    assert np.isnan(total[2]) == ("sem" in terms)


def test_order_of_terms_does_not_matter() -> None:
    np.testing.assert_array_equal(combine(SCORES, "v2", FOUR), combine(SCORES, "v2", FOUR[::-1]))


@pytest.mark.parametrize(
    ("rule", "terms", "message"),
    [
        ("v3", FOUR, "v3"),
        ("v1", FIVE, "hps"),
        ("v1", ("pi", "verdict"), "v1, which has no verdict"),
        ("v2", TERMS, "v2, which has no verdict"),
        ("sum", (), "names no term"),
        ("sum", ("sem", "beauty"), "beauty have no scores"),
        ("v2", ("sem", "beauty"), "v2, which has no beauty term"),
    ],
)
def test_impossible_combinations_are_refused(
    rule: str, terms: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        combine(SCORES, rule, terms)


def test_a_term_without_scores_is_named() -> None:
    with pytest.raises(InputError, match="hps have no scores"):
        combine({"sem": np.ones(2)}, "sum", ("sem", "hps"))


def test_statistics_leave_out_what_nobody_could_tell() -> None:
    figures = term_statistics(
        {"sem": np.array([0.0, 1.0, NAN, NAN]), "total": np.array([NAN] * 3 + [1.0])}
    )
    assert figures["reward/sem/mean"] == 0.5 and figures["reward/sem/std"] == 0.5
    assert figures["reward/total/mean"] == 1.0 and figures["reward/total/std"] == 0.0
    assert figures["judge/failed_frac"] == 1.0
    assert np.isnan(term_statistics({"ri": np.array([NAN])})["reward/ri/mean"])
    assert term_statistics({"ri": np.array([NAN, 1, 1, 1])})["judge/failed_frac"] == 0.25


def test_missing_scores_stack_as_nan() -> None:
    stacked = stack_scores([JudgeResult({"sem": 0.25}), JudgeResult({})], ("sem", "pi"))
    np.testing.assert_array_equal(stacked["sem"], np.array([0.25, NAN], np.float32))
    assert stacked["sem"].dtype == np.float32 and np.isnan(stacked["pi"]).all()


def test_the_usual_judge() -> None:
    assert make_judge(JudgeConfig()).terms == FOUR
