"""Questions about images with the answers that count as right, from a file or drawn.

A file holds one JSON object a line:

    {"image": "cat.png", "question": "What is it?", "answer": "a cat"}
    {"image": "cat.png", "question": "What is it?", "answer": ["cat", "kitten"], "kind": "objects"}
    {"image": "cat.png", "question": "Is it a dog?", "answer": "no"}
    {"image": "cat.png", "question": "What is it?", "choices": ["dog", "cat"], "answer": "B"}

`image` is a path, relative to the file's own folder. `answer` is a text or a number, or a list of
those, any of which is right; of options it is a letter or an option's text. `kind` names the group
that the question is counted in, any but "all"; without it that is the form of its answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from gotr1_jax.data.sources import read_lines
from gotr1_jax.errors import InputError
from gotr1_jax.evaluation.understanding_rules import (
    LETTERS,
    YES_NO_WORDS,
    Form,
    normalise,
    read_answer,
)
from gotr1_jax.images import open_image
from gotr1_jax.shapes.questions import sample_questions
from gotr1_jax.shapes.render import render

ALL = "all"
"""The name under which all questions are counted together."""
_HINTS: dict[Form, str] = {
    "short": "Answer with one word or a short phrase.",
    "yes_no": "Answer yes or no.",
    "choice": "Answer with the letter of the right option.",
}


@dataclass(frozen=True)
class UnderstandingQuestion:
    """One question about one image.

    Attributes:
      line: of its file, from 1.
      image: the image's file; `image` is the SHA-256 (hex) of its bytes.
      text: the question as it was given.
      form: how an answer to it is read; see `understanding_rules`.
      accepted: what a right answer comes to, by `read_answer`.
      choices: the options, where there are any.
      kind: what it is counted under.
    """

    line: int
    image: Path
    image_digest: str
    text: str
    form: Form
    accepted: tuple[str, ...]
    choices: tuple[str, ...]
    kind: str

    @property
    def asked(self) -> str:
        """What a model is asked: the question, its options, and how to answer."""
        options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, self.choices)]
        return "\n".join([self.text, *options, _HINTS[self.form]])

    def is_right(self, said: str) -> bool:
        """Whether an answer counts as right."""
        return read_answer(said, self.form, self.choices) in self.accepted


def read_questions(path: Path, max_bad: float) -> tuple[list[UnderstandingQuestion], list[str]]:
    """The questions of a file, and what is wrong with each line that is left out.

    Raises InputError where the file cannot be read, nothing of it can be asked, or more than the
    share `max_bad` of its lines cannot.
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
            f"{len(bad)} of {total} lines of {path} cannot be asked, the share that may be left "
            f"out is {max_bad:g} (--max-bad){reason}"
        )
    return found, bad


def write_shapes_questions(folder: Path, count: int, seed: int) -> Path:
    """Draws questions about held-out scenes of the shapes world; returns their file.

    Writes folder/questions.jsonl and folder/images/00000.png, ...; RunError where it cannot.
    """
    from gotr1_jax.io.files import atomic_write, write_failure

    lines = []
    try:
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        for place, question in enumerate(sample_questions(count, "heldout", seed)):
            name = f"pictures/{place:05d}.png"
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
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {getattr(error, 'msg', error)}") from error
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
        raise InputError(f"{where} has the kind {ALL!r}, which stands for all of them")
    choices = tuple(_texts(record, "choices", where)) if "choices" in record else ()
    if choices and not 2 <= len(choices) <= len(LETTERS):
        raise InputError(f"{where} has {len(choices)} choices; give 2 to {len(LETTERS)}")
    answers = list(_texts(record, "answer", where))
    if choices:
        form: Form = "choice"
    elif all(normalise(answer) in YES_NO_WORDS for answer in answers):
        form = "yes_no"
    else:
        form = "short"
    accepted = tuple(dict.fromkeys(read_answer(answer, form, choices) for answer in answers))
    if "" in accepted:
        raise InputError(f"{where} has an answer that no answer can equal: {answers}")
    if image not in images:
        images[image] = _look_at(image)
    image_digest = images[image]
    if isinstance(image_digest, InputError):
        raise InputError(f"{where}: {image_digest}")
    return UnderstandingQuestion(
        number, image, image_digest, text, form, accepted, choices, kind or form
    )


def _look_at(image: Path) -> str | InputError:
    """A digest of an image's file, or why it is none."""
    try:
        open_image(image)
        return hashlib.sha256(image.read_bytes()).hexdigest()
    except InputError as error:
        return error
    except OSError as error:
        return InputError(f"the picture {image} cannot be read: {error.strerror or error}")


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
