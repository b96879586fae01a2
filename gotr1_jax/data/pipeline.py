"""Grain pipelines of the jobs. Their iterators save and restore their exact position.

Each function returns a `grain.IterDataset`; `iter()` of it has `get_state` and `set_state`, and
Orbax can checkpoint it. Every epoch is shuffled anew by the seed, and its last, incomplete batch
is dropped, so no batch holds an example twice.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import grain
import numpy as np

from gotr1_jax.data.shards import TokenizedRecords
from gotr1_jax.data.text_tokens import TextFormat
from gotr1_jax.errors import InputError

# Drawing and tokenising an example takes under a millisecond: one thread is enough, and leaves
# the cores to the model.
_READ = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)


class ImageSource(Protocol):
    """Images by index. `key` names the content: equal keys give equal images."""

    @property
    def key(self) -> str: ...
    def __len__(self) -> int: ...
    def image(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3) RGB, the same size for every index."""
        ...


class PlannedImageSource(ImageSource, Protocol):
    """Images with their captions and plans."""

    def text(self, index: int) -> tuple[str, str]:
        """(caption, plan)."""
        ...


@dataclass(frozen=True)
class CaptionBatch:
    """Captions of one step; `indices_P` int64, their indices in the whole list."""

    indices_P: np.ndarray
    captions: tuple[str, ...]


@dataclass(frozen=True)
class SftExampleBatch:
    """Right-padded rows of caption, plan and image; int32 arrays.

    The plan ends with BOI, which `plan_len_B` counts; padding is the pad token. `indices_B`
    (int64) are indices in the source.
    """

    indices_B: np.ndarray
    prompt_ids_BC: np.ndarray
    prompt_len_B: np.ndarray
    plan_ids_BT: np.ndarray
    plan_len_B: np.ndarray
    image_ids_BU: np.ndarray


# Index, prompt ids, plan ids of one example.
_Row = tuple[int, list[int], list[int]]


def caption_batches(captions: Sequence[str], batch_size: int, seed: int) -> grain.IterDataset:
    """Endless `CaptionBatch`es. Raises InputError if there are fewer captions than a batch."""

    def collect(indices: Sequence[int]) -> CaptionBatch:
        return CaptionBatch(np.asarray(indices, np.int64), tuple(captions[i] for i in indices))

    examples = _shuffled(len(captions), batch_size, seed, "captions")
    return _batched(examples, batch_size, collect)


class AheadBatches:
    """An iterator of batches, one of which may be taken before its step.

    A checkpoint of the step before then has a state with which that batch is taken again.
    """

    def __init__(self, batches: Any) -> None:
        self._batches = batches
        self._state: Any = None

    def __next__(self) -> Any:
        self._state = None
        return next(self._batches)

    def take_ahead(self) -> Any:
        """The batch of the next step; `get_state` gives the state before it until then."""
        self._state = copy.deepcopy(self._batches.get_state())
        return next(self._batches)

    def reach(self) -> None:
        """The step of the batch that was taken ahead has begun."""
        self._state = None

    def get_state(self) -> Any:
        """As of the iterator."""
        return self._batches.get_state() if self._state is None else self._state

    def set_state(self, state: Any) -> None:
        """As of the iterator."""
        self._state = None
        self._batches.set_state(state)


def sft_batches(
    source: PlannedImageSource,
    image_ids_NU: np.ndarray,
    text: TextFormat,
    batch_size: int,
    seed: int,
    positions: np.ndarray | None = None,
) -> grain.IterDataset:
    """Endless `SftExampleBatch`es; `image_ids_NU` are the ids of the source's images, by index.

    With `positions` only the rows at those positions of every batch are read and returned.
    Raises InputError if the source is smaller than a batch or has another number of images,
    and, while iterating, for a caption or plan over its limit.
    """
    if len(image_ids_NU) != len(source):
        raise InputError(f"{len(source)} examples, but token ids of {len(image_ids_NU)} images")

    def read(index: int) -> _Row:
        caption, plan = source.text(index)
        plan_ids = text.encode_plan(plan)
        if len(plan_ids) > text.max_plan_tokens:
            short = repr(caption if len(caption) <= 60 else caption[:57] + "...")
            raise InputError(
                f"the plan of caption {short} has {len(plan_ids)} tokens with the begin of the "
                f"image, over the limit of {text.max_plan_tokens}; raise the limit"
            )
        return index, text.encode_prompt(caption), plan_ids

    def image_ids(indices_B: np.ndarray) -> np.ndarray:
        return image_ids_NU[indices_B].astype(np.int32)

    collect = _sft_collector(image_ids, text)
    return example_batches(len(source), read, collect, batch_size, seed, positions)


