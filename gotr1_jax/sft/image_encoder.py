"""The image tokenizer's encoder on the devices of this process."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx

from gotr1_jax.models.config import VQConfig
from gotr1_jax.models.vq import abstract_vq, image_encoder
from gotr1_jax.parallel.mesh import make_mesh, replicated, row_sharding


class ImageEncoder:
    """Pixels -> image tokens, rows split over devices."""

    def __init__(
        self, config: VQConfig, state: nnx.State, devices: Sequence[jax.Device] | None = None
    ) -> None:
        """devices: of this process; None: all of them. Other processes take no part."""
        devices = list(jax.local_devices() if devices is None else devices)
        self.devices = len(devices)
        mesh = make_mesh(devices=devices)
        self._rows = row_sharding(mesh)
        self._state = jax.device_put(state, replicated(mesh))
        self._encode = image_encoder(nnx.split(abstract_vq(config))[0])

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, 3) -> int32 (B, U); each B is compiled once."""
        fill = -len(pixels) % self.devices
        full = np.concatenate([pixels, np.repeat(pixels[-1:], fill, axis=0)])
        ids = self._encode(self._state, jax.device_put(full, self._rows))
        return np.asarray(ids, np.int32)[: len(pixels)]


def state_digest(state: nnx.State) -> str:
    """SHA-256 over the paths and float32 values of a state's arrays: identifies the weights."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(leaf, np.float32).tobytes())
    return digest.hexdigest()
