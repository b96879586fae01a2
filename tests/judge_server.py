"""A judge's server on a local socket, as good or as bad as a test wants it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server:
    """Runs `behave(handler, number of the request, its JSON)` for every POST.

    Attributes:
        url: where it is.
        bodies: JSON of the requests, in the order they came.
        headers: theirs.
        models: what it says of its models; empty: it has no such list.
        ended: set when the test is over; who hangs waits for it.
    """

    def __init__(self, behave: Callable[[BaseHTTPRequestHandler, int, Any], None]) -> None:
        self.bodies: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.models: list[dict[str, Any]] = []
        self.ended = threading.Event()
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.bodies.append({**body, "path": self.path})
                    outer.headers.append(dict(self.headers))
                    number = len(outer.bodies)
                behave(self, number, body)

            def do_GET(self) -> None:
                data = json.dumps({"object": "list", "data": outer.models}).encode()
                send(self, 200 if outer.models else 404, data)

            def log_message(self, *_: object) -> None:
                pass

        class Listener(ThreadingHTTPServer):
            request_queue_size = 128  # an engine opens its connections all at once

        self._server = Listener(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Server:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def send(handler: BaseHTTPRequestHandler, status: int, data: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def say(handler: BaseHTTPRequestHandler, text: str | None, reason: str = "stop") -> None:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": reason}
    send(handler, 200, json.dumps({"choices": [choice]}).encode())
