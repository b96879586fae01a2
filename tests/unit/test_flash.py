"""Attention by kernels: the same mathematics as XLA's, who is chosen, and what a kernel refuses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from gotr1_jax.aot.flops import count_flops
from gotr1_jax.decoding.forward import prefill, prefill_after, rope_table
from gotr1_jax.decoding.kv_cache import cast_cache
from gotr1_jax.decoding.weights import decode_weights
from gotr1_jax.errors import InputError
from gotr1_jax.models import attention, flash
from gotr1_jax.models.attention import _CHOICE, choose_attention, flash_attention
from gotr1_jax.models.config import DecoderConfig
from gotr1_jax.models.decoder import Decoder, packed_attention
from gotr1_jax.models.flash import AttentionMask, KernelRefusal, cudnn_attention, splash_attention
from gotr1_jax.parallel.config import AttentionKind
from gotr1_jax.parallel.mesh import make_mesh
from gotr1_jax.trainer.logprobs import _forward_on_prefix


@contextmanager
def attention_of(kind: AttentionKind) -> Iterator[None]:
    """`choose_attention` for what is traced inside, on any platform: splash is interpreted."""
    before, _CHOICE.kind = _CHOICE.kind, kind
    try:
        yield
    finally:
        _CHOICE.kind = before


def draw(S: int, E: int, H: int, K: int, C: int, B: int = 2, dtype: str = "float32") -> Any:
    normal = np.random.default_rng(S + E).standard_normal
    shapes = ((B, S, H, C), (B, E, K, C), (B, E, K, C))
    return tuple(jnp.asarray(2 * normal(shape), dtype) for shape in shapes)


def by_xla(q: jax.Array, k: jax.Array, v: jax.Array, seen: AttentionMask) -> jax.Array:
    mask = seen.mask(q.shape[1], k.shape[1])
    return jax.nn.dot_product_attention(q, k, v, mask=mask)


def values_and_gradients(attend: Callable[..., jax.Array], q: Any, k: Any, v: Any) -> Any:
    def loss(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = attend(*arrays).astype(jnp.float32)
        return (out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum(), out

    return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)


def in_segments(S: int, E: int, lengths: tuple[int, ...]) -> tuple[Any, Any]:
    """Keys of two rows: numbers 0, 1, ... of these lengths, and -1 behind; queries are the last."""
    keys = np.full((2, E), -1, np.int32)
    for row in range(2):
        ends = np.cumsum([n + row for n in lengths])
        keys[row, : ends[-1]] = np.searchsorted(ends, np.arange(ends[-1]), "right")
    return keys[:, E - S :], keys


def behind_a_prefix(S: int, E: int) -> tuple[Any, Any]:
    """Queries see the first 20 and 57 of the keys before their own."""
    keys = (np.arange(E) >= np.array([[20], [57]])) & (np.arange(E) < E - S)
    return np.zeros((2, S), np.int32), keys.astype(np.int32)


CASES = {
    "causal, shared keys": (AttentionMask(True), (200, 200, 4, 2, 16)),
    "all keys, padded": (AttentionMask(False), (130, 140, 2, 2, 8)),
    "sequences in a row": (
        AttentionMask(True, in_segments(300, 300, (90, 150))),
        (300, 300, 2, 1, 8),
    ),
    "images in a row": (
        AttentionMask(False, in_segments(256, 256, (100, 40))),
        (256, 256, 2, 2, 8),
    ),
    "behind a prefix": (AttentionMask(True, behind_a_prefix(70, 150)), (70, 150, 4, 2, 8)),
}


@pytest.mark.parametrize("name", CASES)
def test_splash_is_the_attention_of_jax(name: str) -> None:
    """Values and gradients in float32, the kernel interpreted: to 2e-5 of the largest."""
    seen, shape = CASES[name]
    arrays = draw(*shape)
    found = values_and_gradients(lambda *a: splash_attention(*a, seen, interpret=True), *arrays)
    expected = values_and_gradients(lambda *a: by_xla(*a, seen), *arrays)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max()))


def test_rows_and_heads_lie_over_the_mesh() -> None:
    """Four devices compute what one does, and none of them more than its rows and heads."""
    seen, shape = CASES["behind a prefix"]
    q, k, v = draw(*shape)
    mesh = make_mesh(1, 2, 2, jax.devices()[:4])
    place = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
    placed = [jax.device_put(x, place) for x in (q, k, v)]
    program = jax.jit(lambda *a: splash_attention(*a, seen, interpret=True))
    text = str(program.trace(*placed).jaxpr)
    assert "f32[1,128,2,128]" in text.replace("_", "")  # a row of two, two heads of four
    np.testing.assert_allclose(program(*placed), by_xla(q, k, v, seen), atol=2e-5)


@pytest.mark.parametrize("tensor, H, K", [(2, 3, 1), (1, 2, 2)])
def test_what_does_not_divide_is_computed_everywhere(tensor: int, H: int, K: int) -> None:
    """Three rows on two shards, one kv head on two devices: no error, the same numbers."""
    q, k, v = draw(130, 130, H, K, 8, B=3)
    mesh = make_mesh(2, 1, tensor, jax.devices()[: 2 * tensor])
    placed = [jax.device_put(x, NamedSharding(mesh, PartitionSpec())) for x in (q, k, v)]
    program = jax.jit(lambda *a: splash_attention(*a, AttentionMask(True), interpret=True))
    expected = by_xla(q, k, v, AttentionMask(True))
    np.testing.assert_allclose(program(*placed), expected, atol=2e-5 * float(expected.max()))


@pytest.fixture
def cudnn_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX traces and lowers for cuDNN as on a machine that has it."""
    from jax._src.cudnn import fused_attention_stablehlo as found

    monkeypatch.setattr(found, "check_cudnn_version", lambda: 91000)


