"""What the page asks for, as JSON values: plans, edits, images, scores."""

from __future__ import annotations

import base64
import math
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from PIL import Image

from gotr1_jax.config import read_value
from gotr1_jax.errors import InputError
from gotr1_jax.generate.pipeline import Pipeline, PipelineOutput, SamplingOptions
from gotr1_jax.images import encode_png
from gotr1_jax.plan import Box, Plan, parse_plan
from gotr1_jax.plan.boxes import LAST

if TYPE_CHECKING:
    from gotr1_jax.rewards.base import Judge

MAX_IMAGES = 16

StudioAction = Callable[[Mapping[str, Any]], dict[str, Any]]
"""The values of a request -> those of its answer."""


class Studio:
    """Requests of the page, one after the other.

    Args:
      pipelines: by the name that the page shows; two are shown side by side.
      judge: of the images; None: they are not scored.
    """

    def __init__(self, pipelines: Mapping[str, Pipeline], judge: Judge | None) -> None:
        self._pipelines, self._judge = dict(pipelines), judge
        self._lock = threading.Lock()
        self.actions: dict[str, StudioAction] = {
            "state": self.state, "plan": self.plan, "edit": self.edit, "paint": self.paint,
        }  # fmt: skip

    def state(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Checkpoints with their ways of sampling."""
        return {
            "checkpoints": [
                {
                    "name": name,
                    "guidance": pipe.generation_config.guidance,
                    "temperature": pipe.generation_config.text_temperature,
                }
                for name, pipe in self._pipelines.items()
            ]
        }

    def plan(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A plan of `prompt`, by the checkpoint `checkpoint`, with `seed`."""
        prompt, seed = _read(values, "prompt", str), _read(values, "seed", int)
        with self._lock:
            out = self._pipeline(values).plan(prompt, seed=seed, **_options(values))
        return plan_json(out.plans[0])

    def edit(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The plan of the text `plan` after one change.

        `change` is `box` (of object `index`, to `box`), `rename` (object `index`, to `name`), `add`
        (`name` at `box`), `remove` (object `index`) or `text` (the text as it is).
        """
        plan, change = parse_plan(_read(values, "plan", str)), _read(values, "change", str)
        edits: dict[str, Callable[[], Plan]] = {
            "box": lambda: plan.replace_box(_read(values, "index", int), _read_box(values)),
            "rename": lambda: plan.rename_object(
                _read(values, "index", int), _read(values, "name", str)
            ),
            "add": lambda: plan.add_object(_read(values, "name", str), _read_box(values)),
            "remove": lambda: plan.remove_object(_read(values, "index", int)),
            "text": lambda: plan,
        }
        if change not in edits:
            raise InputError(f"change is {change!r}; choose from {', '.join(edits)}")
        return plan_json(edits[change]())

    def paint(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """`n` images of the plan `plan` for `prompt`, with `seed`, and their scores."""
        prompt, plan = _read(values, "prompt", str), _read(values, "plan", str)
        n, seed = _read(values, "n", int), _read(values, "seed", int)
        if not 1 <= n <= MAX_IMAGES:
            raise InputError(f"n is {n}; paint 1 to {MAX_IMAGES} images")
        with self._lock:
            pipe = self._pipeline(values)
            out = pipe.paint(prompt, plan, n, seed, judge=self._judge, **_options(values))
        return {"images": images_json(out)}

    def _pipeline(self, values: Mapping[str, Any]) -> Pipeline:
        name = _read(values, "checkpoint", str)
        if name not in self._pipelines:
            raise InputError(f"checkpoint is {name!r}; there are {', '.join(self._pipelines)}")
        return self._pipelines[name]


def plan_json(plan: Plan) -> dict[str, Any]:
    """A plan's text and objects, boxes in thousandths as [x1, y1, x2, y2] or None."""
    return {
        "plan": plan.text,
        "objects": [
            {
                "name": item.name,
                "box": None if item.box is None
                else [item.box.x1, item.box.y1, item.box.x2, item.box.y2],
            }
            for item in plan.objects
        ],
    }  # fmt: skip


def images_json(out: PipelineOutput) -> list[dict[str, Any]]:
    """Images as data URLs, each with scores and reasons where there is a judge."""
    found = []
    for i, image in enumerate(out.images):
        result = out.results[i] if out.results else None
        scores = {} if result is None else result.scores
        found.append({
            "image": _data_url(image),
            "scores": {
                t: round(float(s), 4) if math.isfinite(s) else None for t, s in scores.items()
            },
            "rationale": "" if result is None else result.rationale,
        })  # fmt: skip
    return found


def _data_url(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(encode_png(image)).decode()


def _read(values: Mapping[str, Any], key: str, kind: Any) -> Any:
    """A value of the request; InputError where it is missing or of another type."""
    if key not in values:
        raise InputError(f"{key} is missing")
    return read_value(kind, values[key], key)


def _read_box(values: Mapping[str, Any]) -> Box:
    corners = _read(values, "box", tuple[int, ...])
    if len(corners) != 4 or not all(0 <= c <= LAST for c in corners):
        raise InputError(f"box is {list(corners)}; give x1, y1, x2, y2 from 0 to {LAST}")
    return Box(*corners)


def _options(values: Mapping[str, Any]) -> SamplingOptions:
    """The settings of sampling in a request; None or missing: as the checkpoint says."""
    options = SamplingOptions()
    for key in ("guidance", "temperature"):
        if values.get(key) is not None:
            options[key] = values[key]
    return options