def record_batches(
    records: TokenizedRecords,
    text: TextFormat,
    batch_size: int,
    seed: int,
    positions: np.ndarray | None = None,
) -> grain.IterDataset:
    """Endless `SftExampleBatch`es of records that fit the limits of `text`.

    If records have prompts, one is drawn by seed, epoch and position in the epoch; the caption
    replaces a prompt that a record lacks or that is over the limit. `positions` as in
    `sft_batches`. Raises InputError if there are fewer records than a batch.
    """

    def read(index: int, rng: np.random.Generator) -> _Row:
        caption, plan = records.text(index)
        plan_ids = text.encode_plan(plan)
        prompt = records.draw_prompt(index, rng)
        if prompt is not None:
            with suppress(InputError):  # too long
                return index, text.encode_prompt(prompt), plan_ids
        return index, text.encode_prompt(caption), plan_ids

    examples = _shuffled(len(records), batch_size, seed, "records").random_map(read)
    return _batched(examples, batch_size, _sft_collector(records.image_ids, text), positions)


def example_batches(
    length: int,
    read: Callable[[int], Any],
    collect: Callable[[Sequence[Any]], Any],
    batch_size: int,
    seed: int,
    positions: np.ndarray | None = None,
) -> grain.IterDataset:
    """Endless batches `collect([read(i), ...])` of the examples 0 .. length - 1.

    `positions` as in `sft_batches`. Raises InputError if there are fewer examples than a batch.
    """
    examples = _shuffled(length, batch_size, seed, "examples").map(read)
    return _batched(examples, batch_size, collect, positions)


def _sft_collector(
    image_ids: Callable[[np.ndarray], np.ndarray], text: TextFormat
) -> Callable[[Sequence[_Row]], SftExampleBatch]:
    """Makes batches of rows; `image_ids` gives int32 (B, U) of indices."""

    def collect(rows: Sequence[_Row]) -> SftExampleBatch:
        indices, prompts, plans = zip(*rows)
        indices_B = np.asarray(indices, np.int64)
        pad = text.tokenizer.specials.pad
        return SftExampleBatch(
            indices_B,
            *pad_rows(prompts, text.max_prompt_tokens, pad),
            *pad_rows(plans, text.max_plan_tokens, pad),
            image_ids(indices_B),
        )

    return collect


def pad_rows(rows: Sequence[Sequence[int]], width: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids, padded on the right: int32 (B, width), and their lengths, int32 (B,)."""
    ids = np.full((len(rows), width), pad, np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids, np.asarray([len(row) for row in rows], np.int32)


def _shuffled(length: int, batch_size: int, seed: int, what: str) -> grain.MapDataset:
    if batch_size > length:
        raise InputError(f"a batch of {batch_size} {what} cannot be drawn from {length}")
    return grain.MapDataset.range(length).seed(seed).shuffle()


def _batched(
    examples: grain.MapDataset,
    batch_size: int,
    collect: Callable[[Sequence[Any]], Any],
    positions: np.ndarray | None = None,
) -> grain.IterDataset:
    if positions is not None:
        examples = _BatchPositions(examples, batch_size, positions)
        batch_size = len(positions)
    examples = examples.batch(batch_size, drop_remainder=True, batch_fn=collect)
    return examples.repeat().to_iter_dataset(_READ)


class _BatchPositions(grain.MapDataset[Any]):
    """The elements at some positions of every batch, one after another; others are never read."""

    def __init__(
        self, whole: grain.MapDataset[Any], batch_size: int, positions: np.ndarray
    ) -> None:
        super().__init__(whole)
        self._whole, self._batch_size, self._positions = whole, batch_size, positions.tolist()

    def __len__(self) -> int:
        return len(self._whole) // self._batch_size * len(self._positions)

    def __getitem__(self, index: Any) -> Any:
        epoch, rest = divmod(index, len(self))
        batch, position = divmod(rest, len(self._positions))
        start = epoch * len(self._whole) + batch * self._batch_size
        return self._whole[start + self._positions[position]]
