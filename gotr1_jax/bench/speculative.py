"""Images in fewer forward passes (`sampler.speculative_loop`), against one token a pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from gotr1_jax.bench.reference import GUIDANCE, MODEL, SPECIALS, random_policy, random_prompts
from gotr1_jax.bench.timing import BenchResult, compare
from gotr1_jax.sampler.config import SamplerConfig
from gotr1_jax.sampler.sampler import Sampler, row_keys
from gotr1_jax.sampler.token_batch import PromptBatch

if TYPE_CHECKING:
    from gotr1_jax.sampler.sampler import Rollout

CAPTIONS = (
    "a red circle left of a blue square",
    "a large green star",
    "two yellow triangles above a purple circle",
    "a blue star below a red square",
)

# Draws the images of all rows by a window, 0: one token a pass.
_Draw = Callable[[int], "Rollout"]


def bench_speculative(
    window: int, *, checkpoint: str | None = None, repeats: int = 3, captions: int = 4
) -> BenchResult:
    """Images a second by a window of positions, against one token a pass, of the same plans.

    checkpoint: "embedded", a directory or a hub id, which says how is sampled; None: the random
    model of `bench`, at temperature 1.
    """
    draw = _random_model(captions) if checkpoint is None else _trained(checkpoint, captions)
    found: dict[int, Rollout] = {}

    def run(window: int) -> None:
        rollout = draw(window)
        np.asarray(rollout.image_logp_BU)
        found[window] = rollout

    result = compare(
        "sample", "images/s", captions, lambda: run(window), lambda: run(0), repeats,
        names=(f"window of {window}", "one token a pass"),
    )  # fmt: skip
    ids, one_by_one = (np.asarray(found[w].rows.image_ids_BU) for w in (window, 0))
    assert found[window].passes_B is not None
    passes = float(np.mean(np.asarray(found[window].passes_B)))
    return replace(
        result, same_ids=float(np.mean(ids == one_by_one)), passes=(passes, ids.shape[1])
    )


def _random_model(captions: int) -> _Draw:
    graphdef, state = random_policy()
    prompt_tokens = 32
    ids = random_prompts(captions, prompt_tokens)
    prompts = PromptBatch(jnp.asarray(ids), jnp.full((captions,), prompt_tokens, jnp.int32))
    boi, one = jnp.full((captions, 1), SPECIALS.boi, jnp.int32), jnp.ones((captions,), jnp.int32)
    keys = row_keys(0, 0, jnp.arange(captions), 1)
    samplers: dict[int, Sampler] = {}

    def draw(window: int) -> Rollout:
        if window not in samplers:
            config = SamplerConfig(max_plan_tokens=1, guidance=GUIDANCE, speculative=window)
            samplers[window] = Sampler(graphdef, MODEL, SPECIALS, config)
        return samplers[window].sample_images(params, prompts, boi, one, keys)

    params = Sampler(graphdef, MODEL, SPECIALS, SamplerConfig()).prepare(state)
    return draw


def _trained(checkpoint: str, captions: int) -> _Draw:
    """After its own plans of `CAPTIONS`, in turn; on one device."""
    from gotr1_jax.convert.find import find_checkpoint
    from gotr1_jax.convert.generation_config import resolve_sampling
    from gotr1_jax.generate.batches import batch_sizes, encode_samples, fill_batch
    from gotr1_jax.generate.config import BUILT_IN, GenerateConfig
    from gotr1_jax.generate.runner import ModelRunner
    from gotr1_jax.generate.tasks import caption_tasks
    from gotr1_jax.parallel.startup import default_dtype

    runner = ModelRunner(find_checkpoint(checkpoint), default_dtype(), jax.devices()[:1])
    config = GenerateConfig(Path(), prompts=Path())
    sampling = resolve_sampling(config, runner.source, BUILT_IN).sampling
    texts = [CAPTIONS[i % len(CAPTIONS)] for i in range(captions)]
    rows = list(encode_samples(caption_tasks(texts), runner.tokenizer, config))
    limit, bucket = sampling.max_plan_tokens, sampling.plan_bucket
    sizes = batch_sizes(rows, limit, bucket)
    plans = runner.sample(fill_batch(rows, captions, sizes.prompt_width, 0), sampling, 0, False)
    ids, lengths = plans.rows.plan_ids_BT, plans.rows.plan_len_B
    rows = [replace(row, plan_ids=ids[i, : lengths[i]].tolist()) for i, row in enumerate(rows)]
    sizes = batch_sizes(rows, limit, bucket)
    batch = fill_batch(rows, captions, sizes.prompt_width, sizes.plan_width)

    def draw(window: int) -> Rollout:
        return runner.sample(batch, replace(sampling, speculative=window), 0)

    return draw