def lowered_for_cuda(seen: AttentionMask, shape: tuple[int, ...], mesh: Any = None) -> str:
    place = None
    if mesh is not None:
        place = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
    q, k, v = (
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
        for x in draw(*shape, dtype="bfloat16")
    )

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return cudnn_attention(q, k, v, seen).astype(jnp.float32).sum()

    program = jax.jit(jax.grad(loss, (0, 1, 2))).trace(q, k, v)
    return program.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.usefixtures("cudnn_found")
def test_cudnn_is_called_for_gradients_too() -> None:
    """Plain causal rows without a mask, of odd length too; all else with one mask for all heads."""
    causal = lowered_for_cuda(AttentionMask(True), (301, 301, 4, 2, 16))
    assert "@__cudnn$fmhaSoftmax(" in causal and "@__cudnn$fmhaSoftmaxBackward(" in causal
    assert "CAUSAL" in causal and "tensor<2x302x4x16xbf16>" in causal
    for name in ("sequences in a row", "images in a row", "behind a prefix"):
        seen, shape = CASES[name]
        masked = lowered_for_cuda(seen, shape)
        assert "@__cudnn$fmhaScaleBiasSoftmax(" in masked, name
        assert "@__cudnn$fmhaScaleBiasSoftmaxBackward(" in masked, name
        assert f"tensor<2x1x{shape[0]}x{shape[1]}xbf16>" in masked, name
    everything = lowered_for_cuda(AttentionMask(False), (300, 300, 2, 2, 16))
    assert "NO_MASK" in everything and "ScaleBias" not in everything
    # Odd lengths are padded, and what is added is hidden.
    assert "@__cudnn$fmhaScaleBiasSoftmax(" in lowered_for_cuda(
        AttentionMask(False), (257, 257, 2, 2, 80)
    )


@pytest.mark.usefixtures("cudnn_found")
def test_cudnn_gets_the_rows_and_heads_of_one_device() -> None:
    mesh = make_mesh(1, 2, 2, jax.devices()[:4])
    text = lowered_for_cuda(AttentionMask(True), (300, 300, 4, 2, 16), mesh)
    assert "@__cudnn$fmhaSoftmax(" in text and "(tensor<1x300x2x16xbf16>" in text


