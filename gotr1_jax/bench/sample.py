"""Images a second."""

from __future__ import annotations

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
    random_policy,
    random_prompts,
    transformers_janus,
)
from gotr1_jax.bench.timing import BenchResult, check_reference, compare
from gotr1_jax.models.vq import VQModel
from gotr1_jax.sampler.config import SamplerConfig
from gotr1_jax.sampler.sampler import Sampler, row_keys
from gotr1_jax.sampler.token_batch import PromptBatch


def bench_sample(
    against: str | None = None, *, repeats: int = 3, captions: int = 4, prompt_tokens: int = 32,
    decode: bool = False,
) -> list[BenchResult]:  # fmt: skip
    """Images a second, greedy with guidance; an image is its 576 token ids.

    decode: also time the VQ decoders, and report images a second of ids and pixels together.
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
    generated: dict[str, np.ndarray] = {}

    def ours() -> None:
        rollout = sampler.sample_images(params, prompts, boi, one, keys)
        generated["ours"] = np.asarray(rollout.rows.image_ids_BU)

    states = {"policy": state}
    vq = VQModel(MODEL.vq, rngs=nnx.Rngs(1)) if decode else None
    if vq is not None:
        states["vq"] = nnx.split(vq)[1]
    model: Any = transformers_janus(MODEL, states) if check_reference(against) else None

    def theirs() -> None:
        import torch

        rows = torch.from_numpy(np.concatenate([ids, np.asarray(boi)], axis=1).astype(np.int64))
        generated["theirs"] = model.generate(
            rows, attention_mask=torch.ones_like(rows), generation_mode="image",
            guidance_scale=GUIDANCE, do_sample=False,
            max_length=rows.shape[1] + MODEL.num_image_tokens,
        ).numpy()  # fmt: skip

    unit = "images/s"
    both = compare("sample", unit, captions, ours, None if model is None else theirs, repeats)
    if model is not None:
        same = float(np.mean(generated["ours"] == generated["theirs"]))
        both = replace(both, same_ids=same)
    if vq is None:
        return [both]
    return [both, _with_decoding(both, _bench_decode(vq, model, generated["ours"][:1]), captions)]


def _bench_decode(vq: VQModel, model: Any, ids_1U: np.ndarray) -> BenchResult:
    """Seconds of one image in the VQ decoder."""
    graphdef, state = nnx.split(vq)
    decoder = jax.jit(lambda state, ids: nnx.merge(graphdef, state).decode_ids(ids, MODEL.grid))

    def ours() -> None:
        decoder(state, jnp.asarray(ids_1U)).block_until_ready()

    def theirs() -> None:
        import torch

        with torch.no_grad():
            model.decode_image_tokens(torch.from_numpy(ids_1U.astype(np.int64)))

    return compare("decode", "images/s", 1, ours, None if model is None else theirs, 1)


def _with_decoding(ids: BenchResult, decode: BenchResult, captions: int) -> BenchResult:
    """Rates of ids and pixels together, from their separate times."""
    ours = [t + captions * decode.seconds[0] for t in ids.seconds]
    theirs = None
    if ids.against_seconds is not None and decode.against_seconds is not None:
        theirs = [t + captions * decode.against_seconds[0] for t in ids.against_seconds]
    return BenchResult.of_times("sample+decode", ids.unit, captions, ours, theirs)
