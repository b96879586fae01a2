"""The JSON that a reward server gets and answers, version 1 (docs/reward_server.md)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gotr1_jax.errors import InputError
from gotr1_jax.io.reading import parse_json_object
from gotr1_jax.rewards.base import JudgeRequest, boxes_to_json
from gotr1_jax.vlm_engine.http_client import encode_image

VERSION = 1
_LONGEST = 300  # characters of a server's text that are shown


class ReplyError(ValueError):
    """A reply that is not of this protocol, or that says an error of its own."""


@dataclass(frozen=True)
class SampleScores:
    """What a reply says of one sample.

    Attributes:
        scores: a finite number for each name asked for, NaN where there is none.
        rationale: the server's, or why a score is missing; one line.
        not_finite: whether a number was NaN or infinite, which is no null.
    """

    scores: Mapping[str, float]
    rationale: str = ""
    not_finite: bool = False


@dataclass(frozen=True)
class Reply:
    """A reply: the samples in their order, and what the server says of itself.

    Attributes:
        samples: one for each sample of the request.
        name, revision: the scorer's, empty where the server says none.
    """

    samples: tuple[SampleScores, ...]
    name: str = ""
    revision: str = ""


def request_body(
    model: str,
    requests: Sequence[JudgeRequest],
    first_id: int = 0,
    image_format: Literal["png", "jpeg"] = "png",
) -> bytes:
    """The JSON of a batch; images are uint8 (H, W, 3)."""
    samples = [
        {
            "id": str(first_id + number),
            "caption": request.caption,
            "plan": request.plan.text,
            "boxes": boxes_to_json(request.plan.boxes),
            "image": encode_image(request.image, image_format),
            "group": request.group,
        }
        for number, request in enumerate(requests)
    ]
    body = {"version": VERSION, "model": model, "image_format": image_format, "samples": samples}
    return json.dumps(body).encode()


def read_reply(data: bytes, names: Sequence[str], count: int) -> Reply:
    """The reply to `count` samples, with a score for each of `names`.

    ReplyError, one line, for anything else; a reply may hold more names and further keys.
    """
    try:
        reply = parse_json_object(data, "the reply", allow_nan=True)
    except InputError as error:
        raise ReplyError(f"{error}{_quoted(data)}") from error
    version = reply.get("version", VERSION)
    if isinstance(version, bool) or version != VERSION:
        raise ReplyError(f"it speaks version {_shown(version)} of the protocol, this is {VERSION}")
    if reply.get("error"):
        raise ReplyError(f"it says: {_one_line(reply['error'])}")
    if "scores" not in reply:
        raise ReplyError(f"the reply holds no scores; it holds {_listed(reply)}")
    columns = [_numbers(column, count, where) for where, column in _columns(reply["scores"], names)]
    reasons = _rationales(reply.get("rationales"), count)
    rows = [[column[i] for column in columns] for i in range(count)]
    return Reply(
        tuple(_sample(names, row, reason) for row, reason in zip(rows, reasons)),
        _text(reply, "name"),
        _text(reply, "revision"),
    )


def _columns(scores: Any, names: Sequence[str]) -> list[tuple[str, Any]]:
    """(how an error names it, scores) for each name."""
    if isinstance(scores, Mapping):
        for name in names:
            if name not in scores:
                raise ReplyError(f"scores holds no {name!r}; it holds {_listed(scores)}")
        return [(f"scores.{name}", scores[name]) for name in names]
    if len(names) > 1:
        raise ReplyError(f"scores is not an object with the lists {', '.join(names)}")
    return [("scores", scores)]


def _numbers(values: Any, count: int, where: str) -> list[float]:
    """`count` floats; null is None's NaN, and what is not finite stays infinite."""
    if not isinstance(values, list):
        raise ReplyError(f"{where} is {_shown(values)}; expected a list of numbers")
    if len(values) != count:
        raise ReplyError(f"{where} has {len(values)} values for {count} samples")
    return [_number(value, f"{where}[{i}]") for i, value in enumerate(values)]


def _number(value: Any, where: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ReplyError(f"{where} is {_shown(value)}; expected a number or null")
    try:
        with np.errstate(over="ignore"):
            narrow = np.float32(value)  # as which scores are kept
    except OverflowError:  # an int of hundreds of digits
        return math.inf
    return float(value) if np.isfinite(narrow) else math.inf


def _rationales(values: Any, count: int) -> list[str]:
    if values is None:
        return [""] * count
    if not isinstance(values, list) or len(values) != count:
        raise ReplyError(f"rationales is not a list of {count} texts, one a sample")
    if not all(value is None or isinstance(value, str) for value in values):
        raise ReplyError("rationales holds something else than texts and nulls")
    return ["" if value is None else _one_line(value) for value in values]


def _sample(names: Sequence[str], row: Sequence[float], reason: str) -> SampleScores:
    wrong = [name for name, value in zip(names, row) if math.isinf(value)]
    missing = [name for name, value in zip(names, row) if math.isnan(value)]
    scores = {n: math.nan if math.isinf(value) else value for n, value in zip(names, row)}
    if wrong:
        reason = f"the server gave no finite number for {', '.join(wrong)}"
    elif missing and not reason:
        reason = f"the server gave null for {', '.join(missing)}"
    return SampleScores(scores, reason, bool(wrong))


def _text(reply: Mapping[str, Any], key: str) -> str:
    value = reply.get(key)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ReplyError(f"{key} is {_shown(value)}; expected a text")
    return "-".join(_one_line(value).split())


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _one_line(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _listed(keys: Iterable[str]) -> str:
    return _one_line(", ".join(keys)) or "nothing"


def _quoted(data: bytes) -> str:
    text = _one_line(data[:200].decode("utf-8", "replace"))
    return f": {text}" if text else " (it is empty)"
