"""Memory of the sampler's loops as compiled for chips that are not here, with few layers.

    python tests/scale/loop_memory.py v5p:2x2x1 [--layers 2] [--captions 2] [--cache-dtype int8]

Of the last bucket of the plan and of the image loop: arguments, the state's cache among them,
temporaries, and how many operations outside of fusions copy an array of a cache's size. The policy
is that of configs/gotr1_7b_grpo.yaml with fewer layers, its rows split over all chips. Topologies
and what they need are those of `gotr1 compile`.
"""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "gotr1_7b_grpo.yaml"
PROMPT_TOKENS = 48


def count_copies(text: str, array: Any) -> int:
    """Copies and transposes of arrays with as many numbers as one device's part of `array`."""
    size = math.prod(array.sharding.shard_shape(array.shape))
    found = re.findall(r"= \w+\[([\d,]+)\]\S* (?:copy|copy-start|transpose)\(", text)
    return sum(math.prod(map(int, shape.split(","))) == size for shape in found)


def main() -> None:
    """Print a line for each loop."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("topology")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--captions", type=int, default=2)
    parser.add_argument("--cache-dtype", choices=("auto", "int8"), default="auto")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    from gotr1_jax.aot import grpo, read_job
    from gotr1_jax.aot.measure import _OPTIONS, bytes_per_device
    from gotr1_jax.aot.sampling import array_shape, key_shapes, prompt_shapes, shard_rows
    from gotr1_jax.aot.sizes import policy_sizes
    from gotr1_jax.aot.target import find_target
    from gotr1_jax.grpo.setup import make_sampler
    from gotr1_jax.parallel.mesh import make_mesh
    from gotr1_jax.sampler.image_loop import ImageContext

    config = read_job(CONFIG, ["--rollout.cache_dtype", options.cache_dtype])
    target = find_target(options.topology)
    mesh = make_mesh(1, len(target.devices), 1, target.devices)
    sizes, specials = policy_sizes(config.policy.init, "7b")
    sizes = replace(sizes, decoder=replace(sizes.decoder, num_layers=options.layers))
    policy = grpo.policy_shapes(config.policy, sizes, mesh)
    sampler = make_sampler(config, policy, sizes, specials, mesh)
    params = sampler.prepare_program(policy.whole(policy.trained))[1]
    programs, limit = sampler.programs, config.sampling.max_plan_tokens
    B = options.captions * config.rollout.samples_per_caption

    def shapes(function: Any, *args: Any, **static: Any) -> Any:
        return shard_rows(jax.eval_shape(lambda *a: function(*a, **static), *args), mesh)

    prompts, last = shapes(
        programs.prefill_prompts, params, prompt_shapes(options.captions, PROMPT_TOKENS, mesh)
    )
    plans = shapes(programs.start_plans, params, last, rows=B, size=limit)
    uncond = shapes(programs.prefill_uncond, params, size=PROMPT_TOKENS + limit)
    lengths = shard_rows(array_shape((B,), jnp.int32), mesh)
    context = ImageContext(prompts, plans.cache, lengths, uncond)
    images = shapes(programs.start_images, params, rows=B, size=sizes.num_image_tokens)
    loops = {
        "plan": (programs.plan_bucket, (params, prompts, key_shapes(B, mesh), plans)),
        "image": (programs.image_bucket, (params, context, key_shapes(B, mesh), images)),
    }
    for name, (program, args) in loops.items():
        lowered = program.trace(*args).lower()
        compiled = lowered.compile(compiler_options=_OPTIONS.get(target.chip.platform))
        memory, cache = compiled.memory_analysis(), args[-1].cache
        sizes_gb = {
            "arguments": memory.argument_size_in_bytes,
            "own cache": bytes_per_device(cache),
            "temporaries": memory.temp_size_in_bytes,
        }
        shown = ", ".join(f"{what} {size / 1e9:.3f} GB" for what, size in sizes_gb.items())
        copies = count_copies(compiled.as_text(), cache.v_NKSh[0])
        print(f"{name} loop of {B} rows: {shown}; {copies} copies of a cache's array", flush=True)


if __name__ == "__main__":
    main()
