"""Separates a model's answer from the thought before it.

Models that think write their thought in front of the answer: <think>...</think> (DeepSeek-R1,
Qwen3, GLM-4.5V), [THINK] (Magistral), ◁think▷ (Kimi-VL), <seed:think>, <thought> (EXAONE, Gemini),
<|begin_of_thought|>, <|START_THINKING|> (Cohere), the channels of gpt-oss and Gemma. The opening
mark is missing where the chat template has already written it, both where the server has taken
them out, and the closing one where the answer was cut.
"""

from __future__ import annotations

import re

from gotr1_jax.rewards.multimodal.json_values import whole_value
from gotr1_jax.rewards.multimodal.quotations import is_quoted, plain

MAX_CHARACTERS = 20_000
"""A longer answer, its thought left aside, is not read."""

_MOST_ENDS = 16  # of a thought, behind each of which a whole JSON value is looked for
_NAME = r"(?:\w{1,20}:)?(?:think(?:ing)?|thoughts?|reasoning|analysis|reflection|scratchpad)"
_END = re.compile(
    rf"[<\[◁][|｜]?/{_NAME}[|｜]?[>\]▷]|<\|?end_of_(?:thought|thinking|reasoning)\|?>"
    r"|<\|end_thinking\|>|<channel\|>|<\|channel\|>\s{0,9}final[^<]{0,40}<\|message\|>",
    re.IGNORECASE,
)
_START = re.compile(
    rf"[<\[◁][|｜]?{_NAME}[|｜]?[>\]▷]|<\|?begin_of_(?:thought|thinking|reasoning)\|?>"
    r"|<\|start_thinking\|>|<\|channel\|?>\s{0,9}(?:analysis|commentary|thought)",
    re.IGNORECASE,
)
# gpt-oss behind a server that drops special tokens: "analysisFirst I ... assistantfinal{...".
_BARE_CHANNELS = re.compile(r"\s*analysis.*assistantfinal", re.DOTALL)
_TAGS = re.compile(
    r"</?(?:answer|response|output|final|result|solution)>|<\|(?:begin|end)_of_(?:box|solution|"
    r"answer)\|>|<\|(?:return|end|im_end|eot_id|endoftext)\|>|</s>|<end_of_turn>|<eos>",
    re.IGNORECASE,
)
_LOOSE = re.compile(rf"[<\[◁]\s*[|｜]?\s*/\s*{_NAME}|end_of_thought|channel\s*\|", re.IGNORECASE)
_WHOLE = re.compile(r"\s*(?:```\w*)?\s*[{\[]")


class UnreadableError(ValueError):
    """Why an answer cannot be read, in a few words."""


def answer_text(text: str, material: str = "") -> str:
    """The answer without the thought before it; UnreadableError where there is none."""
    answer = answer_after_thought(text, material)
    if answer is None:
        raise UnreadableError("the thought has no end")
    if len(answer) > MAX_CHARACTERS:
        raise UnreadableError(f"more than {MAX_CHARACTERS} characters")
    return answer


def answer_after_thought(text: str, material: str = "") -> str | None:
    """What stands behind the last end of a thought; None where a thought has no end.

    An answer that is one JSON value as a whole is not cut at a mark that its texts quote. Where
    `material`, the text that was judged, spells a mark, only an answer that opens a thought has
    one: a quotation must not turn what stands before it into a thought.
    """
    text = text.strip()
    begins = _START.match(text) is not None
    marks = list(_END.finditer(text))
    if not begins:
        # Nothing shows that a thought was begun: "it says </think>" does not end one.
        marks = [mark for mark in marks if not is_quoted(plain(text), *mark.span())]
    ends = [mark.end() for mark in marks]
    if bare := _BARE_CHANNELS.match(text):
        begins, ends = True, [*ends, bare.end()]
    if _LOOSE.search(material):
        if (begins and not ends) or len(ends) > 1:
            return None  # which of them ends it is not known
        text = text[ends[0] :] if begins else text
        return _clean(_START.sub(" ", _END.sub(" ", text)))
    for start in ([] if begins else [0]) + ends[:_MOST_ENDS]:
        if _is_json(text[start:]):
            return _clean(text[start:])
    if not begins and ends and _WHOLE.match(text):
        return _clean(_END.sub(" ", text))  # it answers at once, and quotes a mark later
    answer = text[ends[-1] :] if ends else text
    opened = _START.search(answer)
    if opened:
        answer = answer[: opened.start()]
        if not answer.strip():
            return None
    return _clean(answer)


def _is_json(text: str) -> bool:
    return whole_value(_clean(text)) is not None


def _clean(text: str) -> str:
    """Without the tags around an answer."""
    text = text.strip()
    while match := _TAGS.match(text):
        text = text[match.end() :].lstrip()
    for match in reversed(list(_TAGS.finditer(text))):
        if text[match.end() :].strip():
            break
        text = text[: match.start()].rstrip()
    return text
