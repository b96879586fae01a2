"""Images a second."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gotr1_jax.bench.reference import (
    GUIDANCE,
    MODEL,
    SPECIALS,
    is_wanted,
    random_policy,
    random_prompts,
    transformers_janus,
)
from gotr1_jax.bench.timing import BenchResult, compare
from gotr1_jax.models.vq import VQModel
from gotr1_jax.sampler.config import SamplerConfig
from gotr1_jax.sampler.sampler import Sampler, row_keys
from gotr1_jax.sampler.token_batch import PromptBatch


def bench_sample(
    against: str | None = None, *, repeats: int = 3, captions: int = 4, prompt_tokens: int = 32,
    decode: bool = False,
) -> list[BenchResult]:  # fmt: skip
    """Images a second, greedy under guidance; an image is done when its 576 ids are there.

    decode: also time both VQ decoders, and report images a second of ids and pixels together.
    """
    graphdef, state = random_policy()
    config = SamplerConfig(max_plan_tokens=1, guidance=GUIDANCE, greedy=True, image_bucket=96)
    sampler = Sampler(graphdef, MODEL, SPECIALS, config)
    params = sampler.prepare(state)
    ids = random_prompts(captions, prompt_tokens)
    prompts = PromptBatch(jnp.asarray(ids), jnp.full((captions,), prompt_tokens, jnp.int32))
    boi = jnp.full((captions, 1), SPECIALS.boi, jnp.int32)
    one = jnp.ones((captions,), jnp.int32)
    keys = row_keys(0, 0, jnp.arange(captions), 1)
    made: dict[str, np.ndarray] = {}

    def ours() -> None:
        rollout = sampler.sample_images(params, prompts, boi, one, keys)
        made["ours"] = np.asarray(rollout.rows.image_ids_BU)

    states = {"policy": state}
    vq = VQModel(MODEL.vq, rngs=nnx.Rngs(1)) if decode else None
    if vq is not None:
        states["vq"] = nnx.split(vq)[1]
    model: Any = transformers_janus(MODEL, states) if is_wanted(against) else None

    def theirs() -> None:
        import torch

        rows = torch.from_numpy(np.concatenate([ids, np.asarray(boi)], axis=1).astype(np.int64))
        made["theirs"] = model.generate(
            rows, attention_mask=torch.ones_like(rows), generation_mode="image",
            guidance_scale=GUIDANCE, do_sample=False,
            max_length=rows.shape[1] + MODEL.num_image_tokens,
        ).numpy()  # fmt: skip

    unit = "pictures/s"
    both = compare("sample", unit, captions, ours, None if model is None else theirs, repeats)
    if model is not None:
        same = float(np.mean(made["ours"] == made["theirs"]))
        both = replace(both, same_ids=same)
    if vq is None:
        return [both]
    return [both, _with_decoding(both, _bench_decode(vq, model, made["ours"][:1]), captions)]


def _bench_decode(vq: VQModel, model: Any, ids_1U: np.ndarray) -> BenchResult:
    """Time of one image's VQ decoding, both sides."""
    graphdef, state = nnx.split(vq)
    decoder = jax.jit(lambda state, ids: nnx.merge(graphdef, state).decode_ids(ids, MODEL.grid))

    def ours() -> None:
        decoder(state, jnp.asarray(ids_1U)).block_until_ready()

    def theirs() -> None:
        import torch

        with torch.no_grad():
            model.decode_image_tokens(torch.from_numpy(ids_1U.astype(np.int64)))

    return compare("decode", "pictures/s", 1, ours, None if model is None else theirs, 1)


def _with_decoding(ids: BenchResult, decode: BenchResult, captions: int) -> BenchResult:
    """Rates of ids and pixels together, from the two timed apart."""
    mine = [t + captions * decode.seconds[0] for t in ids.seconds]
    rate = captions / statistics.median(mine)
    if ids.against_seconds is None or decode.against_seconds is None:
        return BenchResult("sample+decode", ids.unit, rate, mine)
    other = [t + captions * decode.against_seconds[0] for t in ids.against_seconds]
    ratios = [b / a for a, b in zip(mine, other)]
    return BenchResult(
        "sample+decode", ids.unit, rate, mine, captions / statistics.median(other), other,
        statistics.median(ratios), min(ratios), max(ratios),
    )  # fmt: skip
