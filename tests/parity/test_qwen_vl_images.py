"""Preprocessing against `transformers`' image processor on Pillow, patch by patch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_qwen import TINY_QWEN3, write_qwen_files

from gotr1_jax.convert.qwen_vl import read_preprocessing
from gotr1_jax.images.qwen import Geometry, read_image

SIZES = (
    (384, 384), (64, 64), (300, 57), (31, 400), (700, 900), (20, 20), (1, 1), (1, 199), (48, 80),
    (16, 17), (33, 31), (512, 100), (95, 97), (401, 399), (641, 11), (240, 320), (2, 300),
)  # fmt: skip
GEOMETRIES = (Geometry(), TINY_QWEN3.vision.geometry)


def images() -> list[Image.Image]:
    """20 images of odd sizes and modes."""
    rng = np.random.default_rng(0)
    made = [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for h, w in SIZES]
    gray = Image.fromarray(rng.integers(0, 256, (90, 120), np.uint8))
    clear = Image.fromarray(rng.integers(0, 256, (90, 120, 4), np.uint8))
    return [*made, gray, clear, made[0].quantize(16)]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=["2.5", "3"])
@pytest.mark.parametrize("image", images(), ids=lambda i: f"{i.mode} {i.width}x{i.height}")
def test_patches_equal_transformers(image: Image.Image, geometry: Geometry, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
        Qwen2VLImageProcessorPil,
    )

    write_qwen_files(tmp_path, geometry=geometry)
    settings = read_preprocessing(tmp_path, geometry)
    theirs = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)([image], return_tensors="np")
    ours = read_image(image, settings)
    h, w = ours.grid
    assert theirs["image_grid_thw"].tolist() == [[1, 2 * h, 2 * w]]
    assert ours.size == (geometry.unit_size * h, geometry.unit_size * w)
    frames = theirs["pixel_values"].reshape(len(ours.patches_NE), 3, 2, -1)
    for frame in (0, 1):
        np.testing.assert_array_equal(
            ours.patches_NE, frames[:, :, frame].reshape(ours.patches_NE.shape)
        )


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=["2.5", "3"])
def test_settings_saved_by_transformers_are_read(geometry: Geometry, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
        Qwen2VLImageProcessorPil,
    )

    write_qwen_files(tmp_path / "released", geometry=geometry)
    processor = Qwen2VLImageProcessorPil.from_pretrained(tmp_path / "released")
    processor.save_pretrained(tmp_path / "saved")
    assert "min_pixels" not in (tmp_path / "saved" / "preprocessor_config.json").read_text()
    released, saved = (
        read_preprocessing(tmp_path / name, geometry) for name in ("released", "saved")
    )
    assert saved == released
