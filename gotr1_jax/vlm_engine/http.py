"""Any model behind an OpenAI-compatible server (vLLM, SGLang, ...) as a judge's engine.

One POST to URL/chat/completions for each question, temperature 0, images as PNG data URLs,
several at once. An optional field that the server refuses by name is left out (see `chat`). What
may pass (no connection, time-out, 408, 425, 429, 5xx, a response that is no chat completion) is
tried again after a growing, jittered wait; then the question has no answer, and its term is NaN.

httpx2 (it comes with huggingface_hub) sends the requests. The openai client is not used: it cannot
bound the size of a response, and its time-outs hold for a read, not for a whole request.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import os
import random
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

import httpx2
import numpy as np
from PIL import Image

from gotr1_jax.errors import InputError, RunError
from gotr1_jax.io.reading import read_text
from gotr1_jax.vlm_engine.base import Answer, ImageInput, Question
from gotr1_jax.vlm_engine.chat import (
    read_completion,
    refused_fields,
    request_fields,
    without_refused,
)
from gotr1_jax.vlm_engine.config import HttpConfig
from gotr1_jax.vlm_engine.served_model import served_model

_log = logging.getLogger(__name__)
_MAX_BODY = 8 * 2**20  # bytes of a response
_LONGEST_WAIT = 60.0  # seconds, whatever a server asks for
_FIRST = 16  # questions; a server that answers none of the first so many is the wrong one
_TRANSIENT = {408, 425, 429}  # and all from 500 on
_REFUSALS = {
    401: "check judge.http.key_file or judge.http.key_variable",
    403: "check judge.http.key_file or judge.http.key_variable",
    404: "check judge.http.url (it ends in /v1 mostly) and judge.http.model",
    405: "check judge.http.url",
}


_Result = TypeVar("_Result")


class _TransientError(Exception):
    """A failure that another try may not meet; `wait` is what the server asked for, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _RefusedError(Exception):
    """A response that another try would get again."""

    def __init__(self, status: int, reason: str, text: str) -> None:
        super().__init__(reason)
        self.status, self.text = status, text


