"""The page and its requests over HTTP, for this machine alone unless it is told otherwise."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gotr1_jax.errors import InputError, RunError
from gotr1_jax.io.reading import parse_json, read_bytes
from gotr1_jax.play.studio import StudioAction

_FOLDER = Path(__file__).with_name("page")
_MAX_BYTES = 1_000_000  # of a request
_LOCAL = ("127.0.0.1", "localhost")
_PAGE = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
}
_HEADERS = {
    # The page loads nothing from elsewhere, and is shown in no other page.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_log = logging.getLogger(__name__)


class PlayServer(ThreadingHTTPServer):
    """Serves the page; `POST /api/ACTION` with a JSON object is answered by `actions[ACTION]`.

    On the loopback interface a request must name it as its host, at any port (that of a tunnel, or
    none): other sites, whose names somebody lets point to this machine, are refused.

    Attributes:
      url: of the page.
    """

    daemon_threads = True

    def __init__(self, host: str, port: int, actions: Mapping[str, StudioAction]) -> None:
        """InputError where the address cannot be used. port: 0 is a free one."""
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError, UnicodeError) as error:
            raise InputError(
                f"cannot serve at {host}:{port}: {error}; try another --port, or 0 for any"
            ) from error
        self.actions = actions
        self.url = f"http://{host}:{self.server_port}/"
        self.is_local = host in _LOCAL

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that has gone away is no error."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: PlayServer
    timeout = 60

    def do_GET(self) -> None:
        """The page's files."""
        if not self._is_expected_host():
            return
        if self.path not in _PAGE:
            self._send_json(HTTPStatus.NOT_FOUND, {"error": "there is no such page"})
            return
        name, kind = _PAGE[self.path]
        self._send(HTTPStatus.OK, kind, read_bytes(_FOLDER / name))

    def do_POST(self) -> None:
        """One action."""
        if not self._is_expected_host():
            return
        action = self.server.actions.get(self.path.removeprefix("/api/"))
        # A form of another site cannot send this type without asking first.
        if self.headers.get_content_type() != "application/json":
            self._send_json(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, {"error": "send application/json"})
        elif action is None or not self.path.startswith("/api/"):
            self._send_json(HTTPStatus.NOT_FOUND, {"error": "there is no such action"})
        else:
            self._send_json(*self._answer(action))

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""

    def _answer(self, action: StudioAction) -> tuple[HTTPStatus, dict[str, Any]]:
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            return HTTPStatus.LENGTH_REQUIRED, {"error": "the length is missing"}
        if not 0 <= length <= _MAX_BYTES:
            self.close_connection = True
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": f"{_MAX_BYTES} bytes at most"}
        try:
            values = parse_json(self.rfile.read(length).decode(), "the request")
            if not isinstance(values, dict):
                raise InputError("the request is no JSON object")
            return HTTPStatus.OK, action(values)
        except (InputError, UnicodeDecodeError) as error:
            return HTTPStatus.BAD_REQUEST, {"error": str(error)}
        except RunError as error:
            return HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(error)}
        except Exception as error:
            _log.error("%s", traceback.format_exc())
            return HTTPStatus.INTERNAL_SERVER_ERROR, {"error": f"{type(error).__name__}: {error}"}

    def _is_expected_host(self) -> bool:
        try:
            name = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:
            name = None
        if not self.server.is_local or name in _LOCAL:
            return True
        self._send_json(HTTPStatus.FORBIDDEN, {"error": f"open {self.server.url}"})
        return False

    def _send_json(self, status: HTTPStatus, values: Mapping[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(values).encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
