"""Terms of one's own in a configuration, and the language of `reward.total`."""

from __future__ import annotations

import itertools
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from gotr1_jax.config import from_dict, parse_overrides, to_plain
from gotr1_jax.errors import ConfigError, InputError
from gotr1_jax.grpo.config import GrpoConfig, RewardConfig
from gotr1_jax.rewards.combine import combine, total_expression
from gotr1_jax.rewards.expression import parse_expression
from gotr1_jax.rewards.terms import TermConfig
from gotr1_jax.trainer.resume import setting_changes

NAN = float("nan")
PUBLISHED = ("sem", "spa", "ri", "pi", "hps", "verdict")


def grpo(reward: dict[str, Any], *overrides: str) -> GrpoConfig:
    values = {"run_dir": "r", "steps": 1, "reward": reward}
    return from_dict(GrpoConfig, values, overrides=parse_overrides(overrides))


def total_of_before(scores, rule, terms):
    """What `combine` computed when rules were the only totals."""
    chosen = {t: np.asarray(scores[t], np.float64) for t in terms}
    if rule == "sum":
        return np.mean(list(chosen.values()), axis=0).astype(np.float32)
    bracket = [chosen[t] for t in ("sem", "spa") if t in chosen]
    factors = [chosen[t] for t in ("pi", "ri", "hps") if t in chosen]
    if bracket:
        factors.append(np.sum(bracket, axis=0) if rule == "v1" else np.mean(bracket, axis=0))
    return np.prod(factors, axis=0).astype(np.float32)


@pytest.mark.parametrize("rows", [1, 33])
def test_rules_are_expressions_of_the_same_bits(rows: int) -> None:
    random = np.random.default_rng(rows)
    scores = {t: random.random(rows).astype(np.float32) for t in PUBLISHED}
    scores["pi"][0], scores["sem"][-1] = 0.0, NAN
    tried = 0
    for size in range(1, 7):
        for terms in itertools.permutations(PUBLISHED, size):
            for rule in ("v1", "v2", "sum"):
                if (rule == "v1" and "hps" in terms) or (rule != "sum" and "verdict" in terms):
                    continue
                new, old = combine(scores, rule, terms), total_of_before(scores, rule, terms)
                assert new.tobytes() == old.tobytes(), (rule, terms)
                tried += 1
    assert tried == 1956 + 64 + 325
    assert combine(scores, "verdict", ()).tobytes() == scores["verdict"].tobytes()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 + 3 * a", 8.0),
        ("-a ** 2", -4.0),
        ("2 ** -1 * a", 1.0),
        ("2 ** 3 ** 2 - a", 510.0),
        ("a - b - 1", -2.0),
        ("a / b / 2", 1 / 3),
        ("max(min(a, b, 1), -5) + (b)", 4.0),
        ("--a", 2.0),
        (".5e1*a + 1.", 11.0),
    ],
)
def test_precedence_by_hand(text: str, value: float) -> None:
    """a = 2, b = 3."""
    values = {"a": np.array([2.0]), "b": np.array([3.0])}
    assert parse_expression(text).evaluate(values)[0] == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("pi * (sem + spa", 16, r"'\)' is missing before the end \(opened at character 6\)"),
        ("pi * * sem", 6, "is missing before '\\*'"),
        ("pi sem", 4, "'sem' does not belong here"),
        ("pi % sem", 4, "'%' cannot stand here"),
        ("pi * __import__('os')", 6, "__import__ is no function"),
        ("exec(pi)", 1, "exec is no function"),
        ("pi.real", 3, "'.' cannot stand here"),
        ("pi / (2 - 2)", 4, "division by zero"),
        ("pi * 2 ** 5000", 8, "no finite number"),
        ("1e999 * pi", 1, "no finite number"),
        ("min(pi)", 1, "two values"),
        ("max * pi", 1, r"max\(a, b\)"),
        ("2pi", 1, "cannot stand here"),
        ("", 1, "is missing before the end"),
        ("(" * 60 + "pi", 42, "levels within each other"),
        ("+".join(["pi"] * 300), 603, "200 operations"),
        ("a * \u0663", 5, "cannot stand here"),  # a digit of another script
    ],
)
def test_a_mistake_is_pointed_at(text: str, place: int, message: str) -> None:
    with pytest.raises(ConfigError, match=f"character {place}: .*{message}"):
        parse_expression(text)


