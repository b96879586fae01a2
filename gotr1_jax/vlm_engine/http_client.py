"""One client for every server that this package asks: key, tries, waits, limits, interrupts.

What may pass (no connection, time-out, 408, 425, 429, 5xx) is a `TransientError` and is tried again
after a growing, jittered wait. What another try would get again is a `RefusedError`.

httpx2 (it comes with huggingface_hub) sends the requests. The openai client is not used: it cannot
bound the size of a response, and its time-outs hold for a read, not for a whole request.
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
import random
import ssl
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, Literal, TypeVar

import httpx2
import numpy as np
from PIL import Image

from gotr1_jax.errors import InputError
from gotr1_jax.images import encode_png
from gotr1_jax.io.reading import read_text
from gotr1_jax.vlm_engine.config import HttpServerConfig

_MAX_BODY = 8 * 2**20  # bytes of a response
_LONGEST_WAIT = 60.0  # seconds, whatever a server asks for
_TRANSIENT = {408, 425, 429}  # and all from 500 on

_Result = TypeVar("_Result")
_running: dict[int, asyncio.Task[Any]] = {}  # by thread


class TransientError(Exception):
    """A failure that another try may not meet; `wait` is what the server asked for, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class RefusedError(Exception):
    """A response that another try would get again."""

    def __init__(self, status: int, reason: str, text: str) -> None:
        super().__init__(reason)
        self.status, self.text = status, text


class HttpClient:
    """A server's address and how it is asked.

    Attributes:
        url: the address of the configuration.
        headers: of every request, the key included.
        tls: its certificates.
    """

    def __init__(
        self,
        config: HttpServerConfig,
        section: str,
        wait: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """section: of the configuration, for messages; wait: awaited with seconds between tries.

        InputError where the address or the key cannot be used.
        """
        self._config, self._wait = config, wait
        try:
            self.url = httpx2.URL(config.url)
        except httpx2.InvalidURL as error:
            raise InputError(f"{section}.url is {config.url!r}: {error}") from error
        # Nothing but the configuration decides where a request goes: no proxy variables, no
        # netrc, no redirects. A response is not decompressed: its size is known as it comes.
        self.headers = {
            "Content-Type": "application/json", "Accept": "application/json",
            "Accept-Encoding": "identity",
        }  # fmt: skip
        key = _read_key(config, section)
        if key:
            self.headers["Authorization"] = f"Bearer {key}"
        self.tls = ssl.create_default_context()

    def session(self) -> httpx2.AsyncClient:
        """A context in which `post` can be called."""
        return httpx2.AsyncClient(
            headers=self.headers, trust_env=False, verify=self.tls,
            timeout=None, limits=httpx2.Limits(max_keepalive_connections=0),
        )  # fmt: skip

    async def retried(self, ask: Callable[[], Awaitable[_Result]]) -> _Result:
        """What `ask` returns; tried again after a TransientError, of which the last is raised."""
        pause, left = self._config.backoff, self._config.retries
        while True:
            try:
                return await ask()
            except TransientError as failure:
                if not left:
                    raise
                left -= 1
                jittered = pause * random.uniform(0.5, 1.0)
                await self._wait(min(max(jittered, failure.wait), _LONGEST_WAIT))
                pause = min(2 * pause, _LONGEST_WAIT)

    async def post(self, session: httpx2.AsyncClient, url: httpx2.URL, body: bytes) -> bytes:
        """The body of a response of status 200; raises TransientError or RefusedError."""
        data = bytearray()
        try:
            async with (
                asyncio.timeout(self._config.timeout),
                session.stream("POST", url, content=body) as response,
            ):
                async for chunk in response.aiter_raw():
                    data += chunk
                    if len(data) > _MAX_BODY:
                        raise TransientError(f"a response of more than {_MAX_BODY} bytes")
        except TimeoutError as error:
            raise TransientError(f"no answer within {self._config.timeout:g} s") from error
        except (httpx2.HTTPError, OSError) as error:
            cause: BaseException = error
            while inner := cause.__cause__ or cause.__context__:
                cause = inner  # the innermost says most: ConnectionRefusedError
            raise TransientError(f"{type(cause).__name__}: {cause}") from error
        if response.status_code == 200:
            return bytes(data)
        whole = data.decode("utf-8", "replace")
        text = " ".join(whole[:200].split())
        reason = f"status {response.status_code}{f': {text}' if text else ''}"
        if response.status_code in _TRANSIENT or response.status_code >= 500:
            raise TransientError(reason, _seconds(response.headers.get("Retry-After", "")))
        raise RefusedError(response.status_code, reason, whole)


def encode_image(pixels: np.ndarray, kind: Literal["png", "jpeg"] = "png") -> str:
    """An image uint8 (H, W, 3) as a file in base64; JPEG of quality 95, colours not halved."""
    if kind == "png":
        return base64.b64encode(encode_png(pixels)).decode()
    stream = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.save(stream, format="JPEG", quality=95, subsampling=0)
    return base64.b64encode(stream.getvalue()).decode()


def run_async(work: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of a coroutine; Ctrl-C and whatever else a signal raises end it at once.

    In another thread than the main one, which gets no signals, `cancel_requests` ends it.
    """
    if not _in_event_loop():
        return asyncio.run(_cancellable(work))
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


async def _cancellable(work: Coroutine[Any, Any, _Result]) -> _Result:
    thread, task = threading.get_ident(), asyncio.current_task()
    assert task is not None
    _running[thread] = task
    try:
        return await work
    finally:
        del _running[thread]


def cancel_requests(thread: threading.Thread) -> None:
    """Ends what `run_async` does in another thread, where it does anything: its caller gets a
    CancelledError."""
    task = _running.get(thread.ident or 0)
    if task is not None:
        with suppress(RuntimeError):  # its loop has ended meanwhile
            task.get_loop().call_soon_threadsafe(task.cancel)


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


def _read_key(config: HttpServerConfig, section: str) -> str:
    if config.key_variable:
        key, place = os.environ.get(config.key_variable, ""), f"variable {config.key_variable}"
    elif config.key_file:
        place = f"file {config.key_file}"
        try:
            key = read_text(config.key_file, max_bytes=2**16)
        except InputError as error:
            raise InputError(f"{section}.key_file: {error}") from error
    else:
        return ""
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable():
        raise InputError(f"the {place} holds no key; put the judge's key there on one line")
    return key
