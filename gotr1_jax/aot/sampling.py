"""The rollout's programs: prefill, plan loop, unconditional prefix, image loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gotr1_jax.aot.job import JobCompiler
from gotr1_jax.aot.measure import bytes_per_device
from gotr1_jax.decoding.kv_cache import KVCache
from gotr1_jax.parallel.mesh import ROWS, row_multiple, row_sharding
from gotr1_jax.sampler.image_loop import ImageContext
from gotr1_jax.sampler.plan_loop import PromptCache
from gotr1_jax.sampler.policy_weights import PolicyWeights
from gotr1_jax.sampler.sampler import Sampler
from gotr1_jax.sampler.token_batch import PromptBatch


@dataclass(frozen=True)
class SampledRows:
    """What one call of the sampler samples.

    Attributes:
      captions, samples: P and G.
      images: images of each plan.
      calls: such calls in a training step.
      label: after the names of the programs.
    """

    captions: int
    samples: int
    images: int = 1
    calls: int = 0
    label: str = ""

    @property
    def rows(self) -> int:
        """Images."""
        return self.captions * self.samples

    @property
    def plans(self) -> int:
        """Plans."""
        return self.rows // self.images


def array_shape(sizes: tuple[int, ...], dtype: Any) -> Any:
    """A `jax.ShapeDtypeStruct`, typed Any so that it may replace an array."""
    return jax.ShapeDtypeStruct(sizes, dtype)


def shard_rows(tree: Any, mesh: Mesh, heads: bool = True) -> Any:
    """Shapes with rows sharded over the mesh, and with `heads` the kv heads of caches.

    An array whose first axis does not divide is replicated.
    """

    def place(x: Any, tensor: str | None = None) -> Any:
        if isinstance(x, KVCache):
            return jax.tree.map(lambda part: place(part, "tensor" if heads else None), x)
        over = ROWS[0] if x.ndim and x.shape[0] % row_multiple(mesh) == 0 else None
        spec = PartitionSpec(*(over, tensor)[: x.ndim])
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, tree, is_leaf=lambda x: isinstance(x, KVCache))


def prompt_shapes(captions: int, width: int, mesh: Mesh) -> PromptBatch:
    """Prompts of `captions` captions, padded to `width`."""
    ids, lengths = array_shape((captions, width), jnp.int32), array_shape((captions,), jnp.int32)
    return shard_rows(PromptBatch(ids, lengths), mesh)


def key_shapes(count: int, mesh: Mesh) -> jax.ShapeDtypeStruct:
    """One random key for each row."""
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))
    return jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=row_sharding(mesh))


def compile_rollout(
    job: JobCompiler, sampler: Sampler, params: PolicyWeights, sampled: SampledRows, width: int,
    mesh: Mesh, resident: tuple[str, ...],
) -> None:  # fmt: skip
    """All programs of a rollout; of each loop the last bucket, where caches are largest.

    width: tokens of the prompts.
    """
    programs, config = sampler.programs, sampler.config
    prompts = prompt_shapes(sampled.captions, width, mesh)
    N, B = sampled.plans, sampled.rows

    def measure(name: str, function: Any, *args: Any, runs: float = 1.0, **fields: Any) -> Any:
        outputs = job.compile(
            name + sampled.label, function, *args, persistent_args=("sampler",),
            resident=resident, runs_per_step=sampled.calls * runs, **fields,
        )  # fmt: skip
        return shard_rows(outputs, mesh)

    captions, last = measure("prefill", programs.prefill_prompts, params, prompts)
    limit = config.max_plan_tokens
    plans = _shapes(mesh, programs.start_plans, params, last, rows=N, size=limit)
    plan_reads = (params.layers, params.text_head_VD, captions.cache, plans.cache)
    plans = measure(
        "plan loop, last bucket", programs.plan_bucket, params, captions, key_shapes(N, mesh),
        plans, **_last_bucket(limit, config.plan_bucket, plan_reads, plans.cache),
    )  # fmt: skip
    plans = _shapes(mesh, programs.finish_plans, plans)[0]
    uncond = None
    if sampler.config.branches == 2:
        size = captions.cache.size + limit
        uncond = measure("null context", programs.prefill_uncond, params, static={"size": size})
    context = ImageContext(
        PromptCache(captions.cache, captions.len_P), plans.cache,
        shard_rows(array_shape((B,), jnp.int32), mesh), uncond,
    )  # fmt: skip
    tokens = sampler.model_config.num_image_tokens
    images = _shapes(mesh, programs.start_images, params, rows=B, size=tokens)
    image_reads = (params.layers, params.image_head, context, images.cache)
    measure(
        "image loop, last bucket", programs.image_bucket, params, context, key_shapes(B, mesh),
        images, **_last_bucket(tokens, config.image_bucket, image_reads, images.cache),
    )  # fmt: skip


def _last_bucket(total: int, bucket: int, reads: Any, cache: Any) -> dict[str, Any]:
    """Fields of the last bucket's program when `total` tokens are sampled in buckets.

    `runs`: the cost of all buckets in runs of the last one, by bytes read. By FLOPs it would not be
    smaller: the cache has a smaller share of the FLOPs than of the bytes.
    """
    sizes = [min(size, total) for size in range(bucket, total + bucket, bucket)]
    iterations = [size - before for size, before in zip(sizes, [0, *sizes])]
    cache_bytes = bytes_per_device(cache)
    fixed = bytes_per_device(reads) - cache_bytes
    whole = sum(n * (fixed + cache_bytes * size / total) for n, size in zip(iterations, sizes))
    runs = whole / (iterations[-1] * (fixed + cache_bytes))
    return {"iterations": iterations[-1], "reads": reads, "runs": runs}


def _shapes(mesh: Mesh, function: Any, *args: Any, **static: Any) -> Any:
    """Outputs of a small program that is not compiled, sharded as the sampler shards rows."""
    return shard_rows(jax.eval_shape(function, *args, **static), mesh)
