"""Questions about images with right answers, from a file or generated, and how answers are read.

A file holds one JSON object a line:

    {"image": "cat.png", "question": "What is it?", "answer": "a cat"}
    {"image": "cat.png", "question": "What is it?", "answer": ["cat", "kitten"], "kind": "objects"}
    {"image": "cat.png", "question": "Is it a dog?", "answer": "no"}
    {"image": "cat.png", "question": "What is it?", "choices": ["dog", "cat"], "answer": "B"}

`image` is a path, relative to the file's own folder. `answer` is a text or a number, or a list of
those, any of which is right; with `choices` it is a letter or a choice's text. `kind` names the
group that the question is counted in, any but "all"; by default it is the form of its answer:

short    The answer is right when it equals an accepted one after normalisation: lower case,
         compatibility forms merged (NFKC), commas within numbers dropped, every other mark but a
         decimal point turned into a blank, the articles a, an and the dropped, number words from
         zero to twelve written as digits. Nothing is searched for inside a sentence.
yes_no   The first word, normalised, is "yes" or "no"; anything else is unclear.
choice   The letter of a choice: alone in its line, in parentheses, followed by a mark or by the
         choice's own text ("B", "b", "(B)", "B. It is red.", "B red"), or named ("the answer is
         B"); else the text of exactly one choice. Anything else is unclear.

An unclear answer is wrong, and counted.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from gotr1_jax.errors import InputError
from gotr1_jax.images import open_image
from gotr1_jax.io.files import atomic_write
from gotr1_jax.io.reading import parse_json, read_bytes, read_lines
from gotr1_jax.io.write_errors import write_failure
from gotr1_jax.rewards.multimodal.thoughts import answer_after_thought
from gotr1_jax.shapes.questions import sample_questions
from gotr1_jax.shapes.render import render

AnswerForm = Literal["short", "yes_no", "choice"]
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
ALL = "all"
"""The name under which all questions are counted together."""
_HINTS: dict[AnswerForm, str] = {
    "short": "Answer with one word or a short phrase.",
    "yes_no": "Answer yes or no.",
    "choice": "Answer with the letter of the right option.",
}


@dataclass(frozen=True)
class UnderstandingQuestion:
    """One question about one image.

    Attributes:
      line: of its file, from 1.
      image: the image's file.
      image_digest: SHA-256 (hex) of its bytes.
      text: the question in the file.
      form: of its answers; see the module's text.
      accepted: the right answers, as `read_answer` returns them.
      choices: letters A, B, ... stand for them; empty where there are none.
      kind: the group that it is counted in.
    """

    line: int
    image: Path
    image_digest: str
    text: str
    form: AnswerForm
    accepted: tuple[str, ...]
    choices: tuple[str, ...]
    kind: str

    @property
    def prompt(self) -> str:
        """The text for the model: the question, its choices, and how to answer."""
        choices = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, self.choices)]
        return "\n".join([self.text, *choices, _HINTS[self.form]])

    def read(self, answer: str) -> str:
        """`read_answer` of this question's form; a thought in front of the answer is none of it."""
        content = answer_after_thought(answer)
        return "" if content is None else read_answer(content, self.form, self.choices)

    def is_right(self, answer: str) -> bool:
        """Whether an answer is right."""
        return self.read(answer) in self.accepted


def read_questions(path: Path, max_bad: float) -> tuple[list[UnderstandingQuestion], list[str]]:
    """The questions of a file, and the error of each line that is left out.

    Raises InputError where the file cannot be read, no line of it can be used, or more than the
    share `max_bad` of its lines cannot be used.
    """
    found: list[UnderstandingQuestion] = []
    bad: list[str] = []
    images: dict[Path, str | InputError] = {}
    for number, line in read_lines(path, "questions"):
        where = f"{path}, line {number}"
        try:
            found.append(_question(_object(line, where), where, number, path.parent, images))
        except InputError as error:
            bad.append(str(error))
    total = len(found) + len(bad)
    if not found or len(bad) > max_bad * total:
        reason = f": {bad[0]}" if bad else "; write one JSON object a line"
        raise InputError(
            f"{len(bad)} of {total} lines of {path} cannot be used; --max-bad allows a share "
            f"of {max_bad:g}{reason}"
        )
    return found, bad


