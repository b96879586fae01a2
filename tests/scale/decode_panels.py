"""Processor time of a token of the image loop, with the weights whole and in panels, in turns.

    python tests/scale/decode_panels.py 4 8 16 --tokens 64 --repeats 3

The model of `gotr1 bench sample`, greedy under guidance, for so many captions; each is two rows.
One bucket of the loop is timed. Where other programs use the same cores, processor time says more
than wall time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gotr1_jax.bench.reference import GUIDANCE, MODEL, SPECIALS, random_policy, random_prompts
from gotr1_jax.sampler.config import SamplerConfig
from gotr1_jax.sampler.sampler import Sampler, row_keys
from gotr1_jax.sampler.token_batch import PromptBatch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("captions", type=int, nargs="+")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    graphdef, state = random_policy()
    config = SamplerConfig(max_plan_tokens=1, guidance=GUIDANCE, greedy=True)
    sampler = Sampler(graphdef, MODEL, SPECIALS, config)
    whole = sampler.prepare(state)
    for captions in arguments.captions:
        compare(sampler, whole, captions, arguments.tokens, arguments.repeats)


def compare(sampler: Sampler, whole: Any, captions: int, tokens: int, repeats: int) -> None:
    """Prints the medians and ranges of both, for the rows of so many captions."""
    programs, rows = sampler.programs, 2 * captions
    prompts = PromptBatch(
        jnp.asarray(random_prompts(captions, 32)), jnp.full((captions,), 32, jnp.int32)
    )
    keys = row_keys(0, 0, jnp.arange(captions), 1)
    cached, _ = programs.prefill_prompts(whole, prompts)
    plans = programs.prefill_plans(whole, cached, jnp.zeros((captions, 0), jnp.int32))
    context = sampler._context(whole, cached, plans, jnp.ones((captions,), jnp.int32))
    weights = {"whole": whole, "panels": programs.weights_in_panels(whole, rows=rows)}
    times: dict[str, list[float]] = {name: [] for name in weights}
    ids = {}
    for turn in range(repeats + 1):
        for name, params in weights.items():
            state = programs.start_images(whole, rows=captions, size=tokens)
            jax.block_until_ready((state, params))
            start = time.process_time()
            state = jax.block_until_ready(programs.image_bucket(params, context, keys, state))
            if turn:
                times[name].append((time.process_time() - start) / tokens)
            ids[name] = np.asarray(state.ids_BU)
    for name, found in times.items():
        middle, least, most = (1e3 * f(found) for f in (statistics.median, min, max))
        print(f"{rows} rows, {name}: {middle:.1f} ms a token ({least:.1f} to {most:.1f})")
    print(f"{rows} rows: {100 * np.mean(ids['whole'] == ids['panels']):.0f} % of ids are the same")


if __name__ == "__main__":
    main()
