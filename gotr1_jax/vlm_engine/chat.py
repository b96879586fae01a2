"""What goes to an OpenAI-compatible server and comes back: optional fields, and the completion.

Servers differ in what they take. OpenAI's newer models refuse max_tokens and a temperature (400,
code unsupported_parameter or unsupported_value), OpenAI and Gemini refuse fields that they do not
know, Mistral answers 422; vLLM, SGLang, llama.cpp, LM Studio and Ollama take or ignore them.
They differ too in where an answer stands: behind a reasoning parser a whole answer can be under
reasoning_content (DeepSeek, SGLang, llama.cpp, earlier vLLM) or reasoning (vLLM, Ollama,
OpenRouter), with a content that is null.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gotr1_jax.errors import InputError
from gotr1_jax.io.reading import parse_json
from gotr1_jax.vlm_engine.base import Answer, FirstWords
from gotr1_jax.vlm_engine.config import HttpConfig
from gotr1_jax.vlm_engine.first_token import REASONING, word_probability

_LENGTH_FIELDS = ("max_tokens", "max_completion_tokens")
_OWN_FIELDS = (*_LENGTH_FIELDS, "temperature", "repetition_penalty")
_REFUSES = re.compile(
    r"unsupported|not supported|n't support|not support|unrecogni[sz]ed|unknown|unexpected|"
    r"not permitted|not allowed|extra_forbidden|extra inputs|cannot find field|deprecated|"
    r"additional propert|invalid (?:parameter|argument|field)|no such (?:parameter|field)",
    re.IGNORECASE,
)
# finish_reason, by vLLM, SGLang, TGI and the servers in front of other makers' models.
_CUT = frozenset(("length", "max_tokens", "max_length", "model_length"))
_BROKEN = frozenset(("abort", "aborted", "error", "cancelled"))
_ENDED = frozenset(("stop", "eos", "eos_token", "stop_sequence", "end_turn"))
_TOO_LONG = re.compile(r"context length|too large|too long|exceeds?\b", re.IGNORECASE)


def request_fields(config: HttpConfig, max_answer_tokens: int) -> dict[str, Any]:
    """The optional fields of a request."""
    fields: dict[str, Any] = {config.length_field: max_answer_tokens}
    for name in ("temperature", "repetition_penalty"):
        value = getattr(config, name)
        if value is not None:
            fields[name] = int(value) if value == int(value) else value
    return fields | config.extra_fields()


def without_refused(fields: Mapping[str, Any], refused: frozenset[str]) -> dict[str, Any]:
    """The fields without those refused; the bound of an answer under its other name."""
    kept = {name: value for name, value in fields.items() if name not in refused}
    for name, other in (_LENGTH_FIELDS, _LENGTH_FIELDS[::-1]):
        if name in fields and name in refused and other not in refused:
            kept[other] = fields[name]
    return kept


def refused_fields(status: int, text: str, sent: Mapping[str, Any]) -> frozenset[str]:
    """Of max_tokens, temperature and their like, those that a response of 400 or 422 refuses."""
    if status not in (400, 422) or not _REFUSES.search(text) or _TOO_LONG.search(text):
        return frozenset()
    own = [name for name in _OWN_FIELDS if name in sent]
    named = _named_by_structure(text) & set(own)
    if not named:
        named = {n for n in own if re.search(rf"(?<![A-Za-z_]){n}(?![A-Za-z_])", text)}
    return frozenset(named)


def _named_by_structure(text: str) -> set[str]:
    """Names under error.param (OpenAI) and detail[].loc (FastAPI) of a response."""
    try:
        body = parse_json(text, "it", allow_nan=True)
    except InputError:
        return set()
    places = [_error(body).get("param")]
    details = body.get("detail") if isinstance(body, dict) else None
    for detail in details if isinstance(details, list) else []:
        where = detail.get("loc") if isinstance(detail, dict) else None
        places += where if isinstance(where, list) else []
    return {place for place in places if isinstance(place, str)}


def read_completion(data: bytes) -> Answer:
    """The first choice of a chat completion, and the tokens that the server counted. ValueError
    where the bytes are none."""
    body, choice = _read_choice(data)
    reason, message = choice.get("finish_reason"), choice["message"]
    text = _text(message.get("content"))
    if text is None:
        raise ValueError("the content of the response is no text")
    kind = str(reason).lower()
    if kind in _BROKEN:
        raise ValueError(f"the server broke the answer off: finish_reason {kind}")
    cut = kind in _CUT
    answer = Answer(text, truncated=cut) if text.strip() else _empty(message, str(reason), cut)
    return _counted(answer, body)


def read_word(data: bytes, words: FirstWords) -> Answer:
    """The first choice of a chat completion by its first token, see `first_token`; the cause in
    `note` where that is not known. ValueError where the bytes are no completion."""
    body, choice = _read_choice(data)
    try:
        answer = Answer(probability=word_probability(choice, words))
    except ValueError as error:
        answer = Answer(note=str(error))
    return _counted(answer, body)


def _read_choice(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """A chat completion and its first choice, which has a message; ValueError where it is none."""
    try:
        body = parse_json(data, "it", allow_nan=True)
    except InputError as error:
        raise ValueError("the response is no chat completion") from error
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        message = _error(body).get("message")
        shown = f": {_short(message)}" if isinstance(message, str) else ""
        raise ValueError(f"the response is no chat completion{shown}")
    if not isinstance(choices[0].get("message"), dict):
        raise ValueError("the response is no chat completion")
    return body, choices[0]


def _counted(answer: Answer, body: Mapping[str, Any]) -> Answer:
    """An answer with the tokens that the server counted."""
    read, written = (_count(body, name) for name in ("prompt_tokens", "completion_tokens"))
    return replace(answer, tokens_in=read, tokens_out=written)


def _count(body: Mapping[str, Any], name: str) -> int:
    """A number of a response's usage; 0 where a server gives none."""
    usage = body.get("usage")
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and 0 <= count < 10**9 else 0


