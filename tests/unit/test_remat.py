"""What the backward pass of stacked layers keeps, and where."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gotr1_jax.models.config import DecoderConfig
from gotr1_jax.models.decoder import Decoder
from gotr1_jax.parallel.mesh import make_mesh, row_sharding

L, B, S, D = 7, 2, 22, 32
CONFIG = DecoderConfig(
    vocab_size=8, hidden_size=D, mlp_size=16, num_layers=L, num_heads=4, num_kv_heads=2, head_dim=4
)


def decoder_with(remat: str) -> Decoder:
    graphdef, shapes = nnx.split(
        nnx.eval_shape(lambda: Decoder(CONFIG, rngs=nnx.Rngs(0), remat=remat))
    )
    rng = np.random.default_rng(0)
    draw = lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype)  # noqa: E731
    return nnx.merge(graphdef, jax.tree.map(draw, shapes))


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_the_inputs_of_layers_are_spread_over_tensor(remat: str) -> None:
    """With full recomputation a device keeps its rows' half of every layer's input; the gradient is
    that of one device."""
    decoder = decoder_with(remat)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((B, S, D)), jnp.float32)

    def loss(x: jax.Array) -> jax.Array:
        return (decoder(x, jnp.arange(S)[None]) ** 2 * jnp.arange(D)).sum()

    placed = jax.device_put(x, row_sharding(make_mesh(1, 2, 2, jax.devices()[:4])))
    program = jax.jit(jax.grad(loss)).lower(placed).compile()
    text = program.as_text()
    whole, half = (f"f32[{L},{B // 2},{S},{width}]" for width in (D, D // 2))
    assert (half in text, whole in text) == ((True, False) if remat == "full" else (False, True))
    np.testing.assert_allclose(program(placed), jax.jit(jax.grad(loss))(x), rtol=1e-4, atol=1e-4)