@pytest.mark.usefixtures("cudnn_found")
def test_the_mask_of_cudnn_allows_what_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments that cuDNN gets, computed by XLA instead: padding, masks and scale."""
    plain = jax.nn.dot_product_attention

    def instead(*args: Any, implementation: str, **settings: Any) -> jax.Array:
        assert implementation == "cudnn" and args[0].shape[1] % 2 == args[1].shape[1] % 2 == 0
        return plain(*args, implementation="xla", **settings)

    odd = (AttentionMask(True, behind_a_prefix(71, 150)), (71, 150, 4, 2, 8))
    cases = [*CASES.values(), odd, (AttentionMask(False), (131, 131, 2, 2, 8))]
    monkeypatch.setattr(jax.nn, "dot_product_attention", instead)
    found = [
        jax.jit(partial(cudnn_attention, seen=seen))(*draw(*shape, dtype="bfloat16"))
        for seen, shape in cases
    ]
    monkeypatch.undo()
    for (seen, shape), out in zip(cases, found, strict=True):
        expected = jax.jit(partial(by_xla, seen=seen))(*draw(*shape, dtype="bfloat16"))
        np.testing.assert_allclose(
            np.asarray(out, np.float32), np.asarray(expected, np.float32), atol=2e-2
        )


@pytest.mark.parametrize(
    "dtype, width, words",
    [
        ("float32", 16, "it takes bfloat16 and float16, not float32"),
        ("bfloat16", 12, "heads of 12 are no multiple of 8"),
        ("bfloat16", 264, "heads of 264 are no multiple of 8 up to 256"),
        ("bfloat16", 16, "cuDNN is not detected"),
    ],
)
def test_what_cudnn_refuses_is_computed_by_xla_and_said_once(
    dtype: str, width: int, words: str, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(attention._CHOICE, "used", {})
    q, k, v = draw(130, 130, 2, 2, width, dtype=dtype)
    with attention_of("cudnn"), caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert flash_attention(q, k, v, AttentionMask(True)) is None
    assert [words in line for line in caplog.messages] == [True]
    assert words in attention.attention_used()


def test_a_jax_without_splash(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.ops.tpu.splash_attention", None)
    with attention_of("splash"):
        assert flash_attention(*draw(130, 130, 2, 2, 8), AttentionMask(True)) is None
    with pytest.raises(KernelRefusal, match="this jax has none"):
        splash_attention(*draw(130, 130, 2, 2, 8), AttentionMask(True))


@pytest.mark.parametrize(
    "platform, kind, kernel",
    [
        ("cpu", "auto", "xla"), ("gpu", "auto", "cudnn"), ("cuda", "auto", "cudnn"),
        ("tpu", "auto", "splash"), ("tpu", "xla", "xla"), ("gpu", "xla", "xla"),
        ("metal", "auto", "xla"),
    ],
)  # fmt: skip
def test_who_is_chosen(
    platform: str, kind: Any, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "platform_of", lambda _: platform)
    with attention_of("auto"):
        choose_attention(kind, platform)
        q = jnp.zeros((1, 4, 2, 8))
        assert attention.kernel_for(q, 128) == kernel
        assert attention.kernel_for(q, 127) == "xla"  # less than a block


@pytest.mark.parametrize(
    "platform, kind, words",
    [
        ("cpu", "cudnn", "is cudnn, which cpu devices do not have; set auto or xla"),
        ("tpu", "cudnn", "set auto, splash or xla"),
        ("gpu", "splash", "set auto, cudnn or xla"),
    ],
)
def test_a_kernel_that_the_platform_does_not_have(platform: str, kind: Any, words: str) -> None:
    with attention_of("auto"), pytest.raises(InputError, match=words):
        choose_attention(kind, platform)


@pytest.mark.parametrize(
    "size, block", [(1, 128), (128, 128), (129, 256), (577, 640), (896, 512), (1225, 640)]
)
def test_blocks_are_large_and_pad_little(size: int, block: int) -> None:
    assert flash._block(size) == block


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    cfg = DecoderConfig(
        vocab_size=8, hidden_size=16, mlp_size=8, num_layers=1, num_heads=4, num_kv_heads=2,
        head_dim=4,
    )  # fmt: skip
    graphdef, state = nnx.split(
        nnx.eval_shape(lambda: Decoder(cfg, rngs=nnx.Rngs(0), remat="full"))
    )
    rng = np.random.default_rng(0)
    return nnx.merge(
        graphdef, jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), state)
    )


def same_by_splash(function: Callable[[Any], Any], x: jax.Array) -> None:
    """`function` of an array, its programs traced with the kernel and without."""
    with attention_of("splash"):
        program = jax.jit(function).trace(x)
        assert "pallas_call" in str(program.jaxpr)
        found = program.lower().compile()(x)
    with attention_of("xla"):
        expected = jax.jit(lambda x: function(x))(x)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max()))


def test_training_behind_the_unconditional_prefix(decoder: Decoder) -> None:
    """Values and gradients of both branches' forwards, recomputed in the backward pass."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 140, 16)), jnp.float32)
    lengths = jnp.array([40, 100])

    def both(x: jax.Array) -> jax.Array:
        positions = jnp.arange(140)[None]
        first = decoder(x, positions)
        return first[:, :40] + _forward_on_prefix(decoder, x[:1, :100], x[:, 100:], lengths)

    same_by_splash(jax.value_and_grad(lambda x: (both(x) * jnp.cos(x[:, :40])).sum()), x)


