"""Atoms: a caption's questions of one right word each, and Soft-TIFA, the score from their answers.

Soft-TIFA (GenEval 2, arXiv 2512.16853): the probability that a model that sees the image answers a
question with the right word; over the atoms of a caption their arithmetic or geometric mean. The
format is that of GenEval 2's geneval2_data.jsonl, one caption a line:

    {"prompt": "two red cats", "atom_count": 3,
     "vqa_list": [["How many cats are in the image?", "two"], ["Are the cats red?", "Yes"]],
     "skills": ["count", "attribute"]}
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gotr1_jax.errors import InputError
from gotr1_jax.io.reading import parse_json_object, read_lines
from gotr1_jax.rewards.multimodal import words
from gotr1_jax.rewards.multimodal.control_words import harmless
from gotr1_jax.vlm_engine.base import FirstWords, ImageInput, Question

_FORMAT = "give a file in the format of GenEval 2's geneval2_data.jsonl"
_IN_ONE_WORD = "Answer in one word."


@dataclass(frozen=True)
class Atom:
    """One question about an image, its right answer, and the skill that it tests ("": unknown)."""

    question: str
    answer: str
    skill: str = ""

    @property
    def words(self) -> FirstWords:
        """The forms of the answer: yes or no, a number, or an open answer."""
        if self.question.lower().startswith("how many") or words.is_digits(self.answer):
            return words.number(self.answer)
        if self.answer.lower() in ("yes", "no"):
            return words.yes_or_no(self.answer)
        return words.word_or_phrase(self.answer)

    @property
    def text(self) -> str:
        """The question as it is asked."""
        ended = self.question if self.question.endswith((".", "?")) else f"{self.question}."
        return f"{ended} {_IN_ONE_WORD}"


@dataclass(frozen=True)
class AtomCaption:
    """A caption and its atoms; `atom_count` is the benchmark's own number of them, 0: not given."""

    caption: str
    atoms: tuple[Atom, ...]
    atom_count: int = 0


def read_atoms(path: Path, skills: bool = False) -> list[AtomCaption]:
    """The captions of a file. InputError, naming the line, for what is not in its format.

    skills: whether each atom must have one, as in the benchmark.
    """
    found = []
    for number, line in read_lines(path, "questions"):
        where = f"{path}, line {number}"
        found.append(read_caption(parse_json_object(line, where), where, skills))
    if not found:
        raise InputError(f"{path} holds no questions; {_FORMAT}")
    return found


def read_caption(record: dict[str, Any], where: str, skills: bool = False) -> AtomCaption:
    """The caption of one line; see `read_atoms`."""
    for name in ("prompt", "vqa_list"):
        if name not in record:
            raise InputError(f"{where} has no {name!r}; {_FORMAT}")
    prompt = record["prompt"]
    if not (isinstance(prompt, str) and prompt.strip()):
        raise InputError(f"{where} has no text under 'prompt'")
    atoms = make_atoms(record["vqa_list"], where)
    tags = record.get("skills")
    if tags is None and skills:
        raise InputError(f"{where} has no 'skills', one for each of its questions; {_FORMAT}")
    if tags is not None:
        good = isinstance(tags, list) and all(isinstance(t, str) and t for t in tags)
        if not good or len(tags) != len(atoms):
            raise InputError(f"{where}: 'skills' must be {len(atoms)} texts, one for each question")
        atoms = [Atom(a.question, a.answer, tag) for a, tag in zip(atoms, tags)]
    count = record.get("atom_count", 0)
    if type(count) is not int or count < 0:
        raise InputError(f"{where}: 'atom_count' is {count!r}, which is no number of atoms")
    return AtomCaption(prompt.strip(), tuple(atoms), count)


def make_atoms(pairs: Any, where: str) -> list[Atom]:
    """Atoms from a list of (question, right answer); InputError for anything else."""
    if not isinstance(pairs, list | tuple) or not pairs:
        raise InputError(f"{where} gives no list of questions, each [question, answer]")
    return [_atom(pair, f"{where}, question {i}") for i, pair in enumerate(pairs, start=1)]


def _atom(pair: Any, where: str) -> Atom:
    texts = list(pair) if isinstance(pair, list | tuple) else []
    if len(texts) != 2 or not all(isinstance(t, str) and t.strip() for t in texts):
        raise InputError(f"{where} is {str(pair)[:60]!r}, not [question, answer], two texts")
    atom = Atom(harmless(texts[0]), harmless(texts[1]))
    is_number = atom.answer.lower() in words.NUMBER_WORDS or words.is_digits(atom.answer)
    if atom.question.lower().startswith("how many") and not is_number:
        raise InputError(f"{where} asks how many, and its answer is {atom.answer!r}, no number")
    return atom


def ask(atom: Atom, image: ImageInput, max_answer_tokens: int) -> Question:
    """The question to a model that sees the image, as GenEval 2 asks it: without instructions."""
    return Question("word", (image,), "", atom.text, max_answer_tokens, words=atom.words)


def arithmetic_mean(values: Sequence[float]) -> float:
    """Soft-TIFA AM; NaN where an answer is missing."""
    return math.fsum(values) / len(values)


def geometric_mean(values: Sequence[float]) -> float:
    """Soft-TIFA GM; 0 where a probability is, NaN where an answer is missing."""
    if any(map(math.isnan, values)):
        return math.nan
    if min(values) <= 0:
        return 0.0
    return math.exp(math.fsum(map(math.log, values)) / len(values))