def write_shapes_questions(folder: Path, count: int, seed: int) -> Path:
    """Generates questions about held-out scenes of the shapes world; returns their file.

    Writes folder/questions.jsonl and folder/pictures/00000.png, ...; RunError where it cannot.
    """
    lines = []
    try:
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        for index, question in enumerate(sample_questions(count, "heldout", seed)):
            name = f"pictures/{index:05d}.png"
            Image.fromarray(render(question.scene)).save(folder / name)
            record = {
                "image": name,
                "question": question.text,
                "answer": question.answer,
                "kind": question.kind,
            }
            lines.append(json.dumps(record) + "\n")
    except OSError as error:
        raise write_failure(folder, error) from error
    atomic_write(folder / "questions.jsonl", "".join(lines))
    return folder / "questions.jsonl"


def _object(line: str, where: str) -> dict[str, Any]:
    record = parse_json(line, where)
    if not isinstance(record, dict):
        raise InputError(f"{where} is not an object with image, question and answer")
    return record


def _question(
    record: dict[str, Any],
    where: str,
    number: int,
    folder: Path,
    images: dict[Path, str | InputError],
) -> UnderstandingQuestion:
    text = _text(record, "question", where)
    image = folder / _text(record, "image", where)
    kind = _text(record, "kind", where) if "kind" in record else ""
    if kind == ALL:
        raise InputError(f"{where} has the kind {ALL!r}, which is reserved")
    choices = tuple(_texts(record, "choices", where)) if "choices" in record else ()
    if choices and not 2 <= len(choices) <= len(LETTERS):
        raise InputError(f"{where} has {len(choices)} choices; give 2 to {len(LETTERS)}")
    answers = list(_texts(record, "answer", where))
    if choices:
        form: AnswerForm = "choice"
    elif all(normalise(answer) in YES_NO_WORDS for answer in answers):
        form = "yes_no"
    else:
        form = "short"
    accepted = tuple(dict.fromkeys(read_answer(answer, form, choices) for answer in answers))
    if "" in accepted:
        raise InputError(f"{where} has an answer that cannot be matched: {answers}")
    if image not in images:
        images[image] = _image_digest(image)
    image_digest = images[image]
    if isinstance(image_digest, InputError):
        raise InputError(f"{where}: {image_digest}")
    return UnderstandingQuestion(
        number, image, image_digest, text, form, accepted, choices, kind or form
    )


def _image_digest(image: Path) -> str | InputError:
    """The SHA-256 of an image's file, or why it cannot be used."""
    try:
        open_image(image)
        return hashlib.sha256(read_bytes(image)).hexdigest()
    except InputError as error:
        return error


def _text(record: dict[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where} has no text under {key!r}")
    return _checked(value.strip(), key, where)


def _texts(record: dict[str, Any], key: str, where: str) -> Iterator[str]:
    """One text or number, or a list of them, as texts."""
    value = record.get(key)
    values = value if isinstance(value, list) else [value]
    if not values:
        raise InputError(f"{where} has nothing under {key!r}")
    for item in values:
        if isinstance(item, bool) or not isinstance(item, str | int | float):
            raise InputError(f"{where} has no text under {key!r}")
        yield _checked(str(item), key, where)


def _checked(text: str, key: str, where: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{where} has no valid Unicode under {key!r}: {error.reason}") from error
    return text


def normalise(text: str) -> str:
    """The normalised text; see the module's docstring.

    >>> normalise("The  Two cats, 1,000 of 2.5!")
    '2 cats 1000 of 2.5'
    """
    lower = unicodedata.normalize("NFKC", text).casefold()
    plain = _MARKS.sub(" ", _COMMA_IN_NUMBER.sub("", lower))
    words = (_DIGITS.get(word, word) for word in plain.split() if word not in _ARTICLES)
    return " ".join(words)


def read_answer(answer: str, form: AnswerForm, choices: Sequence[str] = ()) -> str:
    """The content of an answer: normalised text, "yes" or "no", or a letter; "" if unclear."""
    if form == "short":
        return normalise(answer)
    if form == "yes_no":
        first = normalise(answer).split(" ")[0]
        return first if first in YES_NO_WORDS else ""
    return _read_letter(answer, choices)


def _read_letter(answer: str, choices: Sequence[str]) -> str:
    letters = LETTERS[: len(choices)]
    texts = dict(zip(letters, map(normalise, choices)))
    alone, both = _LETTER_ALONE.fullmatch(answer), _LETTER_AND_TEXT.fullmatch(answer)
    if alone and alone[1].upper() in letters:
        return alone[1].upper()
    if both and texts.get(both[1].upper()) == normalise(both[2]):
        return both[1].upper()
    named = {m[1] for m in _LETTER_NAMED.finditer(answer)} & set(letters)
    if len(named) == 1:
        return named.pop()
    spelled = [letter for letter, text in texts.items() if text and text == normalise(answer)]
    return spelled[0] if len(spelled) == 1 else ""
