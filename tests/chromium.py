"""Headless Chromium for tests, over its debugging protocol; only the standard library."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import struct
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
_PATIENCE = 300.0  # seconds; a machine may be busy


class Page:
    """One page of a browser."""

    def __init__(self, address: str) -> None:
        host, _, path = address.removeprefix("ws://").partition("/")
        name, _, port = host.partition(":")
        self._socket = socket.create_connection((name, int(port)), timeout=_PATIENCE)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = (
            f"GET /{path} HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", "",
        )  # fmt: skip
        self._socket.sendall("\r\n".join(lines).encode())
        self._stream = self._socket.makefile("rb")
        while self._stream.readline().strip():
            pass
        self._calls = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command of the protocol."""
        self._calls += 1
        request = {"id": self._calls, "method": method, "params": parameters}
        payload, mask = json.dumps(request).encode(), os.urandom(4)
        head = struct.pack("!BBQ", 0x81, 0x80 | 127, len(payload))
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self._socket.sendall(head + mask + masked)
        while True:
            answer = json.loads(self._message())
            if answer.get("id") == self._calls:
                assert "error" not in answer, answer
                return answer["result"]

    def value(self, expression: str) -> Any:
        """The value of JavaScript; of a promise, what it becomes."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """The value of JavaScript once it is true."""
        end = time.monotonic() + _PATIENCE
        while not (value := self.value(expression)):
            assert time.monotonic() < end, f"{expression} never became true"
            time.sleep(0.05)
        return value

    def mouse(self, kind: str, x: float, y: float) -> None:
        """`mousePressed`, `mouseMoved` or `mouseReleased` at a point of the window."""
        pressed = {"button": "left", "buttons": 1, "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **pressed)

    def resize(self, width: int, height: int, scheme: str = "light") -> None:
        """The window's size in pixels, and the colours that its user prefers: light or dark."""
        sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **sizes)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path) -> None:
        """A PNG file of what the window shows."""
        image = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(image))

    def check_accessibility(self) -> list[str]:
        """What axe-core finds serious or critical: the rule, and the elements."""
        self.value(f"{axe_source()}; true")
        found = self.value(
            "axe.run(document, {resultTypes: ['violations']}).then((result) => result.violations"
            ".filter(({impact}) => impact === 'serious' || impact === 'critical')"
            ".map(({id, nodes}) => id + ': ' + nodes.slice(0, 5).map((node) => node.html "
            "+ ' ' + node.failureSummary).join(' | ')))"
        )
        return list(found)

    def _message(self) -> bytes:
        parts = []
        while True:
            first, second = self._stream.read(2)
            size = second & 0x7F
            if size == 126:
                (size,) = struct.unpack("!H", self._stream.read(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", self._stream.read(8))
            parts.append(self._stream.read(size))
            if first & 0x80:
                return b"".join(parts)


def axe_source() -> str:
    """The script of axe-core, as a package of Python carries it."""
    import axe_core_python

    return (Path(axe_core_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")


@contextmanager
def open_page(url: str, profile: Path, size: tuple[int, int] = (1100, 1300)) -> Iterator[Page]:
    """A page of a new browser, whose files lie in `profile`."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
        f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}", url,
    ]  # fmt: skip
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port_file, end = profile / "DevToolsActivePort", time.monotonic() + _PATIENCE
        while not port_file.exists() or not port_file.read_text().strip():
            assert browser.poll() is None and time.monotonic() < end, "Chromium did not start"
            time.sleep(0.05)
        port = port_file.read_text().split()[0]
        while True:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
                pages = [page for page in json.load(answer) if page["type"] == "page"]
            if pages:
                break
            time.sleep(0.05)
        yield Page(pages[0]["webSocketDebuggerUrl"])
    finally:
        browser.kill()
        browser.wait()
