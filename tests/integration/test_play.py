"""`gotr1 play`: requests over HTTP, and the page in Chromium where there is one."""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import CHROMIUM, Page, open_page
from PIL import Image

from gotr1_jax import cli
from gotr1_jax.generate.pipeline import Pipeline
from gotr1_jax.play.server import PlayServer
from gotr1_jax.play.studio import Studio, images_json
from gotr1_jax.rewards.base import JudgeRequest, JudgeResult
from gotr1_jax.rewards.shapes import ShapesJudge

pytestmark = pytest.mark.usefixtures("compiled_programs", "devices_as_they_are")

PROMPT = "a red circle left of a blue square"
PLAN = (
    "<|obj_start|>large red circle<|obj_end|> <|box_start|>(20,100),(460,540)<|box_end|> left of "
    "<|obj_start|>large blue square<|obj_end|> <|box_start|>(520,400),(980,860)<|box_end|>"
)
BASE = {"checkpoint": "embedded", "prompt": PROMPT, "seed": 5}


# Of which objects the square at a corner covers their own name.
COVERED_LABELS = """[...document.querySelectorAll('.box')].filter((box) => {
  const name = box.querySelector('text').getBoundingClientRect();
  return [...box.querySelectorAll('.corner')].some((corner) => {
    const square = corner.getBoundingClientRect();
    return square.left < name.right && name.left < square.right
      && square.top + 2 < name.bottom && name.top + 2 < square.bottom;
  });
}).map((box) => box.querySelector('text').textContent)"""


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_pretrained("embedded", batch_size=4)


@pytest.fixture(scope="module")
def server(pipe: Pipeline) -> Iterator[PlayServer]:
    studio = Studio({"embedded": pipe, "other": pipe}, ShapesJudge())
    with PlayServer("127.0.0.1", 0, studio.actions) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


def send(
    server: PlayServer, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=300)
    kinds = {"Content-Type": "application/json"} | {
        k.replace("_", "-"): v for k, v in headers.items()
    }
    connection.request(method, path, body, kinds)
    answer = connection.getresponse()
    return answer.status, answer.read()


def ask(server: PlayServer, action: str, **values: Any) -> dict[str, Any]:
    status, body = send(server, "POST", f"/api/{action}", json.dumps(values).encode())
    assert status == 200, body
    return json.loads(body)


def test_images_and_scores_are_the_pipelines(server, pipe) -> None:
    assert [c["name"] for c in ask(server, "state")["checkpoints"]] == ["embedded", "other"]
    planned = ask(server, "plan", **BASE)
    (plan,) = pipe.plan(PROMPT, seed=5).plans
    assert planned["plan"] == str(plan)
    assert [o["name"] for o in planned["objects"]] == [o.name for o in plan.objects]
    painted = ask(server, "paint", **BASE, plan=PLAN, n=4, guidance=2)["images"]
    out = pipe.paint(PROMPT, PLAN, 4, 5, guidance=2.0)
    assert len(painted) == 4
    for i, shown in enumerate(painted):
        png = base64.b64decode(shown["image"].partition(",")[2])
        with Image.open(io.BytesIO(png)) as image:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(out.images[i]))
        request = JudgeRequest(PROMPT, out.plans[i], np.asarray(out.images[i]))
        (known,) = ShapesJudge().judge([request])
        assert shown["scores"] == {t: round(s, 4) for t, s in known.scores.items()}
        assert shown["rationale"] == known.rationale


def test_edits(server) -> None:
    def edit(**change: Any) -> dict[str, Any]:
        return ask(server, "edit", plan=PLAN, **change)

    moved = edit(change="box", index=1, box=[503, 17, 951, 461])
    assert moved["objects"][1] == {"name": "large blue square", "box": [503, 17, 951, 461]}
    assert moved["plan"] == PLAN.replace("(520,400),(980,860)", "(503,17),(951,461)")
    assert edit(change="rename", index=0, name="star")["objects"][0]["name"] == "star"
    assert [o["name"] for o in edit(change="remove", index=0)["objects"]] == ["large blue square"]
    added = edit(change="add", name="moon", box=[1, 2, 30, 40])["objects"]
    assert added[2] == {"name": "moon", "box": [1, 2, 30, 40]}
    assert edit(change="text")["plan"] == PLAN
    assert ask(server, "edit", plan="no box", change="text")["objects"] == []


