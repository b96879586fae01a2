"""Soft-TIFA: the formats, the formulas against others' code and by hand, the reward term."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from word_engine import TalkingEngine, WordEngine, chance

from gotr1_jax.errors import ConfigError, InputError, RunError
from gotr1_jax.plan import parse_plan
from gotr1_jax.rewards import factory
from gotr1_jax.rewards.atoms import arithmetic_mean, ask, geometric_mean, read_atoms
from gotr1_jax.rewards.base import JudgeRequest
from gotr1_jax.rewards.judge_config import JudgeConfig
from gotr1_jax.rewards.multimodal import instructions, words
from gotr1_jax.rewards.multimodal.client import EngineClient
from gotr1_jax.rewards.multimodal.questions import QuestionsConfig
from gotr1_jax.rewards.multimodal.thoughts import UnreadableError
from gotr1_jax.rewards.soft_tifa import SoftTifaConfig, SoftTifaJudge
from gotr1_jax.rewards.terms import TermConfig
from gotr1_jax.vlm_engine.answer_cache import AnswerCache
from gotr1_jax.vlm_engine.base import Question, make_image_input
from gotr1_jax.vlm_engine.config import HttpConfig
from gotr1_jax.vlm_engine.scores import word_tokens

IMAGE = np.zeros((8, 8, 3), np.uint8)
EXPECTED = QuestionsConfig(reading="expected")
CATS = {
    "prompt": "two red cats",
    "atom_count": 3,
    "vqa_list": [
        ["How many cats are in the image?", "two"], ["Are the cats red?", "Yes"],
        ["Are there any cats in the image?", "Yes"],
    ],
    "skills": ["count", "attribute", "object"],
}  # fmt: skip
# What a model thinks of the first tokens, by question.
SURE = {"How many": 0.5, "Are the cats": 0.9, "Are there": 0.6}


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def request(caption: str = "two red cats", shade: int = 0) -> JudgeRequest:
    return JudgeRequest(caption, parse_plan(""), np.full((8, 8, 3), shade, np.uint8))


def sure(question: Question) -> float:
    return next(value for start, value in SURE.items() if question.text.startswith(start))


def test_the_forms_of_an_answer_are_those_of_the_benchmark(tmp_path: Path) -> None:
    (caption,) = read_atoms(write(tmp_path / "a.jsonl", CATS), skills=True)
    assert (caption.caption, caption.atom_count) == ("two red cats", 3)
    assert [atom.skill for atom in caption.atoms] == ["count", "attribute", "object"]
    count, color, _ = caption.atoms
    assert set(count.words.right) == {"two", "Two", " two", " Two", "2", " 2"}
    assert set(color.words.right) == {"Yes", "yes", " Yes", " yes"} and color.words.wrong == ("no",)
    asked = ask(count, make_image_input(IMAGE), 96)
    assert asked.text == "How many cats are in the image? Answer in one word."
    assert asked.instruction == "" and asked.kind == "word"
    assert set(words.yes_or_no("No").right) == {"No", "no", " No", " no"}
    assert "12" in words.number("twelve").right and words.number("31").right == ("31", " 31")


def test_the_probability_is_that_of_the_first_tokens() -> None:
    ids = {"Yes": [7, 1], "yes": [3], " Yes": [4], " yes": [4, 9]}
    found = word_tokens(ids.__getitem__, words.yes_or_no("yes"))
    assert found.tokens_at(0) == [3, 4, 7] and found.prompt == () and found.num_logits == 1
    logps = [math.log(0.5), math.log(0.125), math.log(0.25)]
    assert found.mean([logps]) == pytest.approx(0.875)  # the token of two forms counts once
    assert found.mean([[math.log(0.6), math.log(0.4), math.log(1e-6)]]) == 1.0
    with pytest.raises(InputError, match="has no token"):
        word_tokens(lambda _: [], words.yes_or_no("yes"))


def test_the_means_of_a_thousand_captions_equal_scipy() -> None:
    rng = np.random.default_rng(0)
    for number in rng.integers(1, 16, 1000):
        values = rng.random(number) ** 4
        assert geometric_mean(values) == pytest.approx(scipy.stats.gmean(values), rel=1e-12)
        assert arithmetic_mean(values) == pytest.approx(np.mean(values), rel=1e-12)
    assert geometric_mean([0.25, 1.0]) == 0.5 and arithmetic_mean([0.25, 1.0]) == 0.625
    assert geometric_mean([0.0, 1.0]) == 0.0 and geometric_mean([1e-300] * 3) > 0
    assert math.isnan(geometric_mean([0.5, math.nan])) and math.isnan(
        arithmetic_mean([0.5, math.nan])
    )


@pytest.mark.parametrize(
    "line, problem",
    [
        ({"tag": "counting", "include": [], "prompt": "a"}, "line 2 has no 'vqa_list'; give a"),
        ({"question": "a", "image": "b"}, "line 2 has no 'prompt'"),
        ({**CATS, "prompt": " "}, "no text under 'prompt'"),
        ({**CATS, "vqa_list": []}, "gives no list of questions"),
        ({**CATS, "vqa_list": [["Is it?"]] * 3}, "question 1 is .* not .question, answer."),
        ({**CATS, "vqa_list": [["Is it?", 3]] * 3}, "question 1 is"),
        ({**CATS, "vqa_list": [["How many?", "Yes"]] * 3}, "asks how many, .* 'Yes'"),
        ({**CATS, "vqa_list": [["How many?", "²"]] * 3}, "asks how many, .* '²', no number"),
        ({k: v for k, v in CATS.items() if k != "skills"}, "line 2 has no 'skills'"),
        ({**CATS, "skills": ["count"]}, "'skills' must be 3 texts"),
        ({**CATS, "skills": ["count", "", "a"]}, "'skills' must be 3 texts"),
        ({**CATS, "atom_count": "3"}, "'atom_count' is '3'"),
        ([1], "line 2"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_geneval2_is_told(tmp_path: Path, line: Any, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as error:
        read_atoms(write(tmp_path / "a.jsonl", CATS, line), skills=True)
    assert "\n" not in str(error.value)


TEXTS = [
    ("Yes", "Yes", 1), ("**yes.**", "Yes", 1), ("No, there is none", "Yes", 0), ("No", "no", 1),
    ("The answer is: Yes", "Yes", 1), ("<think>no?</think>Yes", "Yes", 1), ("maybe", "Yes", None),
    ("", "Yes", None), ("two", "2", 1), ("2", "two", 1), ("There are two cats.", "two", 1),
    ("Three", "two", 0), ("25", "two", 0), ("none", "two", 0), ("many", "two", None),
]  # fmt: skip


@pytest.mark.parametrize("text, right, score", TEXTS)
def test_answers_of_one_word(text: str, right: str, score: float | None) -> None:
    known = words.yes_or_no(right) if right.lower() in ("yes", "no") else words.number(right)
    check_reading(text, known, score)


@pytest.mark.parametrize(
    "text, score",
    [
        ("B", 1), ("b", 1), ("B: on the left", 1), ("(B)", 1), ("Option B.", 1), ("A", 0),
        ("**A**: above", 0), ("E: None", 0), ("A dog sits there", None), ("The boy", None),
        ("F", None),
    ],
)  # fmt: skip
def test_letters_of_a_choice(text: str, score: float | None) -> None:
    check_reading(text, words.letter("B", "ABCDE"), score)


def check_reading(text: str, known: Any, score: float | None) -> None:
    if score is None:
        with pytest.raises(UnreadableError):
            words.parse_word(text, known)
    else:
        assert words.parse_word(text, known).score == score


def test_open_answers() -> None:
    for text, score in (("Polar bear", 1), ("a polar bear", 0), ("Brown", 0)):
        check_reading(text, words.word_or_phrase("polar bear"), score)


def test_the_instructions_version_has_not_changed() -> None:
    """Stored answers of earlier versions are found again."""
    assert instructions.VERSION == "ea06542ff5fd"


def judge(tmp_path: Path, engine: Any, **settings: Any) -> SoftTifaJudge:
    file = write(tmp_path / "questions.jsonl", CATS)
    config = SoftTifaConfig(questions=str(file), **settings)
    asked = EXPECTED if isinstance(engine, WordEngine) else QuestionsConfig()
    return SoftTifaJudge("tifa", config, engine, asked, AnswerCache(tmp_path / "cache"))


def test_the_term_by_hand(tmp_path: Path) -> None:
    engine = WordEngine(sure)
    (found,) = judge(tmp_path, engine).judge([request()])
    assert found.scores["tifa"] == pytest.approx((0.5 * 0.9 * 0.6) ** (1 / 3))
    assert "Are the cats red? Yes: 0.90" in found.rationale and len(engine.asked) == 3
    # Kept answers are not asked for again; another mean is another judge.
    mean = judge(tmp_path, engine, mean="arithmetic")
    assert mean.judge([request()])[0].scores["tifa"] == pytest.approx(2 / 3)
    assert len(engine.asked) == 3 and mean.identity != judge(tmp_path, engine).identity
    assert mean.pop_metrics()["judge/soft_tifa/tifa/cached_frac"] == 1


def test_a_caption_without_questions_is_no_zero(tmp_path: Path) -> None:
    known, other = judge(tmp_path, WordEngine(sure)).judge([request(), request("a dog")])
    assert known.scores["tifa"] > 0.6 and math.isnan(other.scores["tifa"])
    assert "no questions for this caption in" in other.rationale
    (lost,) = judge(tmp_path / "..", WordEngine(lambda q: None)).judge([request(shade=9)])
    assert math.isnan(lost.scores["tifa"]) and "not finite" in lost.rationale


def test_text_answers_count_one_or_nothing(tmp_path: Path) -> None:
    engine = TalkingEngine({"How many": "Two.", "Are the cats": "No", "Are there": "yes"})
    (found,) = judge(tmp_path, engine, mean="arithmetic").judge([request()])
    assert found.scores["tifa"] == pytest.approx(2 / 3)
    assert found.raw_answers["tifa"].startswith("How many cats are in the image? Two.")
    with pytest.raises(InputError, match="'expected', which talking cannot"):
        EngineClient(engine, expected=True)


def make(questions: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(factory, "make_engine", lambda *_: WordEngine(chance))
    http = HttpConfig(url="http://127.0.0.1:9/v1", model="m")
    config = JudgeConfig(kind="http", terms=("pi",), http=http, questions=EXPECTED)
    terms = {"tifa": TermConfig(soft_tifa=SoftTifaConfig(questions=questions))}
    factory.check_functions(config, terms)
    return factory.make_judge(config, None, None, terms)


def test_a_function_makes_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine_atoms.py"
    file.write_text(
        "def ask(caption):\n"
        "    if caption == 'bad': return [['How many?', 'red']]\n"
        "    return None if caption == 'none' else [[f'Is there {caption}?', 'Yes']]\n"
    )
    made = make(f"{file}:ask", monkeypatch)
    assert made.terms == ("pi", "tifa")
    one, none = (r.scores["tifa"] for r in made.judge([request("a cat"), request("none")]))
    assert 0 <= one <= 1 and math.isnan(none)
    with pytest.raises(InputError, match="for 'bad', question 1 asks how many"):
        made.judge([request("bad")])
    where = file.read_text() + "def stop(caption): raise SystemExit(3)\n"
    file.with_name("stops.py").write_text(where)
    stops = make(f"{file.with_name('stops.py')}:stop", monkeypatch)
    with pytest.raises(RunError, match=r"stop for 'a' raised SystemExit: 3 .*stops.py, line 4"):
        stops.judge([request("a")])
    with pytest.raises(InputError, match="has no function other"):
        make(f"{file}:other", monkeypatch)


def test_settings_that_cannot_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = write(tmp_path / "b.jsonl", CATS, {**CATS, "vqa_list": CATS["vqa_list"][:1],
                                             "skills": ["count"]})  # fmt: skip
    with pytest.raises(InputError, match="two different lists of questions for 'two red cats'"):
        make(str(two), monkeypatch)
    with pytest.raises(InputError, match="No such file"):
        make(str(tmp_path / "no.jsonl"), monkeypatch)
    terms = {"tifa": TermConfig(soft_tifa=SoftTifaConfig(questions=str(two)))}
    with pytest.raises(InputError, match="tifa.soft_tifa asks questions, and the judge is shapes"):
        factory.make_judge(JudgeConfig(), None, None, terms)
    with pytest.raises(ConfigError, match="questions"):
        SoftTifaConfig(questions="")
