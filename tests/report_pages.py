"""A sample to show on a page, and a reader of pages for the tests of the report."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from typing import Any

import numpy as np

from gotr1_jax.plan import Box, format_object, parse_plan
from gotr1_jax.report.scores import ReportSample
from gotr1_jax.trainer.samples import SampleRecord

NAN = math.nan
PLAN = f"{format_object('red circle', Box(0, 0, 500, 500))} left of " + format_object(
    "blue square", Box(500, 250, 999, 750)
)


class PageReader(HTMLParser):
    """Tags with their attributes, all visible text, and the data of the galleries.

    Complains about tags that do not nest. The text has that of the galleries too.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self._data = ""
        self.feed(page)
        assert self._open == []
        self.data: dict[str, Any] = json.loads(self._data or '{"samples": [], "galleries": []}')
        self.text += "\n".join(_texts(self.data))

    def items(self, name: str) -> list[dict[str, Any]]:
        """Those of a gallery."""
        return [i for g in self.data["galleries"] if g["name"] == name for i in g["items"]]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.text += data
        elif self._open[-1:] == ["script"] and ("id", "gallery-data") in self.tags[-1][1].items():
            self._data += data

    def count(self, tag: str, css_class: str) -> int:
        return sum(t == tag and css_class in (a.get("class") or "").split() for t, a in self.tags)


def _texts(value: Any) -> list[str]:
    """The texts in a value of JSON, without those of images."""
    if isinstance(value, str):
        return [] if value.startswith("data:image/") else [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in parts for text in _texts(part)]


def record(caption: str = "a red circle", **changes: Any) -> SampleRecord:
    values: dict[str, Any] = {
        "caption": caption,
        "caption_index": 0,
        "sample_index": 0,
        "plan_text": PLAN,
        "planned": parse_plan(PLAN).boxes,
        "detections": (("red circle", Box(0, 0, 400, 500)), ("dog", Box(9, 9, 99, 99))),
        "scores": {"sem": 1.0, "spa": 0.25, "ri": NAN},
        "total": 0.5,
        "advantage": 1.0,
        "image": np.full((8, 8, 3), 7, np.uint8),
    }
    return SampleRecord(**{**values, **changes})


def sample(caption: str = "a red circle", **changes: Any) -> ReportSample:
    """`record` without results of later judges."""
    return ReportSample(record(caption, **changes))