@pytest.mark.parametrize(
    ("action", "values", "message"),
    [
        ("paint", {**BASE, "plan": PLAN, "n": 17}, "n is 17"),
        ("paint", {**BASE, "plan": PLAN, "n": 1, "guidance": "x"}, "guidance is 'x'"),
        ("paint", {**BASE, "plan": PLAN, "n": 1, "temperature": -1}, "temperature"),
        ("paint", {**BASE, "plan": "word " * 500, "n": 1}, "more than the limit"),
        ("plan", {**BASE, "checkpoint": "none"}, "checkpoint is 'none'"),
        ("plan", {**BASE, "prompt": ""}, "caption|prompt"),
        ("plan", {"checkpoint": "embedded"}, "prompt is missing"),
        ("plan", {**BASE, "seed": "1"}, "seed is '1'"),
        ("plan", {**BASE, "seed": 2**63}, "seed is 9223372036854775808"),
        ("edit", {"plan": PLAN, "change": "box", "index": 0, "box": [0, 0, 9, 1000]}, "to 999"),
        ("edit", {"plan": PLAN, "change": "burn"}, "change is 'burn'"),
        ("edit", {"plan": PLAN, "change": "box", "index": 0, "box": [0, 0, 9]}, "box is"),
        ("edit", {"plan": PLAN, "change": "box", "index": 9, "box": [0, 0, 9, 9]}, "no object 9"),
        ("edit", {"plan": PLAN, "change": "rename", "index": 0, "name": "a<|obj_end|>"}, "name"),
    ],
)  # fmt: skip
def test_bad_requests(server, action: str, values: dict[str, Any], message: str) -> None:
    status, body = send(server, "POST", f"/api/{action}", json.dumps(values).encode())
    error = json.loads(body)["error"]
    assert status == 400 and "\n" not in error
    assert any(part in error for part in message.split("|")), error


def test_what_is_no_request_of_the_page(server) -> None:
    body = json.dumps(BASE).encode()
    for path in ("/api/none", "/plan", "/api/../x"):
        assert send(server, "POST", path, body)[0] == 404
    assert send(server, "GET", "/../command.py")[0] == 404
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert send(server, "POST", "/api/plan", body, Content_Type=kind)[0] == 415
    assert send(server, "POST", "/api/plan", b"{", Content_Length="1")[0] == 400
    assert send(server, "POST", "/api/plan", b"[]")[0] == 400
    assert send(server, "POST", "/api/plan", b"", Content_Length="99999999")[0] == 413
    for method in ("GET", "POST"):
        status, answer = send(server, method, "/api/state", b"{}", Host="evil.example")
        assert status == 403 and server.url in json.loads(answer)["error"]
    for host in ("evil.example:7860", "127.0.0.1.evil.example", "[::1", "localhost@evil", ""):
        assert send(server, "POST", "/api/state", b"{}", Host=host)[0] == 403
    # Through a tunnel from another port; at port 80 a browser names none.
    for host in ("localhost:8000", "127.0.0.1"):
        assert send(server, "POST", "/api/state", b"{}", Host=host)[0] == 200
    for path in ("/", "/page.js", "/style.css"):
        assert send(server, "GET", path)[0] == 200


@pytest.mark.parametrize("score", [float("inf"), float("nan")])
def test_a_score_that_is_not_finite_is_none(pipe, score: float) -> None:
    out = pipe.paint(PROMPT, PLAN)
    (shown,) = images_json(replace(out, results=[JudgeResult({"own": score})]))
    assert shown["scores"] == {"own": None}


def test_a_browser_that_goes_away_is_no_error(server, monkeypatch, capfd) -> None:
    arrived, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def wait(_: Any) -> dict[str, Any]:
        arrived.set()
        go_on.wait(60)
        return {"long": "x" * 2**24}

    def end(self: PlayServer, request: Any) -> None:
        shutdown(self, request)
        done.set()

    shutdown = PlayServer.shutdown_request
    monkeypatch.setitem(server.actions, "wait", wait)
    monkeypatch.setattr(PlayServer, "shutdown_request", end)
    kinds = "Host: localhost\r\nContent-Type: application/json\r\nContent-Length: 2"
    with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
        connection.sendall(f"POST /api/wait HTTP/1.1\r\n{kinds}\r\n\r\n{{}}".encode())
        assert arrived.wait(60)
        # Closed so that the server is told at once.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    go_on.set()
    assert done.wait(60)
    assert capfd.readouterr().err == ""


def test_bad_options(capsys, server) -> None:
    for words, message in (
        (("--ckpt", "a", "--ckpt", "b", "--ckpt", "c"), "3 checkpoints"),
        (("--ckpt", "embedded", "--ckpt", "embedded"), "given twice"),
        (("--judge", "shape"), "judge is 'shape'"),
        (("--ckpt", "/nowhere"), "/nowhere"),
        (("--port", str(server.server_port)), "cannot serve at 127.0.0.1"),
        (("--port", "99999"), "cannot serve at 127.0.0.1:99999"),
    ):
        assert cli.run(["play", *words]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: chromium)")
