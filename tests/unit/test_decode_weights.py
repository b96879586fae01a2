"""Adapters in decoding: beside the weights, for any targets, rounded as in training."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gotr1_jax.decoding.forward import adapted, prefill
from gotr1_jax.decoding.weights import (
    AdapterWeights,
    DecodeWeights,
    decode_weights,
    decode_weights_shardings,
)
from gotr1_jax.models.config import DecoderConfig, LoraConfig
from gotr1_jax.models.decoder import Decoder
from gotr1_jax.models.layers import Linear
from gotr1_jax.parallel.mesh import make_mesh

CONFIG = DecoderConfig(
    vocab_size=12, hidden_size=16, mlp_size=24, num_layers=2, num_heads=4, num_kv_heads=2,
    head_dim=4, qkv_bias=True,
)  # fmt: skip
ALL = LoraConfig().targets
SUBSETS = [*((name,) for name in ALL), ("q", "v"), ("k", "o", "up"), ALL]


def decoder_of(targets: tuple[str, ...], size: float = 0.3) -> Decoder:
    """bfloat16 weights, and adapters whose B has the given size."""
    lora = LoraConfig(rank=2, alpha=3.0, targets=targets)
    graphdef, shapes = nnx.split(
        nnx.eval_shape(
            lambda: Decoder(CONFIG, rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16, lora=lora)
        )
    )
    rng = np.random.default_rng(1)

    def draw(path: tuple, x: jax.ShapeDtypeStruct) -> jax.Array:
        scale = size if "lora_b" in jax.tree_util.keystr(path) else 0.25
        return jnp.asarray(scale * rng.standard_normal(x.shape), x.dtype)

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(draw, shapes))


def weights_of(decoder: Decoder, dtype: jnp.dtype) -> DecodeWeights:
    graphdef, state = nnx.split(decoder)
    return jax.jit(lambda s: decode_weights(nnx.merge(graphdef, s), dtype))(state)


def matrices(params: DecodeWeights, i: int) -> dict[str, np.ndarray]:
    """(in, out) of each linear layer as the loop computes it, the sum in float64."""

    def total(weight: jax.Array, lora: AdapterWeights | None, inputs: int) -> np.ndarray:
        wide = np.asarray(weight, np.float64)
        if lora is not None:
            a, b = (np.asarray(x, np.float64) for x in (lora.a, lora.b))
            wide = wide + lora.scale * np.tensordot(b, a, axes=1)
        return wide.reshape(*wide.shape[: wide.ndim - inputs], -1)

    w, g, D = params.layers[i], CONFIG.num_heads // CONFIG.num_kv_heads, CONFIG.hidden_size
    qkv = total(w.qkv_KfhD, w.qkv_lora, 1)
    gate, up = total(w.gate_up_2FD, w.gate_up_lora, 1)
    return {
        "q": qkv[:, :g].reshape(-1, D).T,
        "k": qkv[:, g].reshape(-1, D).T,
        "v": qkv[:, g + 1].reshape(-1, D).T,
        "o": total(w.out_DKgh, w.out_lora, 3).T,
        "gate": gate.T,
        "up": up.T,
        "down": total(w.down_DF, w.down_lora, 1).T,
    }


def adapter_product(layer: Linear, i: int) -> np.ndarray:
    if layer.lora_a is None or layer.lora_b is None:
        return np.zeros(())
    return layer.lora_scale * (np.float64(layer.lora_a[i]) @ np.float64(layer.lora_b[i]))


@pytest.mark.parametrize("targets", SUBSETS, ids=",".join)
def test_any_targets_are_what_is_trained(targets) -> None:
    decoder = decoder_of(targets)
    params = weights_of(decoder, jnp.float32)
    for name, matrix in matrices(params, 1).items():
        layer = getattr(decoder.layers, name)
        wanted = np.float64(layer.kernel[1]) + adapter_product(layer, 1)
        np.testing.assert_allclose(matrix, wanted, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("targets", [("k", "o", "up"), ALL], ids=",".join)
def test_decoding_equals_the_forward_of_training(targets) -> None:
    """bfloat16 weights, float32 activations."""
    decoder = decoder_of(targets)
    graphdef, state = nnx.split(decoder)
    x_BSD = jax.random.normal(jax.random.key(2), (2, 5, CONFIG.hidden_size))

    @jax.jit
    def both(state: nnx.State) -> tuple[jax.Array, jax.Array]:
        decoder = nnx.merge(graphdef, state)
        params = decode_weights(decoder, jnp.float32)
        return decoder(x_BSD, jnp.arange(5)[None]), prefill(params, CONFIG, x_BSD)[0]

    trained, decoded = both(state)
    # With adapters merged into bfloat16 they would differ by 1e-2.
    np.testing.assert_allclose(decoded, trained, atol=5e-6)


def test_the_first_changes_are_not_lost_in_bfloat16() -> None:
    """Adapters of the size after a step: their sum with bfloat16 weights would not change most."""
    decoder = decoder_of(ALL, size=1e-4)
    params, rest = (decode_weights(d, jnp.bfloat16) for d in (decoder, decoder_of(ALL, size=0.0)))
    for name, matrix in matrices(params, 1).items():
        change = matrix - matrices(rest, 1)[name]
        wanted = adapter_product(getattr(decoder.layers, name), 1)
        assert np.abs(change - wanted).max() < 0.02 * np.abs(wanted).max(), name
        kernel = getattr(decoder.layers, name).kernel[1]
        rounded = np.float64(jnp.bfloat16(kernel + jnp.float32(wanted))) - np.float64(kernel)
        assert np.mean(rounded == 0) > 0.5, "the case is one that a sum would lose"


def test_without_adapters_there_is_nothing_beside_the_weights() -> None:
    decoder = decoder_of(())
    layer = jax.eval_shape(partial(decode_weights, dtype=jnp.float32), decoder).layers[0]
    lora = (layer.qkv_lora, layer.out_lora, layer.gate_up_lora, layer.down_lora)
    assert lora == (None,) * 4 and len(jax.tree.leaves(layer)) == 7


def test_thin_matrices_are_sharded_as_the_matrices_beside_them() -> None:
    mesh = make_mesh(1, 2, 2, devices=jax.devices()[:4])
    shapes = jax.eval_shape(partial(decode_weights, dtype=jnp.bfloat16), decoder_of(ALL))
    places = decode_weights_shardings(shapes, mesh).layers[0]
    split = {
        name: tuple(tuple(x.spec) for x in (lora.a, lora.b))
        for name in ("qkv_lora", "out_lora", "gate_up_lora", "down_lora")
        if (lora := getattr(places, name)) is not None
    }
    assert split == {
        "qkv_lora": ((None, None), ("tensor", None, None, None)),
        "out_lora": ((None, "tensor", None, None), (None, None)),
        "gate_up_lora": ((None, None), (None, "tensor", None)),
        "down_lora": ((None, "tensor"), (None, None)),
    }


def test_an_adapter_is_no_part_of_its_weights_product() -> None:
    """Where they share their input, XLA on GPUs would concatenate both weights at every token."""
    x, weight = jnp.zeros((2, 16)), jnp.zeros((24, 16))
    lora = AdapterWeights(jnp.zeros((4, 16)), jnp.zeros((24, 4)), jnp.ones(()))
    program = jax.jit(adapted).trace(x, weight, lora).lower(lowering_platforms=("cuda",))
    lines = program.as_text().splitlines()
    (barrier,) = (line for line in lines if "optimization_barrier" in line)
    name = barrier.split("=")[0].strip()
    inputs = [line for line in lines if "dot_general" in line]
    assert len(inputs) == 3 and sum(f"{name}, " in line for line in inputs) == 1
