"""The one reader of images: every depth, mode and orientation as 8-bit RGB."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gotr1_jax.errors import InputError
from gotr1_jax.images import decode_image, open_image

RAMP = np.linspace(0, 1, 64).reshape(8, 8)
GRAY = np.rint(RAMP * 255)


@pytest.mark.parametrize(
    "name, values",
    [
        ("a.png", np.rint(RAMP * 65535).astype(np.uint16)),
        ("dark.png", np.rint(RAMP * 65535 / 300).astype(np.uint16)),
        ("a.tif", np.rint(RAMP * 65535).astype(np.uint16)),
        ("int.tif", np.rint(RAMP * 65535).astype(np.int32)),
        ("int8.tif", np.rint(RAMP * 255).astype(np.int32)),
        ("float.tif", RAMP.astype(np.float32)),
        ("float255.tif", (RAMP * 255).astype(np.float32)),
    ],
)
def test_deep_gray_is_scaled(tmp_path: Path, name: str, values: np.ndarray) -> None:
    """`convert("RGB")` alone clips all above 255: a 16-bit image becomes white."""
    Image.fromarray(values).save(tmp_path / name)
    got = np.asarray(open_image(tmp_path / name))
    assert got.dtype == np.uint8 and got.shape == (8, 8, 3) and (got == got[..., :1]).all()
    wanted = GRAY if name != "dark.png" else np.rint(GRAY / 300)
    assert np.abs(got[..., 0] - wanted).max() <= 1


def test_modes(tmp_path: Path) -> None:
    color = Image.fromarray(np.full((8, 6, 3), (200, 100, 50), np.uint8))
    palette = color.quantize(4)
    palette.info["transparency"] = b"\x80\xff\xff\xff"
    for image, ending in ((color, "png"), (palette, "png"), (color.convert("RGBA"), "webp")):
        image.save(tmp_path / f"x.{ending}", lossless=True)
        got = np.asarray(open_image(tmp_path / f"x.{ending}")).astype(int)
        assert np.abs(got - (200, 100, 50)).max() <= 2
    color.convert("CMYK").save(tmp_path / "x.tif")
    assert np.abs(np.asarray(open_image(tmp_path / "x.tif")).astype(int) - (200, 100, 50)).max() < 3
    # Of an animation the first frame.
    other = Image.new("RGB", (6, 8))
    color.save(tmp_path / "x.gif", save_all=True, append_images=[other])
    assert np.asarray(open_image(tmp_path / "x.gif"))[0, 0, 0] > 150


def test_orientation_also_of_deep_images(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    values = np.rint(RAMP[:4] * 65535).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png", exif=exif)
    got = np.asarray(open_image(tmp_path / "x.png"))
    np.testing.assert_array_equal(got[..., 0], np.rot90(np.rint(values / 257), -1))
    Image.new("RGB", (4, 2)).save(tmp_path / "bad.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert open_image(tmp_path / "bad.jpg").size == (4, 2)


def test_what_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty.png").touch()
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50, 3), np.uint8)).save(
        whole, "PNG"
    )
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[:2000])
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "nan.tif")
    for name, message in (
        ("fifo", "FIFO"), ("empty.png", "empty file"), ("cut.png", "cannot be read"),
        ("nan.tif", "not finite"), ("none.png", "No such file"), ("x" * 300, "too long"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            open_image(tmp_path / name)
    with pytest.raises(InputError, match="row 3 is not an image"):
        decode_image(io.BytesIO(b"text"), "row 3")
