"""Speculative Jacobi decoding of images: the samples of one token after the other, fewer passes."""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats
from test_sampler import (
    CONFIG,
    KEYS,
    PROMPTS,
    SETTINGS,
    SPECIALS,
    policy,
    sampler_of,
    teacher_forced,
)
from test_sampler import rollout as one_by_one
from tiny_checkpoints import TINY, write_tiny

from gotr1_jax import bench
from gotr1_jax.bench.speculative import bench_speculative
from gotr1_jax.errors import InputError
from gotr1_jax.parallel.mesh import make_mesh
from gotr1_jax.sampler.config import SamplerConfig
from gotr1_jax.sampler.sampler import Rollout, Sampler, row_keys
from gotr1_jax.sampler.token_batch import PromptBatch, TokenBatch
from gotr1_jax.trainer.logprobs import token_logps

__all__ = ["one_by_one", "policy"]  # fixtures

U = CONFIG.num_image_tokens


def sample_images(policy, rows: TokenBatch, settings: SamplerConfig, **more) -> Rollout:
    """Images after the plans of `rows`."""
    sampler = sampler_of(policy, settings, **more)
    params, plans = sampler.prepare(nnx.split(policy)[1]), jnp.asarray(rows.plan_ids_BT)
    return jax.device_get(
        sampler.sample_images(params, PROMPTS, plans, jnp.asarray(rows.plan_len_B), KEYS)
    )


def assert_same_images(one: Rollout, two: Rollout) -> None:
    np.testing.assert_array_equal(one.rows.image_ids_BU, two.rows.image_ids_BU)
    np.testing.assert_allclose(one.image_logp_BU, two.image_logp_BU, atol=1e-4)


@pytest.mark.parametrize("window", [2, U])
def test_samples_are_those_of_one_token_a_pass(policy, one_by_one: Rollout, window: int) -> None:
    """With guidance and adapters; rows of several plan lengths need different numbers of passes."""
    found = sample_images(policy, one_by_one.rows, replace(SETTINGS, speculative=window))
    assert_same_images(one_by_one, found)
    assert found.passes_B is not None and one_by_one.passes_B is None
    assert len(set(found.passes_B.tolist())) > 1, found.passes_B
    assert -(-U // window) <= found.passes_B.min() and found.passes_B.max() < U


@pytest.mark.parametrize(
    "changed",
    [{"greedy": True}, {"top_k": 3, "top_p": 0.8}, {"guidance": 1.0}, {"logp_mode": "conditional"}],
    ids=lambda changed: next(iter(changed)),
)
def test_every_way_of_sampling(policy, one_by_one: Rollout, changed: dict) -> None:
    """Greedy, filtered, without guidance, and with both log-probabilities, which are exact."""
    settings, rows = replace(SETTINGS, image_bucket=U, **changed), one_by_one.rows
    found = sample_images(policy, rows, replace(settings, speculative=4))
    assert_same_images(sample_images(policy, rows, settings), found)
    assert found.passes_B.mean() < U
    sampled = found.rows.is_image_BN
    np.testing.assert_allclose(
        found.logp_BN[sampled], teacher_forced(policy, found)[sampled], atol=1e-4
    )


def test_devices_sample_the_same(policy, one_by_one: Rollout) -> None:
    settings, mesh = replace(SETTINGS, speculative=4), make_mesh(2, 2, 2)
    assert_same_images(one_by_one, sample_images(policy, one_by_one.rows, settings, mesh=mesh))


def test_bfloat16_stays_close(policy, one_by_one: Rollout) -> None:
    settings = replace(SETTINGS, speculative=4)
    low = sample_images(policy, one_by_one.rows, settings, dtype=jnp.bfloat16)
    difference = np.abs(low.logp_BN - teacher_forced(policy, low))
    assert difference[low.rows.is_image_BN].max() < 0.3


def test_frequencies_are_the_models_probabilities(policy) -> None:
    """Chi-square over all images of 4 tokens of 3 codes, whose probabilities come from the full
    forward pass with guidance."""
    policy = nnx.clone(policy)
    bias = policy.gen_head.second.bias
    bias[...] = jnp.where(jnp.arange(bias[...].size) < 3, bias[...], -1e9)  # 3 codes are left
    config, settings = replace(CONFIG, image_size=4), replace(SETTINGS, speculative=3)
    sampler = Sampler(nnx.split(policy)[0], config, SPECIALS, settings)
    prompt = PromptBatch(PROMPTS.ids_PC[:1], PROMPTS.len_P[:1])
    draws = 4000
    plan, length = jnp.full((draws, 1), SPECIALS.boi), jnp.ones(draws, jnp.int32)
    keys = row_keys(0, 0, jnp.arange(1), draws)
    drawn = sampler.sample_images(sampler.prepare(nnx.split(policy)[1]), prompt, plan, length, keys)
    images = np.array(list(itertools.product(range(3), repeat=4)))
    every = jax.tree.map(lambda x: jnp.repeat(x[:1], len(images), axis=0), drawn.rows)
    every = replace(every, image_ids_BU=jnp.asarray(images, jnp.int32))

    @jax.jit
    def image_logps():
        return token_logps(policy, every, SPECIALS, drawn.settings).logp_BN[:, 1:].sum(axis=1)

    probability = np.exp(np.asarray(image_logps(), np.float64))
    np.testing.assert_allclose(probability.sum(), 1, atol=1e-4)
    ids = np.asarray(drawn.rows.image_ids_BU) @ 3 ** np.arange(4)[::-1]
    counts = np.bincount(ids, minlength=len(images))
    p_value = stats.chisquare(counts, draws * probability / probability.sum()).pvalue
    assert p_value > 1e-3, (counts, draws * probability)


@pytest.mark.parametrize("window", [-1, 1, 5000])
def test_impossible_windows_are_refused(window: int) -> None:
    with pytest.raises(InputError, match="speculative"):
        replace(SETTINGS, speculative=window)


def test_a_window_longer_than_the_image_is_refused(policy) -> None:
    with pytest.raises(InputError, match=f"speculative is {U + 1}, and an image has {U} tokens"):
        sampler_of(policy, replace(SETTINGS, speculative=U + 1))


def test_bench_counts_passes_and_compares_tokens(tmp_path: Path) -> None:
    tiny = str(write_tiny(tmp_path / "tiny"))
    found = bench_speculative(4, checkpoint=tiny, repeats=1, captions=2)
    assert found.same_ids == 1 and found.passes is not None
    assert 4 <= found.passes[0] <= found.passes[1] == TINY.num_image_tokens
    assert any("passes an image, not 16" in line for line in found.lines())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sample --speculative 1", r"--speculative is 1; .*\[2, 4096\], or 0"),
        ("update --speculative 4", "--speculative measures `sample`"),
        ("sample --speculative 4 --against transformers", "leave out --against"),
        ("sample --ckpt embedded", "--ckpt is of --speculative"),
    ],
)
def test_options_of_bench(words: str, message: str) -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    with pytest.raises(InputError, match=message):
        bench.run(parser.parse_args(words.split()))
