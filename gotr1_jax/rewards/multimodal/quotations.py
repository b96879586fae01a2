"""Tells what a judge answers from what it quotes, and text that looks like an answer.

What the policy writes must never be read as its own score. A judge may quote a plan before and
behind its own answer.
"""

from __future__ import annotations

import re

# Typographic and full-width characters that stand for plain ones.
_PLAIN = str.maketrans(
    {
        **dict.fromkeys("“”„‟«»＂″", '"'),
        **dict.fromkeys("‘’‚‛`´′＇", "'"),
        **dict.fromkeys("−–—", "-"),
        **{chr(0xFF10 + i): str(i) for i in range(10)},
        **dict(zip("：，．／［］｛｝（）", ":,./[]{}()")),
        "\u00a0": " ",
    }
)
_NUMBER = r"[-+]?\d{1,9}(?:\.\d{1,9})?"
_ANSWER_LIKE = {
    "score": re.compile(
        rf"(?:\b|_)(?:score|rating|verdict|grade|answer|decision)s?\b(?:[\W_]{{0,9}}|[\W_]{{0,9}}"
        rf"(?:is|of|be|to|a|at|equals?)\b[\W_]{{0,9}}){{1,3}}{_NUMBER}"
        rf"|(?<![\d.]){_NUMBER}\s{{0,9}}(?:/|out of)\s{{0,9}}10\b",
        re.IGNORECASE,
    ),
    "verdict": re.compile(r"boxed", re.IGNORECASE),
    "boxes": re.compile(rf"bbox|\bbox_2d|{_NUMBER}(?:[\s,()\[\]]+{_NUMBER}){{3}}", re.IGNORECASE),
}
_FILLERS = (
    r"(?:that|the|a|an|its|this|these|following|literal|text|line|string|sentence|object|json|"
    r"words?|phrase|statement|of|to|answer|with|give|output|like|as|itself|own|score)"
)
_GAP = r"(?:\.\.\.|[^\w.!?;])"  # no end of a sentence
_REPORTS = re.compile(
    r"(?:\b(?:say|says|said|saying|read|reads|reading|contains?|containing|contained|holds?|"
    r"holding|states?|stating|claims?|claiming|includes?|including|writes?|writing|wrote|written|"
    r"quotes?|quoting|quoted|declares?|demands?|requests?|inserts?|asks? for|asks? (?:me )?to|"
    r"asking for|tells? (?:me|us) to|instructs?|mentions?|mentioning|named|called|labell?ed|"
    r"(?:the|its|embedded|injected) (?:text|words?|line|string|sentence|caption|plan|prompt|name|"
    r"label)s?)\b|\b(?:plan|caption|prompt|text|quote|quotation|name|label|input|user|material|"
    r"instruction)s?['\"*_]{0,3}\s{0,9}:)"
    rf"{_GAP}{{0,20}}(?:{_FILLERS}\b{_GAP}{{0,20}}){{0,6}}\Z",
    re.IGNORECASE,
)


def plain(text: str) -> str:
    """`text` with plain quotes, dashes and digits."""
    return text.translate(_PLAIN)


def looks_like_answer(text: str, kind: str = "") -> bool:
    """Whether a text holds what could be read as an answer of a kind ("": of any kind).

    kind: "score", "boxes" or "verdict". A plan has boxes of its own; they are not meant by "".
    """
    kinds = [kind] if kind else ["score", "verdict"]
    return any(_ANSWER_LIKE[name].search(plain(text)) for name in kinds)


def is_quoted(text: str, start: int, end: int) -> bool:
    """Whether the span of a plain text stands in quotation marks, a block quotation, or behind
    words that report what another text says."""
    before, after = text[:start], text[end : end + 4]
    opening = before[-1:] in ("'", '"') and after.lstrip(" .,;!?")[:1] in ("'", '"')
    line = before.rpartition("\n")[2].lstrip()
    block = line.startswith((">", "<<<")) or "<<<" in before.rpartition(">>>")[2]
    return bool(opening and line.strip("\"'")) or block or bool(_REPORTS.search(before[-160:]))
