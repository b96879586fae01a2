"""What sharing plans saves in the sampler: 4 plans x 4 images of a caption against 16 x 1.

    python tests/scale/plan_tree.py time shapes     # seconds of both, one after the other
    python tests/scale/plan_tree.py time wide
    python tests/scale/plan_tree.py memory 1b       # the image loop compiled for this machine
    python tests/scale/plan_tree.py memory 7b

Weights are random, plans have full length. `time` samples with both in turns and prints medians of
their seconds and of the ratios of the turns, by the clock and of the processors (which other load
does not change as much). `memory` computes the caches from shapes (nothing is
allocated) for 8 captions x 16 samples of a GoT-R1 run, and the compiler's memory analysis of the
last bucket of both loops. `wide` has the 1B's width with 2 layers and a small text vocabulary.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gotr1_jax.aot.job import JobCompiler, JobMemory
from gotr1_jax.aot.measure import Compiler, bytes_per_device
from gotr1_jax.aot.sampling import SampledRows, compile_rollout
from gotr1_jax.aot.target import find_target
from gotr1_jax.bench.reference import GUIDANCE, SPECIALS
from gotr1_jax.decoding.kv_cache import empty_cache
from gotr1_jax.models.config import JANUS_PRO_1B, JANUS_PRO_7B, DecoderConfig, JanusConfig, VQConfig
from gotr1_jax.models.janus import JanusPolicy
from gotr1_jax.parallel.mesh import make_mesh
from gotr1_jax.sampler.config import SamplerConfig
from gotr1_jax.sampler.sampler import Sampler, row_keys
from gotr1_jax.sampler.token_batch import PromptBatch

# The decoder of the embedded checkpoint, and one of the 1B's width.
SHAPES = JanusConfig(
    DecoderConfig(
        vocab_size=512, hidden_size=128, mlp_size=384, num_layers=4, num_heads=4, num_kv_heads=4,
        head_dim=32,
    ),
    VQConfig(codebook_size=512, encoder_multipliers=(1,) * 4, decoder_multipliers=(1,) * 4),
    image_size=64,
)  # fmt: skip
WIDE = replace(
    JANUS_PRO_1B,
    decoder=replace(JANUS_PRO_1B.decoder, vocab_size=4096, num_layers=2),
    image_size=112,
)
# Sizes, and tokens of a prompt and of a plan.
TIMED = {"shapes": (SHAPES, 48, 60), "wide": (WIDE, 16, 48)}
MODELS = {"1b": JANUS_PRO_1B, "7b": JANUS_PRO_7B}
G, M = 16, 4


def measure_time(name: str, captions: int, turns: int) -> None:
    """Prints median seconds of both ways and their ratio."""
    sizes, C, T = TIMED[name]
    graphdef, state = nnx.split(JanusPolicy(sizes, rngs=nnx.Rngs(0)))
    settings = SamplerConfig(max_plan_tokens=T, guidance=GUIDANCE, plan_bucket=T)
    sampler = Sampler(graphdef, sizes, SPECIALS, settings)
    params = sampler.prepare(state)
    ids = np.random.default_rng(0).integers(8, sizes.decoder.vocab_size, (captions, C))
    prompts = PromptBatch(jnp.asarray(ids, jnp.int32), jnp.full((captions,), C, jnp.int32))
    ways = {"flat": 1, "tree": M}
    seconds: dict[tuple[str, str], list[float]] = {}
    for turn in range(turns + 1):  # the first one compiles
        keys_B = row_keys(0, turn, jnp.arange(captions), G)
        for way, images in ways.items():
            start = time.perf_counter(), time.process_time()
            rollout = jax.block_until_ready(sampler(params, prompts, keys_B, G, images))
            for clock, then, now in zip(
                ("clock", "CPU"), start, (time.perf_counter(), time.process_time())
            ):
                seconds.setdefault((clock, way), []).extend([now - then] if turn else [])
        print(f"turn {turn} of {turns}", flush=True)
    length = float(rollout.rows.plan_len_B.mean()) - 1
    print(f"{name}: {captions * G} rows of {C} + {length:.0f} + {sizes.num_image_tokens} tokens")
    print("| seconds | flat | tree | tree / flat (smallest to largest) |\n|-|-|-|-|")
    for clock in ("clock", "CPU"):
        flat, tree = (seconds[clock, way] for way in ways)
        ratios = [b / a for a, b in zip(flat, tree)]
        medians = [statistics.median(x) for x in (flat, tree, ratios)]
        print(
            f"| {clock} | {medians[0]:.2f} | {medians[1]:.2f} | {medians[2]:.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) |"
        )


def cache_bytes(sizes: JanusConfig, rows: SampledRows, C: int, T: int) -> dict[str, int]:
    """Bytes of each bfloat16 cache at the end of a rollout; C and T: tokens of prompt and plan."""
    counts = {
        "prompts": (rows.captions, C),
        "plans": (rows.plans, T),
        "images": (2 * rows.rows, sizes.num_image_tokens),
        "unconditional prefix": (1, C + T),
    }

    def size(count: int, slots: int) -> int:
        cache = jax.eval_shape(lambda: empty_cache(sizes.decoder, count, slots, jnp.bfloat16))
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))

    return {name: size(*count) for name, count in counts.items()}


def measure_memory(name: str, captions: int, C: int, T: int) -> None:
    """Prints GB (10^9 bytes) of caches and of the compiled loops."""
    sizes = MODELS[name]
    half = jnp.bfloat16

    def split() -> tuple[Any, Any]:
        policy = JanusPolicy(sizes, rngs=nnx.Rngs(0), dtype=half, param_dtype=half)
        return nnx.split(policy)

    graphdef, state = nnx.split(nnx.eval_shape(lambda: nnx.merge(*split())))
    settings = SamplerConfig(max_plan_tokens=T, guidance=GUIDANCE)
    target = find_target("cpu:1")
    mesh = make_mesh(1, 1, 1, target.devices)
    sampler = Sampler(graphdef, sizes, SPECIALS, settings, mesh)
    params = sampler.prepare_program(state)[1]
    columns = {}
    for way, images in (("flat", 1), ("tree", M)):
        rows = SampledRows(captions, G, images, calls=1)
        values = {f"cache of {k}": v for k, v in cache_bytes(sizes, rows, C, T).items()}
        values["all caches"] = sum(values.values())
        job = JobCompiler(Compiler(target), stop_early=False)
        job.start(JobMemory(mesh, {"sampler": bytes_per_device(params)}, ("sampler",)))
        compile_rollout(job, sampler, params, rows, C, mesh, ("sampler",))
        for cost in job.report.programs:
            if "loop" in cost.program.name:
                values[f"{cost.program.name}: without weights"] = (
                    cost.peak_bytes - job.report.job.persistent["sampler"]
                )
                values[f"{cost.program.name}: TFLOP"] = int(cost.flops * 1e-3)
        columns[way] = values
    print(f"{name}: {captions} captions x {G} samples, {C} + {T} + {sizes.num_image_tokens} tokens")
    print("| GB | 16 plans | 4 plans x 4 images | ratio |\n|-|-|-|-|")
    for key, flat in columns["flat"].items():
        tree = columns["tree"][key]
        print(f"| {key} | {flat / 1e9:.2f} | {tree / 1e9:.2f} | {tree / flat:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("time", "memory"))
    parser.add_argument("size", choices=(*TIMED, *MODELS))
    parser.add_argument("--captions", type=int, help="2 for time, 8 for memory")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--prompt_tokens", type=int, default=256)
    parser.add_argument("--plan_tokens", type=int, default=600)
    args = parser.parse_args()
    if args.size not in (TIMED if args.what == "time" else MODELS):
        parser.error(f"{args.what} has no size {args.size}")
    if args.what == "time":
        measure_time(args.size, args.captions or 2, args.turns)
    else:
        measure_memory(args.size, args.captions or 8, args.prompt_tokens, args.plan_tokens)


if __name__ == "__main__":
    main()
