"""The rollout's programs: weights laid out, prompts, plan loop, null context, image loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gotr1_jax.aot.measure import Program, device_bytes
from gotr1_jax.parallel.mesh import ROWS, row_multiple, row_sharding
from gotr1_jax.sampler.image_loop import ImageContext
from gotr1_jax.sampler.plan_loop import PromptCache
from gotr1_jax.sampler.policy_weights import PolicyWeights
from gotr1_jax.sampler.sampler import Sampler
from gotr1_jax.sampler.token_batch import PromptBatch

# Compiles a program, and gives its outputs as shapes.
Run = Callable[[Program], Any]


def shape(sizes: tuple[int, ...], dtype: Any) -> Any:
    """An array of sizes and dtype that is nowhere; it stands where the job has arrays."""
    return jax.ShapeDtypeStruct(sizes, dtype)


def on_rows(tree: Any, mesh: Mesh, heads: bool = True) -> Any:
    """Shapes with their rows over the mesh, and kv heads of a cache, which has four dimensions.

    An array whose first axis does not divide is whole on every device.
    """

    def one(x: Any) -> Any:
        over = ROWS[0] if x.ndim and x.shape[0] % row_multiple(mesh) == 0 else None
        tensor = "tensor" if heads and x.ndim == 4 else None
        spec = PartitionSpec(*(over, tensor)[: x.ndim])
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(one, tree)


def prompt_shapes(captions: int, width: int, mesh: Mesh) -> PromptBatch:
    """Prompts of `captions` captions, padded to `width`."""
    ids, lengths = shape((captions, width), jnp.int32), shape((captions,), jnp.int32)
    return on_rows(PromptBatch(ids, lengths), mesh)


def key_shapes(count: int, mesh: Mesh) -> jax.ShapeDtypeStruct:
    """A key a row."""
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))
    return jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=row_sharding(mesh))


def weights(run: Run, sampler: Sampler, state: Any, beside: tuple[str, ...]) -> PolicyWeights:
    """The policy's state laid out for sampling."""
    program, params = sampler.prepare_program(state)
    holds = ("policy", "train state")
    run(Program("sampler's weights", program, (state,), holds=holds, beside=beside))
    return params


def rollout(
    run: Run, sampler: Sampler, params: PolicyWeights, prompts: PromptBatch, samples: int,
    parts: int, mesh: Mesh, beside: tuple[str, ...],
) -> None:  # fmt: skip
    """All programs of a rollout, the loops in their last bucket, where caches are the largest.

    parts: such rollouts make one step's.
    """
    programs, config = sampler.programs, sampler.config
    B = prompts.ids_PC.shape[0] * samples
    keys = key_shapes(B, mesh)

    def measure(name: str, function: Any, *args: Any, times: float = 1.0, **more: Any) -> Any:
        more |= {"holds": ("sampler",), "beside": beside, "times": parts * times}
        program = Program(name, function, args, **more)
        return on_rows(run(program), mesh)

    captions, last = measure("prefill", programs.prefill_prompts, params, prompts)
    limit = config.max_plan_tokens
    plans = _shapes(mesh, programs.start_plans, params, last, rows=B, size=limit)
    plan_reads = (params.layers, params.text_head_VD, captions.cache, plans.cache)
    plans = measure(
        "plan loop, last bucket", programs.plan_bucket, params, captions, keys, plans,
        **_buckets(limit, config.plan_bucket, plan_reads, plans.cache),
    )  # fmt: skip
    plans = _shapes(mesh, programs.finish_plans, plans)[0]
    uncond = None
    if sampler.branches == 2:
        size = captions.cache.size + limit
        uncond = measure("null context", programs.prefill_uncond, params, static={"size": size})
    context = ImageContext(
        PromptCache(captions.cache, captions.len_P), plans.cache, plans.len_B, uncond
    )
    tokens = sampler.model_config.num_image_tokens
    images = _shapes(mesh, programs.start_images, params, rows=B, size=tokens)
    image_reads = (params.layers, params.image_head, context, images.cache)
    measure(
        "image loop, last bucket", programs.image_bucket, params, context, keys, images,
        **_buckets(tokens, config.image_bucket, image_reads, images.cache),
    )  # fmt: skip


def _buckets(total: int, bucket: int, reads: Any, cache: Any) -> dict[str, Any]:
    """Turns and reads of the last of the buckets that `total` tokens are drawn in, and how many
    of them the whole phase is worth by the bytes that it reads.

    By FLOPs it is worth no less: the cache's share of them is smaller than its share of the bytes.
    """
    sizes = [min(size, total) for size in range(bucket, total + bucket, bucket)]
    turns = [size - before for size, before in zip(sizes, [0, *sizes])]
    grown = device_bytes(cache)
    fixed = device_bytes(reads) - grown
    whole = sum(n * (fixed + grown * size / total) for n, size in zip(turns, sizes))
    times = whole / (turns[-1] * (fixed + grown))
    return {"turns": turns[-1], "reads": reads, "times": times}


def _shapes(mesh: Mesh, function: Any, *args: Any, **static: Any) -> Any:
    """Outputs of a program that is not worth a line, laid as the sampler lays rows."""
    return on_rows(jax.eval_shape(function, *args, **static), mesh)
