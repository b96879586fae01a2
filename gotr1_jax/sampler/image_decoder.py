"""Image tokens to pixels, on the devices of this process."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from gotr1_jax.models.vq import VQModel, image_decoder
from gotr1_jax.parallel.mesh import data_parallel_mesh, replicated
from gotr1_jax.parallel.placement import put_rows


def round_up_to_devices(batch: int, mesh: Mesh) -> int:
    """`batch` rounded up to a multiple of the mesh's devices."""
    return -(-batch // mesh.size) * mesh.size


class ImageDecoder:
    """Image ids -> uint8 images, a batch at a time, sharded over this process's devices."""

    def __init__(self, vq: VQModel, grid: int, batch: int, mesh: Mesh) -> None:
        """mesh: devices of this process; batch: rounded up to a multiple of their number."""
        graphdef, state = nnx.split(vq)
        self._mesh = data_parallel_mesh(mesh)
        self._state = jax.device_put(state, replicated(self._mesh))
        self._batch = round_up_to_devices(batch, mesh)
        self._decode = image_decoder(graphdef, grid)

    def __call__(self, ids_BU: np.ndarray) -> list[np.ndarray]:
        """int32 (B,U) -> B images, uint8 (H,W,3)."""
        return self.begin(ids_BU)()

    def begin(self, ids_BU: np.ndarray) -> Callable[[], list[np.ndarray]]:
        """As a call, whose programs are dispatched; the function, which any thread may call, waits
        for the images."""
        parts: list[tuple[jax.Array, int]] = []
        for start in range(0, len(ids_BU), self._batch):
            part = ids_BU[start : start + self._batch]
            # The last batch is padded, so that there is one compilation.
            full = np.concatenate([part, np.repeat(part[-1:], self._batch - len(part), axis=0)])
            pixels = self._decode(self._state, put_rows(full, self._mesh))
            parts.append((pixels, len(part)))
        return lambda: [image for pixels, n in parts for image in np.asarray(pixels)[:n]]
