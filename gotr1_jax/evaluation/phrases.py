"""Noun phrases and kinds of words of a caption, by spaCy or by rules.

T2I-CompBench's scores are defined on what spaCy's en_core_web_sm finds. The rules need nothing
installed; they follow the word order of such captions and know no verbs but by their form, so
what is scored with them is not comparable with published figures.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

from gotr1_jax.errors import InputError

SPACY_MODEL = "en_core_web_sm"


class Word(NamedTuple):
    """A word and its kind: NOUN, PROPN, ADJ or anything else."""

    text: str
    kind: str


@dataclass(frozen=True)
class Wording:
    """A caption's words and noun phrases, in their order."""

    words: tuple[Word, ...]
    phrases: tuple[str, ...]


class Reader(Protocol):
    """Reads captions; `name` says how."""

    name: str

    def read(self, caption: str) -> Wording: ...


class SpacyReader:
    """spaCy with its small English model."""

    name = f"spaCy {SPACY_MODEL}"

    @cached_property
    def _pipeline(self) -> Any:
        import spacy

        return spacy.load(SPACY_MODEL)

    def read(self, caption: str) -> Wording:
        """The words and noun chunks that spaCy finds."""
        read = self._pipeline(caption)
        return Wording(
            tuple(Word(token.text, token.pos_) for token in read),
            tuple(chunk.text for chunk in read.noun_chunks),
        )


def make_reader(kind: str) -> Reader:
    """The reader of a kind, "spacy" or "rules"; InputError where spaCy or its model is missing."""
    if kind == "rules":
        return RuleReader()
    if find_spec("spacy") is None or find_spec(SPACY_MODEL) is None:
        raise InputError(
            f"noun phrases as published need spaCy with {SPACY_MODEL}: pip install spacy and "
            f"python -m spacy download {SPACY_MODEL}; or give --phrases rules (not comparable)"
        )
    return SpacyReader()


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DETERMINERS = _words(
    "a an the this that these those his her its their my your our some any each every no "
    "another one two three four five six seven eight nine ten"
)
# Words that end a noun phrase and begin none.
_BREAKS = _words(
    "of in on at by for with from to into onto over under above below behind beside between "
    "among near next inside outside through across along around against toward towards up down "
    "off out past during before after about as like without within upon beneath atop amid and "
    "or but nor while when where which who whose because if than then is are was were be been "
    "being am has have had do does did can could will would may might must should it they them "
    "he she him we us i you itself themselves there here not very together sat stood lay hung "
    "shone fell wrote sped swam drove slept grew rose lit cast made told spun kept left right "
    "wore held"
)
_NOT_ADVERBS = _words("butterfly dragonfly firefly fly family jelly belly lily early")
_TOKEN = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")


class RuleReader:
    """Noun phrases are runs of words without prepositions, conjunctions and the like in them.

    A phrase ends, too, before a word on -ed or -ing that a preposition or an article follows and
    that does not follow an article itself: that is taken for a verb. A comma behind the first
    adjective is part of the phrase. The last word counts as a noun, articles as others, the rest
    as adjectives.
    """

    name = "rules"

    def read(self, caption: str) -> Wording:
        """The words and noun phrases of a caption in English."""
        tokens = _TOKEN.findall(caption)
        kinds = ["X"] * len(tokens)
        phrases = []
        for start, end in _runs(tokens):
            phrases.append(" ".join(tokens[start:end]).replace(" ,", ","))
            for i in range(start, end):
                is_last = i == end - 1
                plain = tokens[i].lower() in _DETERMINERS
                if tokens[i] != ",":
                    kinds[i] = "DET" if plain else "NOUN" if is_last else "ADJ"
        return Wording(tuple(map(Word, tokens, kinds)), tuple(phrases))


def _runs(tokens: list[str]) -> list[tuple[int, int]]:
    """(first, end) of each noun phrase."""
    runs: list[tuple[int, int]] = []
    start = 0
    for i in range(len(tokens) + 1):
        begins = i < len(tokens) and tokens[i].lower() in _DETERMINERS
        if i < len(tokens) and not begins and not _breaks(tokens, i, start):
            continue
        if any(token.lower() not in _DETERMINERS for token in tokens[start:i]):
            runs.append((start, i - (tokens[i - 1] == ",")))
        start = i if begins else i + 1
    return runs


def _breaks(tokens: list[str], i: int, start: int) -> bool:
    word = tokens[i].lower()
    # "on the left of": a noun behind its article, else a verb.
    if word in ("left", "right"):
        return not (i and tokens[i - 1].lower() == "the")
    if word == "," and i == start + 2 and tokens[start].lower() in _DETERMINERS:
        behind = tokens[i + 1].lower() if i + 1 < len(tokens) else "."
        return behind in _BREAKS or behind in _DETERMINERS
    if word in _BREAKS or not word[0].isalnum():
        return True
    if word.endswith("ly") and word not in _NOT_ADVERBS:
        return True
    if not word.endswith(("ed", "ing")):
        return False
    behind = tokens[i + 1].lower() if i + 1 < len(tokens) else "."
    at_end = word.endswith("ed") and not behind[0].isalnum()
    named = i > start and all(token.lower() in _DETERMINERS for token in tokens[start:i])
    return not named and (behind in _BREAKS or behind in _DETERMINERS or at_end)
