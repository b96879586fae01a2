"""Answers of one word: yes or no, a number, a letter; their forms, and how they are read."""

from __future__ import annotations

import re
from collections.abc import Iterable

from gotr1_jax.rewards.multimodal.answers import ScoreReading
from gotr1_jax.rewards.multimodal.quotations import plain
from gotr1_jax.rewards.multimodal.thoughts import UnreadableError, answer_text
from gotr1_jax.vlm_engine.base import FirstWords

NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve",
)  # fmt: skip
_NUMBERS = tuple((word, str(number)) for number, word in enumerate(NUMBER_WORDS))
_YES_NO = ("yes", "no")
# What an answer may begin with before its word.
_LEAD = re.compile(
    r"(?:the|my|final|correct|best|answer|option|choice|is|are|there|it|would be)\b[\s:*_`\"'(\[]*",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W_]+")
_NEXT = re.compile(r"\s+\w")
_MARKS = " \t\r\n*_`\"'([{<#>.:-"


def _forms(words: Iterable[str]) -> tuple[str, ...]:
    """Each word as it is and capitalised, with and without a blank in front; once."""
    spelled = [form for word in words for form in (word, word[:1].upper() + word[1:])]
    return tuple(dict.fromkeys(f"{blank}{form}" for blank in ("", " ") for form in spelled))


def is_digits(text: str) -> bool:
    """Whether a text is a number in digits; not ², which Python calls one."""
    return text.isascii() and text.isdecimal()


def yes_or_no(right: str) -> FirstWords:
    """For a question that yes or no answers; `right` is one of them, in any case."""
    right = right.strip().lower()
    return FirstWords(_forms((right,)), tuple(word for word in _YES_NO if word != right))


def number(right: str) -> FirstWords:
    """For a question that a number answers, as a word or in digits."""
    right = right.strip().lower()
    both = next((pair for pair in _NUMBERS if right in pair), (right,))
    others = [word for pair in _NUMBERS for word in pair]
    forms = tuple(dict.fromkeys(form for word in both for form in _forms((word,))))
    return FirstWords(forms, tuple(w for w in (*others, "no", "none") if w not in both))


def letter(right: str, letters: Iterable[str]) -> FirstWords:
    """For a question with lettered choices; `right` is one of the letters."""
    wrong = tuple(other.lower() for other in letters if other != right)
    return FirstWords((right, f" {right}"), wrong)


def word_or_phrase(right: str) -> FirstWords:
    """For a question with an open answer: the forms of its first word."""
    return FirstWords(_forms((right.strip(),)))


def parse_word(text: str, words: FirstWords) -> ScoreReading:
    """1.0 where an answer begins with the right word, 0.0 where with a wrong one; UnreadableError.

    Markup and words as in "The answer is" are passed over. Digits are a wrong answer wherever any
    number is one. Without wrong answers, any other word is one.
    """
    answer = plain(answer_text(text)).lstrip(_MARKS)
    right = {form.strip().lower() for form in words.right}
    while True:
        found = _WORD.match(answer)
        if found is None:
            raise UnreadableError("it has no word")
        word = found.group().lower()
        is_article = word == "a" and _NEXT.match(answer, found.end()) is not None
        if (word in right or word in words.wrong) and not is_article:
            return ScoreReading(float(word in right), "")
        # A phrase is right as a whole.
        if any(" " in form and answer.lower().startswith(form) for form in right):
            return ScoreReading(1.0, "")
        lead = _LEAD.match(answer)
        if lead is None:
            break
        answer = answer[lead.end() :].lstrip(_MARKS)
    if not words.wrong or (is_digits(word) and any(map(is_digits, words.wrong))):
        return ScoreReading(0.0, "")
    raise UnreadableError("its first word is no answer to the question")
