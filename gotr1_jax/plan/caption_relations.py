"""Objects and relations of a caption in English, by rules that rather give up than guess.

Understood are one or more clauses "A RELATION B", joined by "and" or a comma, such as the captions
of T2I-CompBench's spatial category (2307.06350) and the simple ones of its complex category: "a
cup on the left of a dog", "The red hat was on top of the brown coat rack.". A and B are an article
and at most four words. Everything else gives None: relations in depth ("behind", "inside"), lists,
pronouns, relative clauses.
"""

from __future__ import annotations

import re

from gotr1_jax.plan.relations import UNIDET_RULE, LayoutGoal, LayoutRule, name_words

# The words of a caption, longest first, and the relation that they mean.
_SIDES = {
    "left of": r"(?:(?:on|to|at) )?(?:the )?left(?:[- ]hand)?(?: side)? of",
    "right of": r"(?:(?:on|to|at) )?(?:the )?right(?:[- ]hand)?(?: side)? of",
    "above": r"(?:on|at) (?:the )?top(?: side)? of|above",
    "below": r"(?:on|at) (?:the )?bottom(?: side)? of|below|underneath|beneath|under",
    "next to": r"next to|(?:on|by) (?:the )?side of|beside|close to|adjacent to|near",
}
_RELATION = re.compile(
    r"\s(?:{})\s".format("|".join(f"(?P<r{i}>{words})" for i, words in enumerate(_SIDES.values())))
)
_CLAUSES = re.compile(r"\s*,\s*(?:and\s+)?|\s+and\s+")
_BE = re.compile(r"\s(?:is|are|was|were|stands?|stood|sits?|sat|lies|lay|rests?|hangs?|hung)$")
_POSTURE = re.compile(
    r"\s(?:sitting|standing|lying|laying|resting|placed|hanging|perched|parked|located|positioned|"
    r"floating|sleeping|situated|set)$"
)
# Verbs of a place or a movement; those in -ed but the nouns that end so.
_VERB = re.compile(
    r"\s(?:flew|swam|swims?|ran|runs|grew|grows|shone|shines|slept|sleeps|leans|leant|floats|hovers|"
    r"soars|perches|walks|jumps|glows|blooms|crept|"
    r"(?!(?:bed|breed|moped|seaweed|seed|shed|sled|steed|weed|reed|bobsled|flowerbed)$)[a-z]{3,}ed)$"
)
_NOUN_PHRASE = re.compile(r"(?:(?:a|an|the|one) )?((?:[a-z][a-z'’-]* ){0,3}[a-z][a-z'’-]*)")
# A phrase with one of these is more than a noun with its adjectives.
_NOT_IN_PHRASE = frozenset(
    re.split(
        r"\s+",
        """of in on at by for with from to into onto over under above below behind beside between
        among near next inside outside through across along around against toward off out up down
        front hidden is are was were be been being am has have had do does did can could will would
        may might must should it they them he she him we us i you its his her their my our your who
        which that this these those there here not no or nor but while when where if than then as
        and both each every all some any other another two three four five six seven eight nine ten
        very left right top bottom side a an without many several few multiple dozen pair couple
        just directly immediately slightly partially never always rarely hardly wearing holding
        riding eating drinking carrying using chasing watching playing reading driving""",
    )
)


def parse_relations(caption: str, rule: LayoutRule = UNIDET_RULE) -> LayoutGoal | None:
    """The objects and relations of a caption; None where the rules do not understand all of it.

    >>> parse_relations("a bird on the left of a dog").relations
    ((0, 'left of', 1),)
    """
    text = " ".join(caption.casefold().split()).rstrip(" .!")
    names: list[str] = []
    relations = []
    for clause in _CLAUSES.split(text):
        found = list(_RELATION.finditer(f" {clause} "))
        if len(found) != 1:
            return None
        (match,) = found
        padded = f" {clause} "
        first = _read_object(_without_verb(padded[: match.start()]))
        second = _read_object(padded[match.end() :].strip())
        if first is None or second is None:
            return None
        relation = list(_SIDES)[int(str(match.lastgroup)[1:])]
        i = _known(names, *first)
        relations.append((i, relation, _known(names, *second, other=i)))
    return LayoutGoal(tuple(names), tuple(relations), rule)


def _without_verb(phrase: str) -> str:
    """What comes before a relation, without its verb: "was", "is standing", "floated"."""
    return _VERB.sub("", _POSTURE.sub("", _BE.sub("", phrase)))


def _read_object(phrase: str) -> tuple[str, bool] | None:
    """A name without its article, and whether it had a "the"."""
    phrase = _BE.sub("", f" {phrase.strip()}").strip()
    match = _NOUN_PHRASE.fullmatch(phrase)
    if match is None:
        return None
    name = match.group(1)
    words = name.split()
    if not name_words(name) or _NOT_IN_PHRASE & set(words):
        return None
    if any(word.endswith(("n't", "n’t")) for word in words):
        return None
    return name, phrase.startswith("the ")


def _known(names: list[str], name: str, definite: bool, other: int | None = None) -> int:
    """Index of a name; "the dog" is the dog named before, "a dog" a new one."""
    if definite and name in names and names.index(name) != other:
        return names.index(name)
    names.append(name)
    return len(names) - 1
