"""The one reader of image files: any format and depth into 8-bit RGB, upright."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from gotr1_jax.errors import InputError
from gotr1_jax.io.reading import open_file

# Full scale of whole numbers by the format of the file: Pillow reads 16-bit gray of these as
# 32-bit numbers. In other files the values themselves have to say it.
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM", "JPEG2000")
_SCALES = (2**8 - 1, 2**16 - 1, 2**32 - 1)


def open_image(path: str | Path) -> Image.Image:
    """The image in a file as RGB, turned upright by its EXIF orientation.

    Transparency is dropped, palettes, gray and CMYK are converted, as `Image.convert("RGB")` does;
    of several frames the first counts. 16-bit values are scaled to 8 bits. Gray of 32 bits is
    taken as 8, 16 or 32 bits deep by its largest value, gray of floats as within 0 .. 1, or, if a
    value is larger, like whole numbers. Raises InputError if there is no readable image.
    """
    try:
        file = open_file(path)
    except InputError as error:
        raise InputError(f"the image {error}") from error
    with file:
        if not file.peek(1):
            raise InputError(f"the image {path} is an empty file")
        return decode_image(file, str(path))


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) that the file of an image states, as it is stored; InputError where it has
    none. Nothing is decoded."""
    with open_file(path) as file:
        try:
            with warnings.catch_warnings(action="ignore"), Image.open(file) as image:
                return image.height, image.width
        except Exception as error:  # as in `decode_image`
            raise _unreadable(str(path), error) from error


def decode_image(source: BinaryIO, name: str) -> Image.Image:
    """As `open_image`, of an open file; `name` says in an error which image it is."""
    try:
        # Pillow warns of odd palettes and of very large images: both are read all the same.
        with warnings.catch_warnings(action="ignore"), Image.open(source) as image:
            return to_rgb(image, name)
    except InputError:
        raise
    except Image.UnidentifiedImageError as error:
        raise InputError(f"{name} is not an image in a known format") from error
    except Exception as error:  # the readers of the formats raise whatever they meet
        raise _unreadable(name, error) from error


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """As `open_image`, of an image of Pillow."""
    try:
        image.load()
        return _eight_bits(_upright(image), image.format or "").convert("RGB")
    except Exception as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return InputError(f"the image {name} cannot be read: {reason}")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged orientation says nothing about the pixels
        return image.copy()


def _eight_bits(image: Image.Image, file_format: str) -> Image.Image:
    """Gray of more than 8 bits as 8 bits; `convert` would clip it to white. Others unchanged."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all() or values.min() < 0:
        raise ValueError("a gray value is negative or not finite")
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in _SIXTEEN_BIT_FORMATS):
        full = _SCALES[1]
    else:
        scales = (1, *_SCALES) if image.mode == "F" else _SCALES
        full = next((scale for scale in scales if values.max() <= scale), scales[-1])
    return Image.fromarray(np.rint(np.minimum(values / full, 1) * 255).astype(np.uint8), "L")
