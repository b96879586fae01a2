"""Any model behind an OpenAI-compatible server (vLLM, SGLang, ...) as a judge's engine.

One POST to URL/chat/completions for each question, temperature 0, images as PNG data URLs,
several at once. What may pass (no connection, time-out, 408, 429, 5xx, an answer that is no such
JSON) is tried again after a growing, jittered wait; then the question has no answer, and its term
is NaN.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import logging
import os
import random
import socket
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from gotr1_jax.errors import InputError, RunError
from gotr1_jax.vlm_engine.base import Answer, ImageInput, Question

_log = logging.getLogger(__name__)
_MAX_BODY = 8 * 2**20  # bytes of a response
_LONGEST_WAIT = 60.0  # seconds, whatever a server asks for
_PASSING = {408, 425, 429}  # and all from 500 on
_REFUSALS = {
    401: "check judge.http.key_file or judge.http.key_variable",
    403: "check judge.http.key_file or judge.http.key_variable",
    404: "check judge.http.url (it ends in /v1 mostly) and judge.http.model",
    405: "check judge.http.url",
}


@dataclass(frozen=True)
class HttpConfig:
    """The server, and how patiently it is asked."""

    # Base address, such as http://127.0.0.1:8000/v1.
    url: str
    # Name by which the server knows the model.
    model: str
    # The key is the content of this file, or of this environment variable; none where both are
    # empty. It is sent to `url` alone and stored nowhere.
    key_file: str = ""
    key_variable: str = ""
    # Questions under way at once.
    concurrency: int = 16
    # Seconds for one try, from connecting to the last byte.
    timeout: float = 120.0
    # Further tries after the first, and seconds before the first of them; each wait is twice the
    # one before, shortened by up to half at random.
    retries: int = 4
    backoff: float = 1.0
    # What the model's boxes are in: pixels of the image it was sent, as Qwen2.5-VL's, or
    # thousandths of its sides.
    coordinates: Literal["pixels", "thousandths"] = "pixels"
    # Images are sent with sides that are multiples of this, so that a server that rounds them
    # so (Qwen2.5-VL: 28) leaves them, and coordinates, as they are. 1: as they come.
    multiple: int = 28

    def check(self) -> None:
        """Raise InputError where this cannot be a server."""
        parts = urllib.parse.urlsplit(self.url)
        try:
            valid = parts.scheme in ("http", "https") and bool(parts.hostname)
            valid = valid and (parts.port is None or parts.port > 0)
        except ValueError:  # a port that is no number
            valid = False
        if not valid:
            raise InputError(
                f"judge.http.url is {self.url!r}; give an address such as http://127.0.0.1:8000/v1"
            )
        if not self.model:
            raise InputError("judge.http.model is empty; give the name the server knows it by")
        if self.key_file and self.key_variable:
            raise InputError("judge.http has key_file and key_variable; give one of them")
        for name, least in (("concurrency", 1), ("retries", 0), ("backoff", 0), ("multiple", 1)):
            if not least <= getattr(self, name) < 10_000:
                raise InputError(
                    f"judge.http.{name} is {getattr(self, name)}; use {least} or more, below 10000"
                )
        if not 0 < self.timeout <= 86_400:
            raise InputError(f"judge.http.timeout is {self.timeout}; use seconds above 0")


class _Passing(Exception):
    """A failure that another try may not meet; `wait` is what the server asked for, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _Refused(Exception):
    """An answer that another try would get again."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class HttpEngine:
    """Answers questions through a server; `identity` is its address and model."""

    def __init__(self, config: HttpConfig, wait: Callable[[float], None] = time.sleep) -> None:
        """wait: called with seconds between tries. InputError for a bad configuration or key."""
        config.check()
        self._config, self._wait = config, wait
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        key = _read_key(config)
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._answered = threading.Event()
        self.identity = f"http {config.url.rstrip('/')} {config.model} multiple={config.multiple}"

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that the model's coordinates refer to."""
        if self._config.coordinates == "thousandths":
            return 1000, 1000
        return self._sent_size(height, width)

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer for each question, with `error` set where the server gave none.

        RunError where the server turns the very first question away for good (wrong address,
        model or key); once it has answered, that too is only a missing answer. That question
        goes alone: which one came first is then no matter of chance.
        """
        images = {p.key: p for q in questions for p in q.images}
        executor = ThreadPoolExecutor(self._config.concurrency)
        try:
            urls = dict(zip(images, executor.map(self._data_url, images.values())))
            alone = 0 if self._answered.is_set() else 1
            answers = [self._answer_one(q, urls) for q in questions[:alone]]
            answers += executor.map(lambda q: self._answer_one(q, urls), questions[alone:])
        finally:
            # On an error nothing more is begun, and what is under way is not waited for.
            executor.shutdown(wait=False, cancel_futures=True)
        reasons = Counter(a.error for a in answers if a.error)
        if reasons:
            reason, number = reasons.most_common(1)[0]
            _log.warning(
                "%s: no answer to %d of %d questions; %d times: %s", self._config.url,
                reasons.total(), len(answers), number, reason,
            )  # fmt: skip
        return answers

    def _answer_one(self, question: Question, urls: dict[str, str]) -> Answer:
        body = self._request(question, urls)
        pause = self._config.backoff
        for left in range(self._config.retries, -1, -1):
            try:
                answer = _read_completion(self._post(body))
            except _Refused as refusal:
                if refusal.status in _REFUSALS and not self._answered.is_set():
                    raise RunError(
                        f"the judge at {self._config.url} refuses: {refusal}; "
                        f"{_REFUSALS[refusal.status]}"
                    ) from refusal
                return Answer(error=str(refusal))
            except _Passing as failure:
                if not left:
                    return Answer(error=str(failure))
                jittered = pause * random.uniform(0.5, 1.0)
                self._wait(min(max(jittered, failure.wait), _LONGEST_WAIT))
                pause = min(2 * pause, _LONGEST_WAIT)
            else:
                self._answered.set()
                return answer
        raise AssertionError("the last try returns")

    def _request(self, question: Question, urls: dict[str, str]) -> bytes:
        def say(text: str) -> list[dict[str, Any]]:
            return [{"type": "text", "text": text}] if text else []

        shown = [{"type": "image_url", "image_url": {"url": urls[p.key]}} for p in question.images]
        content = [*say(question.instruction), *shown, *say(question.text)]
        return json.dumps(
            {
                "model": self._config.model,
                "messages": [{"role": "user", "content": content}],
                "max_tokens": question.max_answer_tokens,
                "temperature": 0,
            }
        ).encode()

    def _post(self, body: bytes) -> bytes:
        """The body of a response of status 200; raises _Passing or _Refused."""
        url, timeout = urllib.parse.urlsplit(self._config.url), self._config.timeout
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        connection = kind(url.hostname or "", url.port, timeout=timeout)
        expired = threading.Event()
        # Kept apart: the connection lets go of a socket that it expects the server to close.
        sockets: list[socket.socket] = []

        def expire() -> None:
            expired.set()
            for sock in sockets:
                _cut(sock)

        # The socket's own time-out begins anew with every byte; a slow drip would never end.
        clock = threading.Timer(timeout, expire)
        clock.daemon = True
        clock.start()
        try:
            connection.connect()
            sockets.append(connection.sock)
            if expired.is_set():
                raise TimeoutError
            path = f"{url.path.rstrip('/')}/chat/completions"
            if url.query:
                path += f"?{url.query}"
            connection.request("POST", path, body, self._headers)
            response = connection.getresponse()
            data = response.read(_MAX_BODY + 1)
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            if expired.is_set() or isinstance(error, TimeoutError):
                raise _Passing(f"no answer within {timeout:g} s") from error
            raise _Passing(f"{type(error).__name__}: {error}") from error
        finally:
            clock.cancel()
            connection.close()
        if expired.is_set():
            raise _Passing(f"no answer within {timeout:g} s")
        if len(data) > _MAX_BODY:
            raise _Passing(f"an answer of more than {_MAX_BODY} bytes")
        _check_status(response, data)
        return data

    def _data_url(self, raw_image: ImageInput) -> str:
        height, width = self._sent_size(*raw_image.size)
        image = Image.fromarray(np.ascontiguousarray(raw_image.pixels))
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        stream = io.BytesIO()
        image.save(stream, format="PNG")
        return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()

    def _sent_size(self, height: int, width: int) -> tuple[int, int]:
        step = self._config.multiple
        tall, wide = (max(step, round(side / step) * step) for side in (height, width))
        return tall, wide


def _cut(sock: socket.socket) -> None:
    """End a connection under the feet of whoever reads from it."""
    with contextlib.suppress(OSError):  # it has ended by itself
        sock.shutdown(socket.SHUT_RDWR)


def _check_status(response: http.client.HTTPResponse, data: bytes) -> None:
    status = response.status
    if status == 200:
        return
    said = " ".join(data[:200].decode("utf-8", "replace").split())
    reason = f"status {status}{f': {said}' if said else ''}"
    if status in _PASSING or status >= 500:
        raise _Passing(reason, _seconds(response.headers.get("Retry-After")))
    raise _Refused(status, reason)


def _seconds(header: str | None) -> float:
    """Retry-After in seconds; 0 where it is missing or a date."""
    header = (header or "").strip()
    return float(header) if header.isascii() and header.isdigit() and len(header) < 9 else 0.0


def _read_completion(data: bytes) -> Answer:
    """The first choice of a chat completion; raises _Passing where the bytes are none."""
    try:
        choice = json.loads(data)["choices"][0]
        text, reason = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _Passing("the answer is no chat completion") from error
    if not isinstance(text, str | None):
        raise _Passing("the answer's content is no text")
    return Answer(text or "", truncated=reason == "length")


def _read_key(config: HttpConfig) -> str:
    if config.key_variable:
        key, place = os.environ.get(config.key_variable, ""), f"variable {config.key_variable}"
    elif config.key_file:
        place = f"file {config.key_file}"
        try:
            key = Path(config.key_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"judge.http.key_file {config.key_file} cannot be read") from error
    else:
        return ""
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable():
        raise InputError(f"the {place} holds no key; put the judge's key there on one line")
    return key
