"""Samples gathered into batches of equal size; how many rows a batch has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gotr1_jax.errors import InputError
from gotr1_jax.generate.tasks import CaptionTask, plan_ids
from gotr1_jax.io.reading import read_text
from gotr1_jax.models.config import JanusConfig
from gotr1_jax.sampler.config import SamplerConfig
from gotr1_jax.tokenizers.janus import TextTokenizer

# Larger batches gain little speed, and a stopped job loses more work.
_MOST_ROWS = {"cpu": 32}
_MOST_ROWS_ACCELERATOR = 128
_UNKNOWN_MEMORY_ROWS = 8
_USED_OF_FREE = 0.7  # leaves room for XLA's own buffers and for other processes
# Activations of VQ-16's decoder while it decodes one image, float32.
_DECODER_BYTES_PER_PIXEL = 2600
_SHORTEST_PROMPT = 16


@dataclass(frozen=True)
class SampleTask:
    """One sample of a caption.

    Attributes:
      task: the caption.
      index: of the sample, from 0 for each caption.
      prompt_ids: BOS first.
      plan_ids: BOI last; empty: the plan is sampled.
      draw: number of the draw in a search; the random keys are made from it too.
    """

    task: CaptionTask
    index: int
    prompt_ids: list[int]
    plan_ids: list[int]
    draw: int = 0


@dataclass(frozen=True)
class SampleBatch:
    """Samples as arrays; B is the same for all batches of a run, and padded with the last sample.

    Attributes:
      samples: those that are not padding, at most B.
      prompt_ids_BC, prompt_len_B: int32 prompts.
      plan_ids_BT, plan_len_B: int32 given plans with BOI; None: plans are sampled.
      caption_index_B, sample_index_B, draw_B: int32; the random keys are made from them.
    """

    samples: tuple[SampleTask, ...]
    prompt_ids_BC: np.ndarray
    prompt_len_B: np.ndarray
    plan_ids_BT: np.ndarray | None
    plan_len_B: np.ndarray | None
    caption_index_B: np.ndarray
    sample_index_B: np.ndarray
    draw_B: np.ndarray


@dataclass(frozen=True)
class BatchSizes:
    """Number of samples, and the columns that the longest prompt and plan need."""

    rows: int
    prompt_width: int
    plan_width: int


class SamplingSettings(Protocol):
    """What a job says of its prompts and plans."""

    @property
    def sampling(self) -> SamplerConfig:
        """How plans and images are sampled."""
        ...

    @property
    def prompt_template(self) -> str:
        """The prompt around a caption."""
        ...


def encode_samples(
    tasks: Iterable[CaptionTask], tokenizer: TextTokenizer, config: SamplingSettings
) -> Iterator[SampleTask]:
    """All samples of the captions in order; InputError, with file and line, for too long ones."""
    longest = config.sampling.max_plan_tokens
    for task in tasks:
        try:
            prompt = tokenizer.encode_prompt(task.caption, config.prompt_template)
            plans = [plan_ids(plan, tokenizer, longest) for plan in task.plans or ()]
        except InputError as error:
            raise task.at(error) from error
        plans = plans or [[]]
        each = task.count // len(plans)
        for index in range(task.count):
            yield SampleTask(task, index, prompt, plans[index // each])


def prompt_width(length: int) -> int:
    """Columns for a prompt: a power of two, because every new width compiles the sampler again."""
    width = _SHORTEST_PROMPT
    while width < length:
        width *= 2
    return width


def plan_width(length: int, longest: int, bucket: int) -> int:
    """Columns for a given plan of `length` tokens with BOI: whole buckets, as in the plan loop."""
    slots = max(1, -(-(length - 1) // bucket)) * bucket
    return min(slots, longest) + 1


def batch_sizes(rows: Iterable[SampleTask], longest_plan: int, bucket: int) -> BatchSizes:
    """Counts samples and takes their largest widths; a sampled plan may be as long as allowed."""
    count, prompt, plan = 0, 0, 1
    for row in rows:
        count += 1
        prompt = max(prompt, len(row.prompt_ids))
        plan = max(plan, len(row.plan_ids) or longest_plan + 1)
    return BatchSizes(count, prompt_width(prompt), plan_width(plan, longest_plan, bucket))


def make_batches(
    rows: Iterable[SampleTask], size: int, longest_plan: int, bucket: int
) -> Iterator[SampleBatch]:
    """Batches of `size` samples of equal widths; the remainders of all widths come last, together.

    At most `size` samples of each width are held.
    """
    waiting: dict[tuple[int, int], list[SampleTask]] = {}
    for row in rows:
        T = plan_width(len(row.plan_ids), longest_plan, bucket) if row.plan_ids else 0
        width = prompt_width(len(row.prompt_ids)), T
        same_width = waiting.setdefault(width, [])
        same_width.append(row)
        if len(same_width) == size:
            yield fill_batch(same_width, size, *width)
            waiting[width] = []
    rest = [(width, row) for width in sorted(waiting) for row in waiting[width]]
    for start in range(0, len(rest), size):
        part = rest[start : start + size]
        C, T = (max(sizes) for sizes in zip(*[width for width, _ in part]))
        yield fill_batch([row for _, row in part], size, C, T)


def fill_batch(rows: Sequence[SampleTask], size: int, C: int, T: int) -> SampleBatch:
    """Rows as one batch of `size`, prompts in C columns, given plans in T; 0: plans are sampled."""
    from gotr1_jax.data.pipeline import pad_rows  # which imports jax

    filled = [*rows, *[rows[-1]] * (size - len(rows))]
    prompts, prompt_len = pad_rows([row.prompt_ids for row in filled], C, 0)
    plans, plan_len = pad_rows([row.plan_ids for row in filled], T, 0) if T else (None, None)
    return SampleBatch(
        samples=tuple(rows),
        prompt_ids_BC=prompts,
        prompt_len_B=prompt_len,
        plan_ids_BT=plans,
        plan_len_B=plan_len,
        caption_index_B=np.asarray([row.task.index for row in filled], np.int32),
        sample_index_B=np.asarray([row.index for row in filled], np.int32),
        draw_B=np.asarray([row.draw for row in filled], np.int32),
    )


def bytes_per_row(
    config: JanusConfig, sizes: BatchSizes, sampling: SamplerConfig, itemsize: int,
    given_plans: bool,
) -> int:  # fmt: skip
    """Memory of one row while it is sampled: KV cache, logits, and the prefill's activations.

    itemsize: bytes of one number of the activations.
    """
    decoder, branches, window = config.decoder, sampling.branches, sampling.speculative
    C, T = sizes.prompt_width, sizes.plan_width
    slots = C + T + branches * (config.num_image_tokens + window)
    # A head's numbers of a slot; in int8 with their scale.
    head_bytes = decoder.head_dim * itemsize
    if sampling.cache_dtype == "int8":
        head_bytes = decoder.head_dim + 4
    cache = 2 * decoder.num_layers * decoder.num_kv_heads * head_bytes * slots
    # Logits, their softmax, the noise and the sum of both, float32.
    image_logits = branches * max(1, window) * config.vq.codebook_size
    logits = 4 * 4 * max(decoder.vocab_size, image_logits)
    # Attention scores and their softmax, float32, and the widest activations of a prefill.
    read = T if given_plans else C
    scores = 3 * 4 * decoder.num_heads * read * (C + T if given_plans else C)
    wide = read * (2 * decoder.mlp_size + 6 * decoder.hidden_size) * itemsize
    return cache + logits + scores + wide


def rows_that_fit(config: JanusConfig, row_bytes: int, devices: Sequence[Any]) -> int:
    """Rows that fit into the free memory of all JAX devices together."""
    platform = devices[0].platform
    free = _free_memory(platform, devices)
    shared = len(devices) if platform == "cpu" else 1  # of devices that share one memory
    most = _MOST_ROWS.get(platform, _MOST_ROWS_ACCELERATOR * len(devices))
    if free is None:
        return min(most, _UNKNOWN_MEMORY_ROWS * len(devices))
    left = free * _USED_OF_FREE / shared - config.image_size**2 * _DECODER_BYTES_PER_PIXEL
    each = max(1, int(left // row_bytes))
    return min(most, each * len(devices))


def batch_rows(rows: int, most: int, parts: int) -> int:
    """Rows of each batch: the fewest batches of at most `most` rows, all equally full.

    The result is a multiple of `parts`, the row shards of the mesh; one such multiple is the
    minimum, even where it is more than `most`.
    """
    most = max(1, most // parts) * parts
    batches = -(-rows // most)
    return -(-rows // (batches * parts)) * parts


def _free_memory(platform: str, devices: Sequence[Any]) -> int | None:
    """Free bytes of the fullest device; None: not reported."""
    if platform == "cpu":
        try:
            lines = read_text("/proc/meminfo").splitlines()
        except InputError:
            return None
        sizes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        return sizes[0] * 1024 if sizes else None
    stats = [device.memory_stats() for device in devices]
    if not all(s and "bytes_limit" in s and "bytes_in_use" in s for s in stats):
        return None
    return min(s["bytes_limit"] - s["bytes_in_use"] for s in stats)
