"""Noun phrases and parts of speech of a caption, by spaCy or by rules.

T2I-CompBench's scores are defined on what spaCy's en_core_web_sm finds. The rules need nothing
installed. They follow the word order of such captions and know verbs by their ending only, so
their scores are not comparable with published ones.
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
    """A word and its part of speech: NOUN, PROPN, ADJ or anything else."""

    text: str
    pos: str


@dataclass(frozen=True)
class ParsedCaption:
    """A caption's words and noun phrases, in order."""

    words: tuple[Word, ...]
    phrases: tuple[str, ...]


class CaptionParser(Protocol):
    """Parses captions; `name` says how."""

    name: str

    def parse(self, caption: str) -> ParsedCaption: ...


class SpacyParser:
    """spaCy with its small English model."""

    name = f"spaCy {SPACY_MODEL}"

    @cached_property
    def _pipeline(self) -> Any:
        import spacy

        return spacy.load(SPACY_MODEL)

    def parse(self, caption: str) -> ParsedCaption:
        """The words and noun chunks that spaCy finds."""
        document = self._pipeline(caption)
        return ParsedCaption(
            tuple(Word(token.text, token.pos_) for token in document),
            tuple(chunk.text for chunk in document.noun_chunks),
        )


def make_parser(kind: str) -> CaptionParser:
    """The parser of a kind, "spacy" or "rules"; InputError where spaCy or its model is missing."""
    if kind == "rules":
        return RuleParser()
    if find_spec("spacy") is None or find_spec(SPACY_MODEL) is None:
        raise InputError(
            f"noun phrases as published need spaCy with {SPACY_MODEL}: pip install spacy and "
            f"python -m spacy download {SPACY_MODEL}; or give --phrases rules (not comparable)"
        )
    return SpacyParser()


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


class RuleParser:
    """A noun phrase is a run of words without prepositions, conjunctions and the like.

    A word in -ed or -ing that precedes a preposition or an article, but follows no article, is
    taken for a verb and ends the phrase. A comma after the first adjective is part of the phrase.
    The last word is a noun, articles are determiners, the rest are adjectives.
    """

    name = "rules"

    def parse(self, caption: str) -> ParsedCaption:
        """The words and noun phrases of a caption in English."""
        tokens = _TOKEN.findall(caption)
        tags = ["X"] * len(tokens)
        phrases = []
        for start, end in _runs(tokens):
            phrases.append(" ".join(tokens[start:end]).replace(" ,", ","))
            for i in range(start, end):
                is_last = i == end - 1
                is_determiner = tokens[i].lower() in _DETERMINERS
                if tokens[i] != ",":
                    tags[i] = "DET" if is_determiner else "NOUN" if is_last else "ADJ"
        return ParsedCaption(tuple(map(Word, tokens, tags)), tuple(phrases))


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
    # "on the left of": a noun after its article, else a verb.
    if word in ("left", "right"):
        return not (i and tokens[i - 1].lower() == "the")
    if word == "," and i == start + 2 and tokens[start].lower() in _DETERMINERS:
        following = tokens[i + 1].lower() if i + 1 < len(tokens) else "."
        return following in _BREAKS or following in _DETERMINERS
    if word in _BREAKS or not word[0].isalnum():
        return True
    if word.endswith("ly") and word not in _NOT_ADVERBS:
        return True
    if not word.endswith(("ed", "ing")):
        return False
    following = tokens[i + 1].lower() if i + 1 < len(tokens) else "."
    at_end = word.endswith("ed") and not following[0].isalnum()
    named = i > start and all(token.lower() in _DETERMINERS for token in tokens[start:i])
    return not named and (following in _BREAKS or following in _DETERMINERS or at_end)
