"""A KV cache in int8: what is stored, what attention reads, and the samples that come of it."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.layout import Layout
from jax.sharding import NamedSharding, PartitionSpec
from test_sampler import (
    CONFIG,
    KEYS,
    PROMPTS,
    SETTINGS,
    SPECIALS,
    policy,
    sample,
    sampler_of,
    teacher_forced,
)

from gotr1_jax.decoding import bucket_loop
from gotr1_jax.decoding.kv_cache import (
    KVCache,
    cast_cache,
    empty_cache,
    grow_cache,
    write_slot,
    write_slots,
)
from gotr1_jax.errors import InputError
from gotr1_jax.parallel.mesh import make_mesh
from gotr1_jax.sampler.config import SamplerConfig
from gotr1_jax.sampler.sampler import Rollout, Sampler

__all__ = ["policy"]  # fixture

INT8 = jnp.dtype(jnp.int8)
ROUNDED = replace(SETTINGS, cache_dtype="int8")
DECODER = CONFIG.decoder
N, K, S, H = 3, DECODER.num_kv_heads, 6, DECODER.head_dim


def drawn_cache() -> KVCache:
    """Floats of unlike sizes, one slot all zeros."""
    rng = np.random.default_rng(0)
    layers = []
    for _ in range(2 * DECODER.num_layers):
        x = rng.normal(size=(N, K, S, H)) * 10.0 ** rng.integers(-3, 3, (N, K, S, 1))
        x[0, 0, 0] = 0
        layers.append(jnp.asarray(x, jnp.float32))
    keys = tuple(x.transpose(0, 1, 3, 2) for x in layers[::2])
    return KVCache(keys, tuple(layers[1::2]))


def floats_of(cache: KVCache) -> KVCache:
    """What a cache in int8 stands for."""
    keys = tuple(k * s[:, :, None] for k, s in zip(cache.k_NKhS, cache.k_scale_NKS))
    values = tuple(v * s[..., None] for v, s in zip(cache.v_NKSh, cache.v_scale_NKS))
    return KVCache(keys, values)


def assert_equal(one: KVCache, two: KVCache) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_numbers_are_within_half_a_step_and_attention_reads_them() -> None:
    cache = drawn_cache()
    rounded = cast_cache(cache, INT8)
    assert (
        cast_cache(rounded, INT8) is rounded and cast_cache(cache, jnp.dtype(jnp.float32)) is cache
    )
    meant = floats_of(rounded)
    for layer in range(DECODER.num_layers):
        step = jnp.abs(cache.v_NKSh[layer]).max(-1, keepdims=True) / 127
        worst = jnp.abs(cache.v_NKSh[layer] - meant.v_NKSh[layer]) / jnp.maximum(step, 1e-30)
        assert 0.4 < float(worst.max()) < 0.501
        queries = jax.random.normal(jax.random.key(layer), (2 * N, K, 2, H))
        weights = jax.nn.softmax(jax.random.normal(jax.random.key(9), (2 * N, K, 2, S)))
        for found, wanted in (
            (rounded.scores(layer, queries), meant.scores(layer, queries)),
            (rounded.values(layer, weights), meant.values(layer, weights)),
        ):
            assert found.dtype == jnp.float32
            np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    cache = drawn_cache()
    broken = KVCache(tuple(k.at[1, 0, 2, 3].set(bad) for k in cache.k_NKhS), cache.v_NKSh)
    scores = cast_cache(broken, INT8).scores(0, jnp.ones((N, K, 1, H)))
    assert np.argwhere(~np.isfinite(scores)).tolist() == [[1, 0, 0, 3]]


def test_slots_are_written_one_by_one_at_once_and_after_growth() -> None:
    """All ways give the cache that rounding the whole gives."""
    cache = drawn_cache()
    wanted = cast_cache(cache, INT8)
    found = empty_cache(DECODER, N, 2, INT8)
    for slot in range(S):
        if slot == 2:
            found = grow_cache(found, S)
        for i in range(DECODER.num_layers):
            k, v = cache.k_NKhS[i][..., slot], cache.v_NKSh[i][:, :, slot]
            found = write_slot(found, i, jnp.int32(slot), k, v)
    assert_equal(found, wanted)

    at_once = empty_cache(DECODER, N, S + 2, INT8)
    first_N = jnp.array([0, 2, 1])  # every row from a slot of its own on
    for i in range(DECODER.num_layers):
        k, v = cache.k_NKhS[i].transpose(0, 3, 1, 2), cache.v_NKSh[i].swapaxes(1, 2)
        at_once = write_slots(at_once, i, first_N, k, v)
    for row, first in enumerate(first_N.tolist()):
        here = slice(first, first + S)
        np.testing.assert_array_equal(at_once.k_NKhS[1][row][..., here], wanted.k_NKhS[1][row])
        np.testing.assert_array_equal(
            at_once.v_scale_NKS[1][row][:, here], wanted.v_scale_NKS[1][row]
        )


def test_bytes_are_those_of_the_integers_and_their_scales() -> None:
    def size(dtype: jnp.dtype) -> int:
        cache = jax.eval_shape(lambda: empty_cache(DECODER, N, S, dtype))
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))

    assert size(INT8) * 2 * H == size(jnp.dtype(jnp.bfloat16)) * (H + 4)


def test_samples_are_scored_almost_as_in_training(policy) -> None:
    """Prompts shared by samples, padding, both branches, growth of both caches, adapters."""
    rollout = sample(policy, ROUNDED)
    sampled = rollout.rows.sampled_mask_BN
    difference = np.abs(rollout.logp_BN - teacher_forced(policy, rollout))[sampled]
    assert 1e-5 < difference.max() < 0.15
    assert difference.mean() < 0.02


def of_given_plans(policy, rollout: Rollout, settings: SamplerConfig, **more) -> Rollout:
    sampler = sampler_of(policy, settings, **more)
    params, rows = sampler.prepare(nnx.split(policy)[1]), rollout.rows
    plans, lengths = jnp.asarray(rows.plan_ids_BT), jnp.asarray(rows.plan_len_B)
    return jax.device_get(sampler.sample_images(params, PROMPTS, plans, lengths, KEYS))


def test_windows_buckets_and_devices_sample_the_same(policy) -> None:
    """What is rounded does not depend on when and where it is written."""
    rollout = sample(policy, ROUNDED)
    one = of_given_plans(policy, rollout, ROUNDED)
    mesh = make_mesh(2, 2, 2)
    for settings, more in (
        (replace(ROUNDED, image_bucket=CONFIG.num_image_tokens), {}),
        (replace(ROUNDED, speculative=4), {}),
        (ROUNDED, {"mesh": mesh}),
    ):
        other = of_given_plans(policy, rollout, settings, **more)
        np.testing.assert_array_equal(one.rows.image_ids_BU, other.rows.image_ids_BU)
        np.testing.assert_allclose(one.image_logp_BU, other.image_logp_BU, atol=1e-3)
    jax.tree.map(
        np.testing.assert_array_equal, sample(policy, ROUNDED, mesh=mesh).rows, rollout.rows
    )


def test_without_guidance_and_in_bfloat16(policy) -> None:
    """And with two images a plan, which read one cache of it."""
    low = sample(policy, replace(ROUNDED, guidance=1.0), images=2, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(low.rows.plan_ids_BT[::2], low.rows.plan_ids_BT[1::2])
    difference = np.abs(low.logp_BN - teacher_forced(policy, low))[low.rows.sampled_mask_BN]
    assert 1e-4 < difference.max() < 0.3


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(InputError, match=r"cache_dtype is 'int4'; .*int8"):
        SamplerConfig(cache_dtype="int4")  # type: ignore[arg-type]


@pytest.mark.parametrize(("devices", "stated"), [(1, True), (8, False)])
def test_one_gpu_reads_a_cache_as_it_lies(devices: int, stated: bool) -> None:
    """XLA would transpose it first; over a mesh it would gather an array whose layout is said."""
    mesh = make_mesh(1, devices, 1, jax.devices()[:devices])

    def placed(*shape: int) -> jax.ShapeDtypeStruct:
        over_rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=over_rows)

    cache = KVCache((placed(8, K, H, S),), (placed(8, K, S, H),))
    program = jax.jit(lambda cache, q: cache.values(0, cache.scores(0, q)))
    traced = program.trace(cache, placed(8, K, 1, H))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("LayoutConstraint") == (2 if stated else 0)
    assert "LayoutConstraint" not in traced.lower(lowering_platforms=("cpu",)).as_text()


@pytest.mark.parametrize("settings", [SETTINGS, ROUNDED], ids=["float32", "int8"])
def test_caches_in_a_layout_of_their_own(policy, monkeypatch, settings: SamplerConfig) -> None:
    """As on a TPU, where the compiler chooses it: here the axes are stored in reverse order."""
    wanted = sample(policy, settings)
    monkeypatch.setattr(bucket_loop, "_OWN_LAYOUTS", ("cpu",))
    monkeypatch.setattr(bucket_loop, "_layout", lambda x: Layout(tuple(reversed(range(x.ndim)))))
    sampler = Sampler(nnx.split(policy)[0], CONFIG, SPECIALS, settings)
    params = sampler.prepare(nnx.split(policy)[1])
    for _ in range(2):  # with programs compiled, and compiled before
        found = jax.device_get(sampler(params, PROMPTS, KEYS, 2))
        jax.tree.map(np.testing.assert_array_equal, found.rows, wanted.rows)
        np.testing.assert_allclose(found.logp_BN, wanted.logp_BN, atol=1e-5)
    assert len(sampler.programs.image_bucket._compiled) == 3  # one a size