def test_prompts_and_what_follows_them(decoder: Decoder) -> None:
    """Prefill, and prefill after two caches: one in int8 that all rows share, one of every second
    row."""
    params, cfg = decode_weights(decoder, jnp.float32), decoder.cfg
    x = jnp.asarray(np.random.default_rng(1).standard_normal((4, 130, 16)), jnp.float32)
    cos, sin = rope_table(cfg, 130)

    def follow(x: jax.Array) -> Any:
        shared = cast_cache(prefill(params, cfg, x[:1])[1], jnp.dtype(jnp.int8))
        pairs = prefill(params, cfg, x[:2, :30])[1]
        before = [(shared, jnp.array([90])), (pairs, jnp.array([10, 10, 30, 30]))]
        return prefill_after(params, cfg, x[:, 100:], (cos[None, :30], sin[None, :30]), before)

    same_by_splash(follow, x)


def test_sequences_that_share_a_row(decoder: Decoder) -> None:
    x = jnp.asarray(np.random.default_rng(2).standard_normal((2, 150, 16)), jnp.float32)
    numbers, _ = in_segments(150, 150, (50, 60))
    same_by_splash(
        lambda x: decoder(x, jnp.arange(150)[None], packed_attention(jnp.asarray(numbers))), x
    )


@pytest.mark.usefixtures("cudnn_found")
def test_flops_of_kernels_are_counted() -> None:
    """Two products of all pairs forward, on one device or four; five more for a gradient."""
    product = 2.0 * 4 * 2 * 256 * 256 * 128
    place = NamedSharding(make_mesh(1, 4, 1, jax.devices()[:4]), PartitionSpec(("data", "fsdp")))
    for sharding in (None, place):
        x = jax.ShapeDtypeStruct((4, 256, 2, 128), jnp.bfloat16, sharding=sharding)
        for attend in (splash_attention, cudnn_attention):
            program = jax.jit(partial(attend, seen=AttentionMask(False)))
            assert count_flops(program.trace(x, x, x).jaxpr) == 2 * product

    def loss(q: jax.Array) -> jax.Array:
        return cudnn_attention(q, q, q, AttentionMask(True)).astype(jnp.float32).sum()

    assert count_flops(jax.jit(jax.grad(loss)).trace(x).jaxpr) == 7 * product