def test_rows_without_a_total() -> None:
    """A NaN wins over everything; division by zero, roots of negatives and overflow are NaN."""
    a = np.array([NAN, 0.0, -1.0, 4.0], np.float32)
    b = np.array([1.0, 0.0, 1.0, 2.0], np.float32)
    scores = {"a": a, "b": b}

    def known(text: str) -> list[bool]:
        return [bool(x) for x in np.isfinite(combine(scores, text, ()))]

    assert known("a * 0") == [False, True, True, True]
    assert known("a ** 0") == known("max(b, a)") == known("min(a, b)") == [False, True, True, True]
    assert known("b / a") == [False, False, True, True]
    assert known("a ** 0.5") == [False, True, False, True]
    assert known("(a * 10) ** 30") == [False, True, True, False]  # beyond float32
    assert known("a * 1e30") == [False, True, True, False]  # more would overflow in a sum
    # Also where the operations around it give a number.
    hidden = ["min(b / a, 1)", "1 / (b / a)", "max(-b / a, 0)", "(b / a) ** 0", "1 ** (b / a)"]
    assert [known(text) for text in hidden] == [known("b / a")] * len(hidden)
    assert known("a * 1e200 * 1e200 / 1e300") == [False, True, False, False]


def test_totals_of_random_expressions_are_those_of_python() -> None:
    """Precedence, associativity and values; NaN where Python raises or leaves the real numbers."""
    random, values = Random(0), {"a": 0.7, "b": -1.3, "c": 0.0, "e1": 2.5}

    def write(depth: int) -> str:
        if depth == 0 or random.random() < 0.25:
            return random.choice([*values, "2", "0.5", "3", "1e1", ".5"])
        one, two = write(depth - 1), write(depth - 1)
        forms = [f"{one} {sign} {two}" for sign in ("+", "-", "*", "/", "**")]
        return random.choice([*forms, f"-{one}", f"({one})", f"min({one}, {two})", f"max({two},b)"])

    compared = 0
    for _ in range(1500):
        text = write(4)
        try:
            expected = eval(text, {"min": min, "max": max}, values)  # of texts made here
        except (ZeroDivisionError, OverflowError, TypeError):
            expected = NAN
        try:
            expression = parse_expression(text)
        except ConfigError as error:  # constants alone
            assert "no finite number" in str(error) or "division by zero" in str(error)
            continue
        found = float(expression.evaluate({k: np.array([v]) for k, v in values.items()}).ravel()[0])
        if isinstance(expected, complex) or abs(expected) > 1e30:
            expected = NAN
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-30, nan_ok=True), text
        compared += 1
    assert compared > 1000


def test_weight_scale_and_clip() -> None:
    """0.5 * clip(2 x, 0, 1) of x = -1, 0.25, 3: 0, 0.25, 0.5."""
    terms = {"mine": TermConfig(python="f.py:g", weight=0.5, scale=2.0, clip=(0.0, 1.0))}
    scores = {"mine": np.array([-1.0, 0.25, 3.0]), "pi": np.ones(3)}
    np.testing.assert_allclose(combine(scores, "mine + pi", terms), [1.0, 1.25, 1.5])
    np.testing.assert_allclose(combine(scores, "sum", terms), [0.0, 0.25, 0.5])


def test_a_list_of_names_and_old_keys_stay_valid() -> None:
    named = grpo({"terms": ["sem", "pi"], "rule": "v2"})
    assert named.reward == RewardConfig(total="v2", terms=("sem", "pi"))
    assert named.reward.terms == {"sem": TermConfig(judge="main"), "pi": TermConfig()}
    assert grpo({"terms": {"sem": {}, "pi": {"judge": "main"}}, "total": "v2"}) == named
    assert grpo({}, "--reward.rule=v2", "--reward.terms=[sem, pi]") == named
    assert from_dict(GrpoConfig, to_plain(named)) == named
    assert setting_changes(named, from_dict(GrpoConfig, to_plain(named))) == []


