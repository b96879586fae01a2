"""Images through the vision tower, once each, into one array of vectors for all questions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from gotr1_jax.images.qwen import Geometry, QwenImage, count_windows
from gotr1_jax.images.qwen_pack import Grid, PatchBatch, RowShape, assign_rows, pack_images
from gotr1_jax.models.qwen3_vision import Qwen3VisionTower
from gotr1_jax.models.qwen_vision import QwenVisionTower
from gotr1_jax.parallel.mesh import replicated, row_multiple, row_sharding
from gotr1_jax.vlm_engine.packing import ProgramLimits, next_bucket


@dataclass(frozen=True)
class VisionBatch:
    """Images of one program: their names, the shape of a row, and the number of rows."""

    names: tuple[str, ...]
    shape: RowShape
    rows: int


class VisionRunner:
    """The vision tower's programs: images in, vectors out, one array for all of them.

    Args:
      tower: graphdef of the split vision tower.
      geometry: of its patches.
      width: of its vectors.
      dtype: of its activations.
      patches: of one program.
      capacity: vectors that are kept, rounded up to multiples of it.
      mesh: rows are split over its axes `data` and `fsdp`.
    """

    def __init__(
        self, tower: nnx.GraphDef, geometry: Geometry, width: int, dtype: Any, patches: int,
        capacity: int, mesh: Mesh | None,
    ) -> None:  # fmt: skip
        self._geometry, self._width, self._dtype = geometry, width, dtype
        self._patches, self._capacity, self._mesh = patches, capacity, mesh
        self._multiple = 1 if mesh is None else row_multiple(mesh)

        def encode(state: nnx.State, batch: PatchBatch) -> jax.Array:
            module = nnx.merge(tower, state)
            assert isinstance(module, QwenVisionTower | Qwen3VisionTower)
            return module(batch, dtype).reshape(-1, width)

        whole = None if mesh is None else replicated(mesh)
        self.encode_batch = jax.jit(encode, out_shardings=whole)
        self._write = jax.jit(_write, donate_argnums=0, out_shardings=whole)
        self._empty = jax.jit(
            partial(jnp.zeros, dtype=dtype), static_argnums=0, out_shardings=whole
        )

    def encode_images(
        self, state: nnx.State, grids: Mapping[str, Grid], read: Callable[[str], QwenImage]
    ) -> tuple[jax.Array, dict[str, int]]:
        """All images' vectors (U,D), and the index of each one's first.

        read: makes the patches of an image, called once a name, batch by batch.
        """
        batches = list(self.batches(grids))
        per_unit = self._geometry.unit_patches
        sizes = [batch.rows * batch.shape.patches // per_unit for batch in batches]
        total = max(1, -(-sum(sizes) // self._capacity)) * self._capacity
        vectors, start = self._empty((total, self._width)), 0
        starts: dict[str, int] = {}
        for batch, size in zip(batches, sizes):
            images = [read(name) for name in batch.names]
            packed = pack_images(images, self._geometry, batch.shape, batch.rows)
            there = packed.batch if self._mesh is None else self._spread(packed.batch)
            vectors = self._write(vectors, self.encode_batch(state, there), jnp.int32(start))
            starts |= {n: start + int(s) for n, s in zip(batch.names, packed.starts_P)}
            start += size
        return vectors, starts

    def batches(self, grids: Mapping[str, Grid]) -> Iterator[VisionBatch]:
        """Images of like sizes together, the larger ones first."""
        names = sorted(grids, key=lambda n: (-grids[n][0] * grids[n][1], grids[n]))
        while names:
            shape = self._row_shape(grids[names[0]])
            limits = ProgramLimits(1 << 30, self._patches, self._multiple)
            most = max(self._multiple, limits.max_rows(shape.patches))
            fit = [n for n in names if self._belongs(grids[n], shape)]
            assigned = assign_rows([grids[n] for n in fit], self._geometry, shape)
            chosen = {name: row for name, row in zip(fit, assigned) if row < most}
            number = min(most, limits.pad_rows(max(chosen.values()) + 1))
            yield VisionBatch(tuple(chosen), shape, number)
            names = [n for n in names if n not in chosen]

    def _belongs(self, grid: Grid, shape: RowShape) -> bool:
        """Whether an image goes into rows of a shape; a much smaller one waits for its own."""
        patches = grid[0] * grid[1] * self._geometry.unit_patches
        windows = count_windows(grid, self._geometry)
        least = shape.patches if shape.patches > _row_patches(1, self._geometry) else 0
        return windows <= shape.windows and 5 * least <= 8 * patches

    def _row_shape(self, grid: Grid) -> RowShape:
        patches = _row_patches(grid[0] * grid[1], self._geometry)
        windows = count_windows(grid, self._geometry)
        return RowShape(patches, next_bucket(windows, 4) if windows else 0)

    def _spread(self, batch: PatchBatch) -> PatchBatch:
        assert self._mesh is not None
        return jax.device_put(batch, row_sharding(self._mesh))


def _row_patches(units: int, geometry: Geometry) -> int:
    """Patches of the smallest row for an image of so many units."""
    return next_bucket(units) * geometry.unit_patches


def _write(vectors_UD: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice(vectors_UD, new.astype(vectors_UD.dtype), (start, 0))
