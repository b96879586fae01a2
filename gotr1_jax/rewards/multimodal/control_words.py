"""Words by which chat formats mark turns, images and thoughts, made ordinary in others' text.

A caption, a plan or a name is put into a question as text. Where the server's template or tokenizer
takes a word of it for a mark, it would end the question, open an answer or stand for an image.
Servers run any model, so that shapes are matched rather than a list of names: what stands in angle
brackets without a blank (<|im_end|>, <start_of_turn>, </s>, <image>, <IMG_CONTEXT>, <｜User｜>), in
square brackets in capitals ([INST], [IMG_BREAK]), in triangles (◁think▷), and role words with a
colon (ASSISTANT:). A blank behind the first character makes it ordinary; all other text stays as
it is.
"""

from __future__ import annotations

import re

# "<|" always; "<", any characters but blanks with a letter or digit among them, ">".
_ANGLE = re.compile(r"([<＜﹤])(?=[|｜]|[^\s\w<>＜＞﹤﹥]*\w[^\s<>＜＞﹤﹥]*[>＞﹥])")
_TRIANGLE = re.compile(r"◁(?=[^\s◁▷]+▷)")
_SQUARE = re.compile(
    r"\[(?=/?(?:[A-Z]+(?:_[A-Z0-9]+)+|INST|SYS|IMG|THINK|ARGS|AUDIO|PREFIX|SUFFIX|MIDDLE|[gs]?MASK|"
    r"CLS|SEP|PAD|UNK|BOS|EOS|control_\d+)\])"
)
# MiniMax: ]~b]user, [e~[, ]<]image[>[
_MIXED = re.compile(r"\](?=~!?b[\[\]])|\[(?=e~\[)|\](?=<\][^<>\[\]]{1,40}\[>\[)")
_ROLES = "user|assistant|system|human"
_ROLE = re.compile(
    rf"(?:{_ROLES.upper()})(?=:)|(?:(?<=\n)|#{{2,9}})[ \t]{{0,9}}"
    rf"(?i:{_ROLES}|instruction|response|input)(?=:)"
)
_BRACKETS = re.compile(r"<<+|>>+")
# One such word between <<< and >>> would be a mark: <<<image>>> holds <image>.
_MARK_NAMES = (
    "s bos eos pad unk image images img video audio think thinking thought user assistant system "
    "bot human eot eom eoh eoa eou sop eop ref quad turn"
)
_MARKS = frozenset(_MARK_NAMES.split())
_FIRST = re.compile(r"(?:[/\w|｜][^\s<>]*)?")
_NUMBERED = re.compile(r"[a-z]+\d+|0x[0-9A-F]{2}")
_OPEN_END = re.compile(r"<[^\s<>]*\Z")


def harmless(text: str) -> str:
    """`text` in which no word is a mark of a chat format, nor the beginning or end of <<<...>>>.

    Text without such words is unchanged, but for blanks at its ends.
    """
    text = _BRACKETS.sub(lambda m: m.group()[0], text)
    text = _ANGLE.sub(r"\1 ", text)
    text = _TRIANGLE.sub("◁ ", text)
    for shape in (_SQUARE, _MIXED, _ROLE):
        text = shape.sub(lambda m: m.group() + " ", text)
    return text.strip()


def enclose(text: str) -> str:
    """`text` neutralised between <<< and >>>, with which it makes no mark either."""
    text = harmless(text)
    first = _FIRST.match(text)
    assert first is not None
    word, rest = first.group(), text[first.end() :]
    odd = word.endswith(("|", "｜")) or any(c in word for c in "_/:") or _NUMBERED.fullmatch(word)
    alone = not rest and (word.lower() in _MARKS or odd)
    if word.startswith(("|", "｜")) or (word and rest.startswith(">")) or alone:
        text = " " + text
    if _OPEN_END.search(text):
        text += " "
    return f"<<<{text}>>>"