def test_overrides_add_a_term_to_those_there_are() -> None:
    mine = ("--reward.terms.mine.python=m.py:f", "--reward.total=pi * mine")
    for reward in ({}, {"terms": ["sem", "spa", "ri", "pi"]}, {"terms": {"pi": {}}}):
        found = grpo(reward, *mine, "--reward.terms.mine.clip=[0, 1]").reward.terms
        assert found["mine"] == TermConfig(python="m.py:f", clip=(0.0, 1.0)) and "pi" in found
    assert list(grpo({}, *mine).reward.terms) == ["sem", "spa", "ri", "pi", "mine"]
    old, new = grpo({}, *mine), grpo({}, *mine, "--reward.terms.mine.weight=2")
    changes = [str(change) for change in setting_changes(old, new)]
    assert changes == ["reward.terms.mine.weight 1.0 -> 2.0"]


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ({"total": "pi * beauty"}, "character 6: no judge gives 'beauty'"),
        ({"total": "pi * ("}, "^reward.total is 'pi \\* \\('; character 7"),
        ({"total": "2 * 3"}, "names no term"),
        ({"terms": {"x": {"python": "f.py:g"}}}, "reward.total is v1, which has no x term"),
        ({"terms": {"2x": {}}}, "^reward.terms holds '2x', which is no name"),
        ({"terms": {"max": {}}}, "^reward.terms holds 'max', which cannot name a term"),
        ({"terms": {"total": {}}}, "^reward.terms holds 'total'"),
        ({"terms": ["pi", "pi"]}, "^reward.terms holds 'pi' more than once"),
        ({"terms": {"x": {"judge": "main", "python": "f:g"}}}, "reward.terms.x.python is a second"),
        (
            {"terms": {"x": {"python": "mine.py"}}},
            "^reward.terms.x.python is 'mine.py', which names",
        ),
        ({"terms": {"x": {"clip": [1, 0]}}}, "^reward.terms.x.clip is"),
        ({"terms": {"x": {"wieght": 1}}}, "did you mean 'reward.terms.x.weight'"),
        ({"terms": {"x": 3}}, "^reward.terms.x is 3; expected a section"),
        ({"terms": {"pi": {"weight": float("nan")}}}, "^reward.terms.pi.weight is nan"),
    ],
)
def test_a_reward_that_cannot_be_is_refused(reward: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        grpo(reward)


def test_a_name_with_nothing_below_it_has_the_defaults() -> None:
    values = {"total": "pi * ri", "terms": {"pi": None, "ri": {"weight": 2.0}}}
    assert from_dict(RewardConfig, values).terms["pi"] == TermConfig()


def test_a_total_with_names_beside_the_listed_terms() -> None:
    """Names that are not listed are the judge's; a listed one outside of the total is watched."""
    reward = {
        "terms": {"pi": {"judge": "main"}, "mine": {"python": "f:g"}, "ocr": {"python": "f:h"}},
        "total": "pi * (sem + spa) / 2 * ri * mine",
    }
    assert grpo(reward).reward.watched == ["ocr"]
    assert list(total_expression("v2", ("ri", "sem", "spa")).names) == ["ri", "sem", "spa"]


def test_the_flag_adds_a_term(tmp_path: Path) -> None:
    """Multiplied onto the total, unless that is given too; the base may hold a rule."""
    base = tmp_path / "base.yaml"
    base.write_text("run_dir: r\nsteps: 1\nreward: {total: v2, terms: [sem, spa, pi]}\n")

    def reward(*words: str) -> RewardConfig:
        return GrpoConfig.from_file(base, words).reward

    found = reward("--reward", "my.py:score", "--reward=b=m:f", "--reward.terms.score.weight=2")
    assert found.total == "(pi * ((sem + spa) / 2)) * score * b"
    assert list(found.terms) == ["sem", "spa", "pi", "score", "b"]
    assert found.terms["score"] == TermConfig(python="my.py:score", weight=2.0)
    assert reward("--reward", "my.py:f", "--reward.total", "pi + f").total == "pi + f"
    for words, message in (
        (("--reward", "a.py:f", "--reward", "b.py:f"), "a second term f; name one"),
        (("--reward", "a.py:sem"), "has a term sem already; give it another name"),
        (("--reward", "a.py:max"), "called 'max', which cannot name a term"),
        (("--reward", "a.py"), "'a.py', which is no name"),
    ):
        with pytest.raises(InputError, match=message):
            reward(*words)
