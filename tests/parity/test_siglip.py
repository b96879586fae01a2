"""The understanding side against the arrays that the reference implementation computed."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from gotr1_jax.convert.checkpoint import load_checkpoint


def test_golden_features(janus_a: Path, shared: Path) -> None:
    golden = np.load(shared / "goldens" / "janus_a.npz")
    understanding = load_checkpoint(janus_a, parts=("understanding",)).understanding_module()
    pixels = golden["vision.pixels_48"].transpose(0, 2, 3, 1)
    pixels = pixels.repeat(8, axis=1).repeat(8, axis=2)
    features = np.asarray(understanding(jnp.asarray(pixels)))
    assert features.shape == (1, 576, 256)
    for name, ours in (
        ("first", features[:, :8]),
        ("last", features[:, -8:]),
        ("mean", features.mean(axis=1)),
    ):
        key = next(k for k in golden if k.startswith("vision.features") and name in k)
        np.testing.assert_allclose(ours, golden[key], atol=2e-4, err_msg=key)
