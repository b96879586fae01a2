"""Preprocessing against `transformers`' image processor on Pillow, patch by patch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_qwen import write_qwen_files

from gotr1_jax.convert.qwen_vl import read_preprocessing
from gotr1_jax.images.qwen import Geometry, read_image


def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    made = [
        Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8))
        for h, w in ((384, 384), (64, 64), (300, 57), (31, 400), (700, 900), (20, 20))
    ]
    gray = Image.fromarray(rng.integers(0, 256, (90, 120), np.uint8))
    clear = Image.fromarray(rng.integers(0, 256, (90, 120, 4), np.uint8))
    return [*made, gray, clear, made[0].quantize(16)]


@pytest.mark.parametrize("image", images(), ids=lambda i: f"{i.mode} {i.width}x{i.height}")
def test_patches_equal_transformers(image: Image.Image, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
        Qwen2VLImageProcessorPil,
    )

    write_qwen_files(tmp_path)
    settings = read_preprocessing(tmp_path, Geometry())
    theirs = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)([image], return_tensors="np")
    ours = read_image(image, settings)
    h, w = ours.grid
    assert theirs["image_grid_thw"].tolist() == [[1, 2 * h, 2 * w]]
    assert ours.size == (28 * h, 28 * w)
    frames = theirs["pixel_values"].reshape(len(ours.patches_NE), 3, 2, 14 * 14)
    for frame in (0, 1):
        np.testing.assert_array_equal(
            ours.patches_NE, frames[:, :, frame].reshape(ours.patches_NE.shape)
        )


def test_settings_saved_by_transformers_are_read(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
        Qwen2VLImageProcessorPil,
    )

    write_qwen_files(tmp_path / "released")
    processor = Qwen2VLImageProcessorPil.from_pretrained(tmp_path / "released")
    processor.save_pretrained(tmp_path / "saved")
    assert "min_pixels" not in (tmp_path / "saved" / "preprocessor_config.json").read_text()
    released, saved = (
        read_preprocessing(tmp_path / name, Geometry()) for name in ("released", "saved")
    )
    assert saved == released
