"""What counts as a right answer.

short    The answer is right when it equals one of the accepted ones after normalisation: lower
         case, compatibility forms folded (NFKC), commas within numbers dropped, every other mark
         but a decimal point turned into a blank, the articles a, an and the dropped, number words
         from zero to twelve written as digits. Nothing is searched for inside a sentence.
yes_no   The first word, normalised, is "yes" or "no"; anything else is unclear.
choice   The letter of an option: alone in its line, in parentheses, followed by a mark or by the
         option's own text ("B", "b", "(B)", "B. It is red.", "B red"), or named ("the answer is
         B"); else the text of exactly one option. Anything else is unclear.

An unclear answer is wrong, and counted.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from typing import Literal

Form = Literal["short", "yes_no", "choice"]
YES_NO_WORDS = ("yes", "no")
LETTERS = string.ascii_uppercase
_ARTICLES = {"a", "an", "the"}
_NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve"
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS.split(" "))}
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_MARKS = re.compile(r"(?<!\d)\.|\.(?!\d)|[^\w\s.]|_")
_LETTER_ALONE = re.compile(r"\W*([A-Za-z])(?:\W*(?:\n.*)?|\s*[).:,]\s.*)", re.DOTALL)
_LETTER_AND_TEXT = re.compile(r"\W*([A-Za-z])\s+(.*)", re.DOTALL)
_LETTER_NAMED = re.compile(r"\b(?:answer|option|choice)(?:\s+is)?\s*:?\s*\(?([A-Z])\b(?!['’])")


def normalise(text: str) -> str:
    """The text as it is compared; see the module's text.

    >>> normalise("The  Two cats, 1,000 of 2.5!")
    '2 cats 1000 of 2.5'
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    plain = _MARKS.sub(" ", _COMMA_IN_NUMBER.sub("", folded))
    words = (_DIGITS.get(word, word) for word in plain.split() if word not in _ARTICLES)
    return " ".join(words)


def read_answer(said: str, form: Form, choices: Sequence[str] = ()) -> str:
    """What an answer comes to: normalised text, "yes" or "no", or a letter; "" if unclear."""
    if form == "short":
        return normalise(said)
    if form == "yes_no":
        first = normalise(said).split(" ")[0]
        return first if first in YES_NO_WORDS else ""
    return _read_letter(said, choices)


def _read_letter(said: str, choices: Sequence[str]) -> str:
    letters = LETTERS[: len(choices)]
    texts = dict(zip(letters, map(normalise, choices)))
    alone, both = _LETTER_ALONE.fullmatch(said), _LETTER_AND_TEXT.fullmatch(said)
    if alone and alone[1].upper() in letters:
        return alone[1].upper()
    if both and texts.get(both[1].upper()) == normalise(both[2]):
        return both[1].upper()
    named = {m[1] for m in _LETTER_NAMED.finditer(said)} & set(letters)
    if len(named) == 1:
        return named.pop()
    spelled = [letter for letter, text in texts.items() if text and text == normalise(said)]
    return spelled[0] if len(spelled) == 1 else ""
