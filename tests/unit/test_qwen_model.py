"""Qwen2.5-VL and Qwen3-VL by themselves: on a mesh, in bfloat16, with and without images."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from tiny_qwen import TINY_QWEN, TINY_QWEN3, tiny_qwen_state

from gotr1_jax.images.qwen import QwenImage
from gotr1_jax.images.qwen_pack import RowShape, mrope_positions, pack_images, unit_places
from gotr1_jax.models.config import DecoderConfig
from gotr1_jax.models.decoder import mrope_tables, rope_tables
from gotr1_jax.models.qwen_config import QwenConfig
from gotr1_jax.models.qwen_vision import vision_rope
from gotr1_jax.models.qwen_vl import QwenVL, abstract_qwen
from gotr1_jax.parallel.mesh import make_mesh, row_sharding
from gotr1_jax.parallel.sharding import state_shardings

GRIDS = ((2, 3), (4, 5), (1, 1), (5, 4))
IMAGE = 260
BOTH = pytest.mark.parametrize("config", [TINY_QWEN, TINY_QWEN3], ids=["2.5", "3"])


def inputs(config: QwenConfig) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
    """Four images in four rows of patches, and four rows of text about one each."""
    rng = np.random.default_rng(0)
    geometry = config.vision.geometry
    values, side = 3 * geometry.patch_size**2, geometry.unit_size
    images = [
        QwenImage(
            rng.standard_normal((4 * h * w, values), np.float32), (h, w), (side * h, side * w)
        )
        for h, w in GRIDS
    ]
    packed = pack_images(images, geometry, RowShape(80, 4 if geometry.window_size else 0), 4)
    ids = rng.integers(0, 256, (4, 24))
    for b, (h, w) in enumerate(GRIDS):
        ids[b, 2 : 2 + h * w] = IMAGE
    places = unit_places(ids == IMAGE, [[b] for b in range(4)], packed)
    return packed.batch, ids, places, mrope_positions(ids == IMAGE, [[g] for g in GRIDS])


def logits_of(model: QwenVL, batch: Any, ids: Any, places: Any, positions: Any) -> jax.Array:
    x = model.embed(ids, places, model.embed_images(batch))
    return model.logits(model.hidden(x, positions))


@BOTH
def test_a_mesh_changes_nothing(config: QwenConfig) -> None:
    graphdef, _ = nnx.split(abstract_qwen(config))
    state = tiny_qwen_state(config)
    batch, ids, places, positions = inputs(config)

    def run(state: Any, *arrays: Any) -> jax.Array:
        return logits_of(nnx.merge(graphdef, state), *arrays)

    alone = jax.jit(run)(state, batch, ids, places, positions)
    mesh = make_mesh(2, 2, 2)
    by_row = row_sharding(mesh)
    by_second = NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp")))
    spread = jax.device_put(
        (state, batch, ids, places, positions),
        (
            state_shardings(state, mesh), jax.tree.map(lambda _: by_row, batch), by_row, by_row,
            by_second,
        ),
    )  # fmt: skip
    together = jax.jit(run)(*spread)
    assert len(together.sharding.device_set) == 8
    np.testing.assert_allclose(together, alone, atol=1e-4)


@BOTH
def test_bfloat16_activations(config: QwenConfig) -> None:
    state = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny_qwen_state(config))
    batch, ids, places, positions = inputs(config)

    def run(dtype: Any, state: Any) -> jax.Array:
        abstract = abstract_qwen(config, dtype=dtype, param_dtype=jnp.bfloat16)
        model = nnx.merge(nnx.split(abstract)[0], state)
        assert jax.eval_shape(model.embed_images, batch).dtype == dtype
        return logits_of(model, batch, ids, places, positions)

    low, high = (jax.jit(run, static_argnums=0)(d, state) for d in (jnp.bfloat16, jnp.float32))
    assert low.dtype == jnp.float32
    assert jnp.abs(low - high).mean() < 0.05 * jnp.abs(high).mean()


def test_rows_of_text_need_one_position() -> None:
    model = nnx.merge(nnx.split(abstract_qwen(TINY_QWEN))[0], tiny_qwen_state())
    x = model.embed(jnp.arange(7)[None])
    plain = jnp.arange(7)[None]
    three = jnp.broadcast_to(plain, (3, 1, 7))
    one, other = jax.jit(lambda x: (model.hidden(x, plain), model.hidden(x, three)))(x)
    np.testing.assert_array_equal(one, other)


def test_each_rotary_pair_turns_with_its_own_position() -> None:
    positions = jnp.array([[[5]], [[7]], [[11]]])  # time, height, width of one token
    cos, sin = mrope_tables(positions, TINY_QWEN.text)
    angle = np.array([5 * 1.0, 7 * 0.1, 11 * 0.01, 11 * 0.001])
    np.testing.assert_allclose(cos[0, 0], np.cos(angle), atol=1e-6)
    np.testing.assert_allclose(sin[0, 0], np.sin(angle), atol=1e-6)
    np.testing.assert_array_equal(rope_tables(positions[0], 8, 1e4)[0].shape, cos.shape)
    with pytest.raises(ValueError, match="does not share 4 rotary pairs"):
        DecoderConfig(8, 8, 8, 1, 1, 1, 8, mrope_section=(1, 1, 1))
    # By turns; time has what is left.
    cos, _ = mrope_tables(positions, TINY_QWEN3.text)
    turns = np.array([5, 7, 11, 5, 7, 11, 5, 5])
    np.testing.assert_allclose(cos[0, 0], np.cos(turns * 1e4 ** -(np.arange(8) / 8)), atol=1e-6)
    with pytest.raises(ValueError, match="too few turns"):
        DecoderConfig(8, 8, 8, 1, 1, 1, 8, mrope_section=(1, 1, 2), mrope_interleaved=True)


def test_rotary_tables_of_patches() -> None:
    # Row 3, column 5; heads of 16: 8 pairs.
    cos, sin = vision_rope(TINY_QWEN.vision, jnp.array([[[3, 5]]]))
    frequency = 10000.0 ** -np.array([0, 0.25, 0.5, 0.75])
    angle = np.concatenate([3 * frequency, 5 * frequency])
    np.testing.assert_allclose(cos[0, 0], np.cos(angle), atol=1e-6)
    np.testing.assert_allclose(sin[0, 0], np.sin(angle), atol=1e-6)
