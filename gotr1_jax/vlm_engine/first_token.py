"""The probability of a right word from a chat completion's `logprobs`.

With `logprobs` and `top_logprobs` an OpenAI-compatible server (vLLM, SGLang, llama.cpp, OpenAI)
says how likely the first token of its answer was, and the likeliest others. Tokens come as text:
which of them begin the right word is read off that. What is not among them counts nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from gotr1_jax.vlm_engine.base import FirstWords

TOP = 20
"""First tokens that are asked for: the most that OpenAI and vLLM (--max-logprobs) give."""
FIELDS: Mapping[str, Any] = {"logprobs": True, "top_logprobs": TOP}
# The first token of an answer that is a thought first: <think>, ◁think▷, <|channel|>, [THINK].
_OPENS = re.compile(r"\s*(?:<|◁|\[think)", re.IGNORECASE)

REASONING = ("reasoning_content", "reasoning", "reasoning_text", "thinking")
"""Where servers put a thought, or by mistake a whole answer, beside a message's content."""
_THOUGHT = "a thought; serve the model without (judge.http.extra)"


def word_probability(choice: Mapping[str, Any], words: FirstWords) -> float:
    """That of the first tokens of the right word's forms, together; ValueError, with the cause,
    where a choice of a completion does not say it."""
    tokens = _first_tokens(choice)
    likeliest = max(tokens, key=tokens.__getitem__)
    if _OPENS.match(likeliest):
        raise ValueError(f"the answer begins with {likeliest.strip()[:20]!r}, {_THOUGHT}")
    found = {token for form in words.right if (token := _beginning(form, tokens, words))}
    return min(1.0, math.fsum(math.exp(tokens[token]) for token in found))


def _first_tokens(choice: Mapping[str, Any]) -> dict[str, float]:
    """The known first tokens of the answer, as text, and their log-probabilities in nats."""
    message = choice.get("message")
    if isinstance(message, Mapping) and any(map(message.get, REASONING)):
        raise ValueError(f"the answer begins with {_THOUGHT}")
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    first = content[0] if isinstance(content, list) and content else None
    top = first.get("top_logprobs") if isinstance(first, Mapping) else None
    if not isinstance(first, Mapping) or not isinstance(top, list):
        raise ValueError("the response has no logprobs")
    tokens: dict[str, float] = {}
    for entry in (first, *top):
        token, logp = _token(entry)
        tokens[token] = logp
    return tokens


def _token(entry: Any) -> tuple[str, float]:
    """A token's text and log-probability; ValueError where an entry does not say them."""
    known: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {}
    token: Any = known.get("token")
    logp: Any = known.get("logprob")
    # Above 0 by rounding alone; NaN is neither.
    if isinstance(token, str) and type(logp) in (int, float) and logp <= 1e-3:
        return token, float(max(min(logp, 0), -1e9))
    raise ValueError("the logprobs of the response cannot be read")


def _beginning(form: str, tokens: Mapping[str, float], words: FirstWords) -> str:
    """The token that a form of the right word begins with: the whole form, or its longest part.

    A part with which wrong answers begin as well tells nothing. "": there is none.
    """
    for end in range(len(form), 0, -1):
        part = form[:end]
        plain = part.strip().lower()
        is_wrong = end < len(form) and any(word.startswith(plain) for word in words.wrong)
        if part in tokens and plain and not is_wrong:
            return part
    return ""