class HttpEngine:
    """Answers questions through a server.

    `identity` is its address and model, and what the server says of the model's weights where it
    says anything (`served_model`): weights that are exchanged under the same name and path there
    are not noticed from here.
    """

    def __init__(
        self, config: HttpConfig, wait: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        """wait: awaited with seconds between tries. InputError where the key cannot be read."""
        self._config, self._wait = config, wait
        try:
            url = httpx2.URL(config.url)
        except httpx2.InvalidURL as error:
            raise InputError(f"judge.http.url is {config.url!r}: {error}") from error
        self._url = url.copy_with(path=f"{url.path.rstrip('/')}/chat/completions")
        # Nothing but the configuration decides where a request goes: no proxy variables, no
        # netrc, no redirects. A response is not decompressed: its size is known as it comes.
        self._headers = {
            "Content-Type": "application/json", "Accept": "application/json",
            "Accept-Encoding": "identity",
        }  # fmt: skip
        key = _read_key(config)
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._tls = ssl.create_default_context()
        self._has_answered = False
        self._num_unanswered = 0  # before the first answer
        address = f"http {config.url.rstrip('/')} {config.model} multiple={config.multiple}"
        weights = _run(served_model(url, config.model, self._headers, self._tls))
        self.identity = f"{address} weights={weights}" if weights else address
        self._refused: frozenset[str] = frozenset()  # optional fields, by this server
        # What answers depend on besides; a setting that is not sent leaves the identity as it was.
        for name, usual in (
            ("repetition_penalty", None), ("temperature", 0), ("extra", ""),
            ("coordinates", "pixels"),
        ):  # fmt: skip
            if getattr(config, name) != usual:
                self.identity += f" {name}={getattr(config, name)}"

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that the model's coordinates refer to."""
        if self._config.coordinates == "thousandths":
            return 1000, 1000
        return self._sent_size(height, width)

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer for each question, with `error` set where the server gave none.

        RunError where the server refuses the very first question for good (wrong address, model
        or key), or answers none of the first 16 for whatever reason; once it has answered, a
        refusal or a failure is only a missing answer. The first question goes alone, so that
        chance does not decide which one comes first.
        """
        answers = _run(self._answer_all(questions))
        reasons = Counter(a.error for a in answers if a.error)
        if reasons:
            reason, number = reasons.most_common(1)[0]
            _log.warning(
                "%s: no answer to %d of %d questions; %d times: %s", self._config.url,
                reasons.total(), len(answers), number, reason,
            )  # fmt: skip
        return answers

    async def _answer_all(self, questions: Sequence[Question]) -> list[Answer]:
        images = {p.key: p for q in questions for p in q.images}
        encoded = (asyncio.to_thread(self._data_url, image) for image in images.values())
        urls = dict(zip(images, await asyncio.gather(*encoded)))
        slots = asyncio.Semaphore(self._config.concurrency)

        async def answer_one(question: Question) -> Answer:
            async with slots:
                return await self._answer_one(client, question, urls)

        async with httpx2.AsyncClient(
            headers=self._headers, trust_env=False, verify=self._tls,
            timeout=None, limits=httpx2.Limits(max_keepalive_connections=0),
        ) as client:  # fmt: skip
            answers: list[Answer] = []
            while not self._has_answered and len(answers) < len(questions):
                most = _FIRST - self._num_unanswered if self._num_unanswered else 1
                part = questions[len(answers) : len(answers) + most]
                answers += await asyncio.gather(*map(answer_one, part))
                self._check_first(answers, len(part))
            return answers + await asyncio.gather(*map(answer_one, questions[len(answers) :]))

    def _check_first(self, answers: Sequence[Answer], new: int) -> None:
        """RunError where the server answered none of its first questions, `new` of them just now.

        Waiting for all the others would take hours with a server that is not there.
        """
        if self._has_answered:
            return
        self._num_unanswered += new
        if self._num_unanswered >= _FIRST:
            reason = Counter(answer.error for answer in answers).most_common(1)[0][0]
            raise RunError(
                f"the judge at {self._config.url} answers none of its first {_FIRST} questions: "
                f"{reason}; check the server, judge.http.url and judge.http.model"
            )

    async def _answer_one(
        self, client: httpx2.AsyncClient, question: Question, urls: dict[str, str]
    ) -> Answer:
        pause, left, refused = self._config.backoff, self._config.retries, self._refused
        fields = request_fields(self._config, question.max_answer_tokens)
        while True:
            sent = without_refused(fields, refused)
            try:
                data = await self._post(client, self._body(question, urls, sent))
                answer = _read_completion(data)
            except _RefusedError as refusal:
                new = refused_fields(refusal.status, refusal.text, sent)
                if new:  # at most as often as there are fields
                    refused |= new
                    continue
                if refusal.status in _REFUSALS and not self._has_answered:
                    raise RunError(
                        f"the judge at {self._config.url} refuses: {refusal}; "
                        f"{_REFUSALS[refusal.status]}"
                    ) from refusal
                return Answer(error=str(refusal))
            except _TransientError as failure:
                if not left:
                    return Answer(error=str(failure))
                left -= 1
                jittered = pause * random.uniform(0.5, 1.0)
                await self._wait(min(max(jittered, failure.wait), _LONGEST_WAIT))
                pause = min(2 * pause, _LONGEST_WAIT)
            else:
                self._has_answered = True
                self._remember(refused)
                return answer

    def _remember(self, refused: frozenset[str]) -> None:
        """Leaves out what the server has refused from now on, and says so once."""
        new = refused - self._refused
        if new:
            self._refused |= new
            chance = "; answers may then differ from time to time" if "temperature" in new else ""
            _log.warning(
                "%s refuses %s; it is asked without%s", self._config.url,
                ", ".join(sorted(new)), chance,
            )  # fmt: skip

    async def _post(self, client: httpx2.AsyncClient, body: bytes) -> bytes:
        """The body of a response of status 200; raises _TransientError or _RefusedError."""
        data = bytearray()
        try:
            async with (
                asyncio.timeout(self._config.timeout),
                client.stream("POST", self._url, content=body) as response,
            ):
                async for chunk in response.aiter_raw():
                    data += chunk
                    if len(data) > _MAX_BODY:
                        raise _TransientError(f"a response of more than {_MAX_BODY} bytes")
        except TimeoutError as error:
            raise _TransientError(f"no answer within {self._config.timeout:g} s") from error
        except (httpx2.HTTPError, OSError) as error:
            cause: BaseException = error
            while inner := cause.__cause__ or cause.__context__:
                cause = inner  # the innermost says most: ConnectionRefusedError
            raise _TransientError(f"{type(cause).__name__}: {cause}") from error
        if response.status_code == 200:
            return bytes(data)
        whole = data.decode("utf-8", "replace")
        text = " ".join(whole[:200].split())
        reason = f"status {response.status_code}{f': {text}' if text else ''}"
        if response.status_code in _TRANSIENT or response.status_code >= 500:
            raise _TransientError(reason, _seconds(response.headers.get("Retry-After", "")))
        raise _RefusedError(response.status_code, reason, whole)

    def _body(self, question: Question, urls: dict[str, str], fields: dict[str, Any]) -> bytes:
        """The JSON of a request with optional fields; `urls` has each image's data URL by key."""
        content: list[dict[str, Any]] = []
        if question.instruction:
            content.append({"type": "text", "text": question.instruction})
        for image in question.images:
            content.append({"type": "image_url", "image_url": {"url": urls[image.key]}})
        if question.text:
            content.append({"type": "text", "text": question.text})
        values = {
            "model": self._config.model,
            "messages": [{"role": "user", "content": content}],
            **fields,
        }
        return json.dumps(values).encode()

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


def _run(work: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of a coroutine; Ctrl-C and whatever else a signal raises end it at once."""
    if not _in_event_loop():
        return asyncio.run(work)
    # The cells of a notebook run in a loop already. The thread of the other one must be told.
    with ThreadPoolExecutor(1) as executor:
        loop = asyncio.new_event_loop()
        task = loop.create_task(work)
        try:
            found = executor.submit(_run_in, loop, task)
            while wait([found], timeout=0.2).not_done:
                pass  # a signal that another thread received is handled only in between
            return found.result()
        except BaseException:
            if not task.done():
                loop.call_soon_threadsafe(task.cancel)
            raise


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _run_in(loop: asyncio.AbstractEventLoop, task: asyncio.Task[_Result]) -> _Result:
    try:
        return loop.run_until_complete(task)
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def _seconds(header: str) -> float:
    """Retry-After in seconds; 0 where it is missing or a date."""
    header = header.strip()
    return float(header) if header.isascii() and header.isdigit() and len(header) < 9 else 0.0


def _read_completion(data: bytes) -> Answer:
    """The answer in a response; raises _TransientError where it is no chat completion."""
    try:
        return read_completion(data)
    except ValueError as error:
        raise _TransientError(str(error)) from error


def _read_key(config: HttpConfig) -> str:
    if config.key_variable:
        key, place = os.environ.get(config.key_variable, ""), f"variable {config.key_variable}"
    elif config.key_file:
        place = f"file {config.key_file}"
        try:
            key = read_text(config.key_file, max_bytes=2**16)
        except InputError as error:
            raise InputError(f"judge.http.key_file: {error}") from error
    else:
        return ""
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable():
        raise InputError(f"the {place} holds no key; put the judge's key there on one line")
    return key
