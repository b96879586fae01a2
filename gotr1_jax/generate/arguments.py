"""The arguments of `Pipeline`: of numpy as of Python, one or several, checked before any work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from gotr1_jax.config import read_value
from gotr1_jax.errors import InputError
from gotr1_jax.generate.tasks import CaptionTask, caption_tasks
from gotr1_jax.images import open_image, to_rgb
from gotr1_jax.io.scalars import show_value
from gotr1_jax.limits import RowCount
from gotr1_jax.plan import Plan

if TYPE_CHECKING:
    from gotr1_jax.rewards.base import Judge

ImageLike = Image.Image | np.ndarray | str | Path


def as_tasks(prompt: Any, n: Any, plans: Sequence[str | Plan] | None) -> list[CaptionTask]:
    """A task of `n` samples for each prompt; plans None: they are sampled."""
    n, prompts = read_argument(RowCount, n, "n"), as_list(prompt, (str,), "prompt")
    texts = None if plans is None else [str(plan) for plan in plans]
    if texts is not None and len(texts) != len(prompts):
        raise InputError(f"{len(texts)} plans for {len(prompts)} prompts: give one for each")
    return caption_tasks(prompts, texts, n)


def as_list(given: Any, kinds: tuple[type, ...], what: str) -> list[Any]:
    """One value of these kinds, or several, as a list; InputError for others and for none."""
    several = isinstance(given, Iterable) and not isinstance(given, kinds)
    found = list(given) if several else [given]
    if not found:
        raise InputError(f"there is no {what}; give one or more")
    for one in found:
        if not isinstance(one, kinds):
            names = ", ".join(kind.__name__ for kind in kinds)
            raise InputError(f"{what} is {show_value(one)}; give one or more of type {names}")
    return found


def read_argument(kind: Any, value: Any, name: str) -> Any:
    """`read_value`, of numpy's numbers too."""
    return read_value(kind, plain(value), name)


def plain(value: Any) -> Any:
    """A number of numpy as Python's."""
    return value.item() if isinstance(value, np.generic) else value


def as_image(image: ImageLike) -> Image.Image:
    """RGB, upright; InputError for what is no image or has no pixels."""
    if isinstance(image, str | Path):
        return open_image(Path(image))
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise InputError(f"an image has {image.width} x {image.height} pixels")
        return to_rgb(image, "that was given")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or not image.size:
        raise InputError(f"an image is {image.dtype} {image.shape}; give uint8 (height, width, 3)")
    return Image.fromarray(image)


def as_judge(judge: Judge | str | None) -> Judge | None:
    """The judge itself or the one that is named."""
    if isinstance(judge, str):
        return find_judge(judge)
    if judge is None or hasattr(judge, "judge"):
        return judge
    raise InputError(f"judge is {show_value(judge)}; give shapes, file.py:function, or a judge")


def find_judge(name: str) -> Judge:
    """The exact judge, or a function of one's own whose term has its name."""
    from gotr1_jax.rewards.python import PythonJudge
    from gotr1_jax.rewards.shapes import ShapesJudge

    if name == "shapes":
        return ShapesJudge()
    if ":" not in name:
        raise InputError(f"judge is {name!r}; give shapes, file.py:function, or a judge")
    return PythonJudge(name, [name.rpartition(":")[2]])
