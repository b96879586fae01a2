"""Any model behind an OpenAI-compatible server (vLLM, SGLang, ...) as a judge's engine.

One POST to URL/chat/completions for each question, temperature 0, images as PNG data URLs,
several at once. An optional field that the server refuses by name is left out (see `chat`). What
may pass (see `http_client`, and a response that is no chat completion) is tried again; then the
question has no answer, and its term is NaN.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx2
import numpy as np
from PIL import Image

from gotr1_jax.errors import RunError, UnreachableError
from gotr1_jax.vlm_engine import first_token
from gotr1_jax.vlm_engine.base import (
    Answer,
    FirstWords,
    ImageInput,
    Question,
    Scale,
    make_image_input,
)
from gotr1_jax.vlm_engine.chat import (
    read_completion,
    read_word,
    refused_fields,
    request_fields,
    without_refused,
)
from gotr1_jax.vlm_engine.config import HttpConfig
from gotr1_jax.vlm_engine.http_client import (
    HttpClient,
    RefusedError,
    TransientError,
    encode_image,
    run_async,
)
from gotr1_jax.vlm_engine.served_model import served_model

_log = logging.getLogger(__name__)
_FIRST = 16  # questions; a server that answers none of the first so many is the wrong one
_REFUSALS = {
    401: "check judge.http.key_file or judge.http.key_variable",
    403: "check judge.http.key_file or judge.http.key_variable",
    404: "check judge.http.url (it ends in /v1 mostly) and judge.http.model",
    405: "check judge.http.url",
}


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
        self._config = config
        self._http = http = HttpClient(config, "judge.http", wait)
        url = http.url
        self._url = url.copy_with(path=f"{url.path.rstrip('/')}/chat/completions")
        self._has_answered = self._names_tokens = False
        self._num_unanswered = 0  # before the first answer
        address = f"http {config.url.rstrip('/')} {config.model} multiple={config.multiple}"
        weights = run_async(served_model(url, config.model, http.headers, http.tls))
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
        return self._warned(run_async(self._answer_all(questions)))

    def word_answers(self, questions: Sequence[Question]) -> list[Answer]:
        """See `FirstTokenEngine`: by the likeliest first tokens that the server names.

        RunError, besides as of `answer`, where it names none in its first answers.
        """
        answers = run_async(self._answer_all(questions, words=True))
        given = [a for a in answers if not a.error]
        self._names_tokens |= any(a.probability is not None for a in given)
        if given and not self._names_tokens:
            raise self._without_tokens(given[0].note)
        return self._warned(answers)

    def introduce_words(self) -> None:
        """See `FirstTokenEngine`."""
        words = FirstWords(("Yes", "yes"), ("no",))
        text = "Is there a square? Answer in one word."
        answer = self.word_answers([Question("word", (_square(),), "", text, 1, words=words)])[0]
        self._check_reached(answer)

    def _without_tokens(self, reason: str) -> RunError:
        return RunError(
            f"the judge at {self._config.url} gives no probabilities of words: {reason}; set "
            "judge.questions.reading to text, or serve the model with vLLM or SGLang"
        )

    def _warned(self, answers: list[Answer]) -> list[Answer]:
        """The answers, and one line of log for those that are missing."""
        reasons = Counter(a.error for a in answers if a.error)
        if reasons:
            reason, number = reasons.most_common(1)[0]
            _log.warning(
                "%s: no answer to %d of %d questions; %d times: %s", self._config.url,
                reasons.total(), len(answers), number, reason,
            )  # fmt: skip
        return answers

    def introduce(self) -> None:
        """Asks one question of our own, before anything depends on the answers.

        UnreachableError where there is no answer after all tries, RunError where it is refused.
        """
        text = 'Which color has the square? Answer with {"score": 0} and one word.'
        scale = Scale(0, 10, "")
        self._check_reached(self.answer([Question("score", (_square(),), text, "", 32, scale)])[0])

    def _check_reached(self, answer: Answer) -> None:
        if answer.error:
            raise UnreachableError(
                f"the judge at {self._config.url} does not answer: {answer.error}; start it first, "
                "check judge.http.url and judge.http.model, or see its log"
            )

    async def _answer_all(self, questions: Sequence[Question], words: bool = False) -> list[Answer]:
        """words: by the first token alone."""
        images = {p.key: p for q in questions for p in q.images}
        encoded = (asyncio.to_thread(self._data_url, image) for image in images.values())
        urls = dict(zip(images, await asyncio.gather(*encoded)))
        slots = asyncio.Semaphore(self._config.concurrency)

        async def answer_one(question: Question) -> Answer:
            async with slots:
                return await self._answer_one(client, question, urls, words)

        async with self._http.session() as client:
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
        self, client: httpx2.AsyncClient, question: Question, urls: dict[str, str], words: bool
    ) -> Answer:
        refused = self._refused
        fields = request_fields(self._config, 1 if words else question.max_answer_tokens)
        fields |= first_token.FIELDS if words else {}
        right = question.words if words else None

        async def ask() -> Answer:
            nonlocal refused
            while True:
                sent = without_refused(fields, refused)
                try:
                    body = self._body(question, urls, sent)
                    return _read_completion(await self._http.post(client, self._url, body), right)
                except RefusedError as refusal:
                    new = refused_fields(refusal.status, refusal.text, sent)
                    if not new:  # there are some at most as often as there are fields
                        raise
                    refused |= new

        try:
            answer = await self._http.retried(ask)
        except RefusedError as refusal:
            if words and not self._names_tokens and "logprobs" in refusal.text:
                raise self._without_tokens(str(refusal)) from refusal
            if refusal.status in _REFUSALS and not self._has_answered:
                raise RunError(
                    f"the judge at {self._config.url} refuses: {refusal}; "
                    f"{_REFUSALS[refusal.status]}"
                ) from refusal
            return Answer(error=str(refusal))
        except TransientError as failure:
            return Answer(error=str(failure))
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
        pixels = raw_image.pixels
        if (height, width) != raw_image.size:
            image = Image.fromarray(np.ascontiguousarray(pixels))
            pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
        return "data:image/png;base64," + encode_image(pixels)

    def _sent_size(self, height: int, width: int) -> tuple[int, int]:
        step = self._config.multiple
        tall, wide = (max(step, round(side / step) * step) for side in (height, width))
        return tall, wide


def _square() -> ImageInput:
    pixels = np.full((64, 64, 3), 200, np.uint8)
    pixels[16:48, 8:40] = (200, 40, 30)
    return make_image_input(pixels)


def _read_completion(data: bytes, words: FirstWords | None) -> Answer:
    """The answer in a response, of `words` their probability; raises TransientError where it is no
    chat completion."""
    try:
        return read_completion(data) if words is None else read_word(data, words)
    except ValueError as error:
        raise TransientError(str(error)) from error