def _empty(message: Mapping[str, Any], reason: str, cut: bool) -> Answer:
    """A completion without content: what stands elsewhere, or what is known of it."""
    for name in REASONING:
        value = message.get(name)
        thought = _text(value) if value else None
        if thought and thought.strip():
            # Only a model that has ended can have answered there.
            if reason.lower() in _ENDED:
                return Answer(thought)
            note = f"finish_reason {reason}; {len(thought)} characters under {name}"
            return Answer(truncated=cut, note=note)
    refusal, calls = message.get("refusal"), message.get("tool_calls")
    if isinstance(refusal, str) and refusal.strip():
        note = f"the model refuses: {_short(refusal)}"
    elif calls or message.get("function_call"):
        note = f"finish_reason {reason}; the model calls a tool instead: serve it without tools"
    else:
        note = f"finish_reason {reason}"
    return Answer(truncated=cut, note=note)


def _text(content: Any) -> str | None:
    """A content as text: a string, null, or a list of parts; None for anything else."""
    if content is None or isinstance(content, str):
        # Half of a surrogate pair, from a server that cut within a character, has no UTF-8.
        return (content or "").encode("utf-8", errors="replace").decode()
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        return None
    parts = []
    for part in content:
        if isinstance(part, dict):
            kind = part.get("type", "text")
            part = part.get("text") if kind in ("text", "output_text") else ""
        if not isinstance(part, str):
            return None
        parts.append(part)
    return _text("".join(parts))


def _error(body: Any) -> dict[str, Any]:
    """The error object of a response; Gemini puts it into a list."""
    if isinstance(body, list) and body:
        body = body[0]
    error = body.get("error", body) if isinstance(body, dict) else {}
    return error if isinstance(error, dict) else {"message": error}


def _short(text: str) -> str:
    return " ".join(text[:200].split())