def test_a_box_is_dragged_and_painted_again(server, tmp_path: Path) -> None:
    panel = "document.querySelector('.panel')"
    shown, scores = f"{panel}.querySelector('.stage img').src", f"{panel}.querySelector('.scores')"
    box = f"{panel}.querySelectorAll('.objects td:nth-child(2)')[1].textContent"
    at_rest = "[...document.querySelectorAll('.busy')].every((busy) => busy.hidden)"
    other = "document.querySelectorAll('.stage img')[1].src"
    with open_page(server.url, tmp_path) as page:
        page.wait_for(f"document.querySelectorAll('.panel').length === 2 && {shown} && {at_rest}")
        for width in (1100, 390):
            page.resize(width, 1300)
            page.value(f"{panel}.querySelector('.apply').click()")
            page.wait_for(at_rest)
            assert page.value(COVERED_LABELS) == []
        page.resize(1100, 1300)
        # Both panels are drawn with the same settings by the same checkpoint.
        first = page.value(other)
        assert page.value(shown) == first
        page.value(f"{panel}.querySelector('.text').value = {json.dumps(PLAN)}")
        page.value(f"{panel}.querySelector('.apply').click()")
        given = f"{box} === '520, 400, 980, 860' && {at_rest}"
        page.wait_for(f"{given} && {shown} !== {json.dumps(first)}")
        before, before_scores = page.value(shown), page.value(f"{scores}.innerText")
        place = f"{panel}.querySelector('.box[data-index=\"1\"] .body').getBoundingClientRect()"
        x, y = (
            page.value(f"{place}.{a} + {place}.{b} / 2")
            for a, b in (("x", "width"), ("y", "height"))
        )
        side = page.value(f"{panel}.querySelector('.stage').getBoundingClientRect().width")
        page.mouse("mousePressed", x, y)
        for part in (0.5, 1.0):
            page.mouse("mouseMoved", x - 0.1 * side * part, y - 0.3 * side * part)
        page.mouse("mouseReleased", x - 0.1 * side, y - 0.3 * side)
        page.wait_for(f"{box} !== '520, 400, 980, 860'")
        corners = [int(part) for part in page.value(box).split(", ")]
        # A pixel is about two thousandths of the image.
        np.testing.assert_allclose(corners, [420, 100, 880, 560], atol=3)
        page.wait_for(f"{at_rest} && {shown} !== {json.dumps(before)}")
        assert page.value(f"{scores}.innerText") != before_scores
        # Undo brings plan and image back; the other panel was never touched.
        page.value(f"{panel}.querySelector('.undo').click()")
        page.wait_for(f"{given} && {shown} === {json.dumps(before)}")
        assert page.value(other) == first
        # A mistake is shown and loses nothing.
        page.value("document.querySelector('#guidance').value = '1e9'")
        page.value(f"{panel}.querySelector('.repaint').click()")
        page.wait_for("!document.querySelector('#error').hidden")
        assert "guidance" in page.value("document.querySelector('#error').textContent")
        assert page.value(shown) == before


def arrow_right(page: Page) -> None:
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key="ArrowRight", windowsVirtualKeyCode=39)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: chromium)")
def test_changes_made_quickly_and_by_keyboard(server, tmp_path: Path) -> None:
    panel = "document.querySelector('.panel')"
    boxes = f"[...{panel}.querySelectorAll('.objects td:nth-child(2)')].map((e) => e.textContent)"
    names = f"[...{panel}.querySelectorAll('.objects input')].map((e) => e.value)"
    at_rest = "[...document.querySelectorAll('.busy')].every((busy) => busy.hidden)"
    focus = "document.activeElement.dataset.place ?? document.activeElement.id"

    def use(page: Page, plan: str) -> None:
        # At once: a change that ends in between would write its own plan into the field.
        page.value(
            f"{panel}.querySelector('.text').value = {json.dumps(plan)}; "
            f"{panel}.querySelector('.apply').click()"
        )

    with open_page(server.url, tmp_path) as page:
        shown = f"document.querySelectorAll('.panel').length === 2 && {at_rest}"
        page.wait_for(f"{shown} && {panel}.querySelector('.stage img').src")
        use(page, PLAN)
        page.wait_for(f"{boxes}[0] === '20, 100, 460, 540' && {at_rest}")
        # Every step counts, and the focus stays although the box is drawn anew.
        page.value(f"{panel}.querySelector('.box').focus()")
        for _ in range(4):
            arrow_right(page)
        page.wait_for(f"{boxes}[0] === '60, 100, 500, 540'")
        assert page.value(focus) == "box 0"
        # An image that is ready takes the focus from nothing.
        page.value("document.querySelector('#prompt').focus()")
        page.wait_for(at_rest)
        assert page.value(focus) == "prompt"
        # A change that begins before the one before it has ended: none is lost.
        page.value(
            f"(() => {{ const name = {panel}.querySelector('.objects input'); name.value = 'moon'; "
            f"name.dispatchEvent(new Event('change')); {panel}.querySelector('.new').click(); }})()"
        )
        page.wait_for(f"{names}.length === 3")
        assert page.value(names) == ["moon", "large blue square", "green star"]
        # No farther than the image, whose last place is 999.
        page.value(f"{panel}.querySelector('.box').focus()")
        for _ in range(60):
            arrow_right(page)
        page.wait_for(f"{boxes}[0] === '559, 100, 999, 540'")
        # A plan may hold any numbers: its boxes cover nothing but the image.
        use(page, PLAN.replace("(20,100),(460,540)", "(-90,0),(999999999,999999999)"))
        page.wait_for(f"{boxes}[0] === '-90, 0, 999999999, 999999999'")
        at = f"{panel}.querySelector('.repaint').getBoundingClientRect()"
        there = f"document.elementFromPoint({at}.x + 5, {at}.y + 5)"
        assert page.value(f"{there}.className") == "repaint"
        page.wait_for(at_rest)
