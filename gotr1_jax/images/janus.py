"""An image as Janus's vision tower reads it.

The longest side is brought to the tower's size (bicubic), the rest of the square is filled with
the mean color, values are scaled to [0, 1] and normalised. Settings come from the checkpoint's
preprocessor_config.json, or from the image_processor section of its processor_config.json; what
neither says has the value of the released Janus-Pro files. Sizes are rounded as
`transformers.JanusImageProcessor` rounds them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gotr1_jax.errors import InputError
from gotr1_jax.io.reading import read_json_object

PREPROCESSOR_FILE, PROCESSOR_FILE = "preprocessor_config.json", "processor_config.json"

_log = logging.getLogger(__name__)
_TYPES = {
    "VLMImageProcessor",
    "JanusImageProcessor",
    "JanusImageProcessorFast",
    "JanusImageProcessorPil",
}
# Settings that have one value in every Janus checkpoint; another one is another preprocessing.
_FIXED: dict[str, Any] = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_pad": True,
    "do_center_crop": False,
    "resample": int(Image.Resampling.BICUBIC),
}
_FIXED_PROCESSOR: dict[str, Any] = {
    "sft_format": "deepseek",
    "image_tag": "<image_placeholder>",
    "add_special_token": False,
}


@dataclass(frozen=True)
class ImageSettings:
    """How an image becomes the tower's input.

    Attributes:
      size: pixels a side of the square.
      min_size: least pixels of the shorter side, however thin the image is.
      mean, std: of each channel, of values in [0, 1].
      scale: factor from 0..255 to [0, 1].
    """

    size: int = 384
    min_size: int = 14
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    scale: float = 1 / 255

    @property
    def background(self) -> tuple[int, int, int]:
        """Color that fills the square: the mean, cut to whole numbers as the reference does."""
        r, g, b = (int(m * 255) for m in self.mean)
        return r, g, b


def read_settings(directory: Path, size: int) -> ImageSettings:
    """Settings of the checkpoint in `directory`, whose tower takes `size` x `size` pixels.

    Raises InputError for a file that cannot be read, for values of the wrong type and for a
    preprocessing that is not Janus's.
    """
    processor = read_json_object(directory / PROCESSOR_FILE, missing_ok=True)
    for key, value in _FIXED_PROCESSOR.items():
        _expect(processor, key, value, directory / PROCESSOR_FILE)
    file = directory / PREPROCESSOR_FILE
    data = read_json_object(file, missing_ok=True)
    if not data and processor.get("image_processor") is not None:
        file, data = directory / PROCESSOR_FILE, processor["image_processor"]
        if not isinstance(data, dict):
            raise InputError(f"{file}: image_processor is not a JSON object")
    kind = data.get("image_processor_type")
    if kind is not None and kind not in _TYPES:
        raise InputError(f"{file}: image_processor_type {kind!r} is not Janus's")
    for key, value in _FIXED.items():
        _expect(data, key, value, file)
    usual = ImageSettings()
    settings = ImageSettings(
        size=size,
        min_size=_whole(data, "min_size", usual.min_size, file),
        mean=_triple(data, "image_mean", usual.mean, file),
        std=_triple(data, "image_std", usual.std, file),
        scale=_number(data, "rescale_factor", usual.scale, file),
    )
    if settings.min_size > size:
        raise InputError(f"{file}: min_size {settings.min_size} is more than the tower's {size}")
    if min(settings.std) <= 0 or settings.scale <= 0:
        raise InputError(f"{file}: image_std and rescale_factor have to be above 0")
    if not all(0 <= m <= 1 for m in settings.mean):
        raise InputError(f"{file}: image_mean {list(settings.mean)} is not within 0 .. 1")
    if (stated := _stated_size(data, file)) not in (None, size):
        _log.warning("%s says images of %s px; the vision tower takes %d px", file, stated, size)
    return settings


def preprocess(image: Image.Image, settings: ImageSettings) -> np.ndarray:
    """The tower's input: float32 (size, size, 3), normalised.

    The image keeps its proportions and stands in the middle of the square; a very thin one is
    widened to `min_size`.
    """
    size, width, height = settings.size, image.width, image.height
    factor = size / max(width, height)
    # Python's rounding (halves to even) is the reference's.
    width, height = (max(round(side * factor), settings.min_size) for side in (width, height))
    small = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (size, size), settings.background)
    square.paste(small, ((size - width) // 2, (size - height) // 2))
    values = (np.asarray(square).astype(np.float64) * settings.scale).astype(np.float32)
    return (values - np.asarray(settings.mean, np.float32)) / np.asarray(settings.std, np.float32)


def _expect(data: Mapping[str, Any], key: str, value: Any, file: Path) -> None:
    given = data.get(key)
    if given is not None and given != value:
        raise InputError(f"{file}: {key} {given!r} is not supported; Janus has {value!r}")


def _number(data: Mapping[str, Any], key: str, usual: float, file: Path) -> float:
    value = data.get(key)
    if value is None:
        return usual
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{file}: {key} {value!r} is not a number")
    return float(value)


def _whole(data: Mapping[str, Any], key: str, usual: int, file: Path) -> int:
    value = _number(data, key, usual, file)
    if value < 1 or value != int(value):
        raise InputError(f"{file}: {key} {value!r} is not a whole number of 1 or more")
    return int(value)


def _triple(
    data: Mapping[str, Any], key: str, usual: tuple[float, float, float], file: Path
) -> tuple[float, float, float]:
    values = data.get(key)
    if values is None:
        return usual
    if not isinstance(values, list) or len(values) != 3:
        raise InputError(f"{file}: {key} {values!r} is not a list of three numbers")
    r, g, b = (_number({key: value}, key, 0.0, file) for value in values)
    return r, g, b


def _stated_size(data: Mapping[str, Any], file: Path) -> int | None:
    """Pixels a side by the file: `image_size`, in the port `size` with height and width."""
    size = data.get("size")
    if isinstance(size, dict):
        sides = {_whole(size, key, 0, file) for key in ("height", "width") if size.get(key)}
        if len(sides) != 1:
            raise InputError(f"{file}: size {size!r} is not square")
        return sides.pop()
    if size is None and data.get("image_size") is None:
        return None
    return _whole(data, "image_size" if size is None else "size", 1, file)
