"""What adapters cost the sampler: two thin products beside each matrix, against merged ones."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gotr1_jax.bench.reference import GUIDANCE, MODEL, SPECIALS, random_prompts
from gotr1_jax.bench.timing import BenchResult, compare
from gotr1_jax.decoding.weights import AdapterWeights
from gotr1_jax.models.config import JANUS_PRO_1B, JANUS_PRO_7B, JanusConfig, LoraConfig
from gotr1_jax.models.janus import JanusPolicy, abstract_policy
from gotr1_jax.models.lora import merge_lora
from gotr1_jax.sampler.config import SamplerConfig
from gotr1_jax.sampler.policy_weights import PolicyWeights, prepare_policy_weights
from gotr1_jax.sampler.sampler import Sampler, row_keys
from gotr1_jax.sampler.token_batch import PromptBatch


def bench_adapters(
    *, repeats: int = 3, captions: int = 4, rank: int = 32, dtype: str = "float32",
    prompt_tokens: int = 32,
) -> list[BenchResult]:  # fmt: skip
    """Images a second with adapters on all layers, against the same weights merged in `dtype`."""
    config = SamplerConfig(max_plan_tokens=1, guidance=GUIDANCE, greedy=True, image_bucket=96)
    wide = jnp.dtype(dtype)
    policy = JanusPolicy(
        MODEL, rngs=nnx.Rngs(0), lora=LoraConfig(rank=rank), dtype=wide, param_dtype=wide
    )
    runs = {}
    for name in ("unmerged", "merged"):
        graphdef, state = nnx.split(policy if name == "unmerged" else merge_lora(policy))
        sampler = Sampler(graphdef, MODEL, SPECIALS, config)
        runs[name] = (sampler, sampler.prepare(state))
    prompts = PromptBatch(
        jnp.asarray(random_prompts(captions, prompt_tokens)),
        jnp.full((captions,), prompt_tokens, jnp.int32),
    )
    boi, one = jnp.full((captions, 1), SPECIALS.boi, jnp.int32), jnp.ones((captions,), jnp.int32)
    keys = row_keys(0, 0, jnp.arange(captions), 1)

    def sample(sampler: Sampler, params: Any) -> None:
        np.asarray(sampler.sample_images(params, prompts, boi, one, keys).image_logp_BU)

    result = compare(
        "sample with adapters", "images/s", captions,
        lambda: sample(*runs["unmerged"]), lambda: sample(*runs["merged"]), repeats,
        names=("unmerged", "merged"),
    )  # fmt: skip
    for name, model in (("here", MODEL), ("1B", JANUS_PRO_1B), ("7B", JANUS_PRO_7B)):
        thin, every = adapter_bytes(_weight_shapes(model, rank, wide))
        sizes = f"{thin / 1e6:.1f} of {every / 1e6:.1f} MB, {thin / every:.1%}"
        print(f"{name}, {dtype}: adapters of rank {rank} are {sizes}", file=sys.stderr)
    return [result]


def _weight_shapes(model: JanusConfig, rank: int, dtype: jnp.dtype) -> PolicyWeights:
    lora = LoraConfig(rank=rank)
    policy = abstract_policy(model, lora=lora, dtype=dtype, param_dtype=dtype)
    graphdef, state = nnx.split(policy)
    return jax.eval_shape(partial(prepare_policy_weights, graphdef, dtype=None), state)


def adapter_bytes(params: PolicyWeights) -> tuple[int, int]:
    """Bytes of the adapters, and of all that a token of the image reads; arrays or shapes."""

    def size(tree: Any) -> int:
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

    thin = [
        x
        for x in jax.tree.leaves(params.layers, is_leaf=lambda x: isinstance(x, AdapterWeights))
        if isinstance(x, AdapterWeights)
    ]
    return size(thin), size(params.layers) + size(params.image_head)
