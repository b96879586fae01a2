"""Grain pipelines of the jobs. Their iterators save and restore their exact position.

Each function returns a `grain.IterDataset`; `iter()` of it has `get_state` and `set_state`, and
Orbax can checkpoint it. Every epoch is shuffled anew by the seed, and its last, incomplete batch
is dropped, so no batch ever holds one example twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from gotr1_jax.data.shards import TokenizedRecords
from gotr1_jax.data.sources import ImageSource, PlannedImageSource
from gotr1_jax.errors import InputError
from gotr1_jax.tokenizers.janus import TextTokenizer

# Drawing and tokenising an example takes under a millisecond; one thread keeps up and leaves
# the cores to the model.
_READ = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)


@dataclass(frozen=True)
class TextLimits:
    """Padded lengths: prompt positions C (with BOS) and plan positions T (with BOI)."""

    max_prompt_tokens: int
    max_plan_tokens: int


@dataclass(frozen=True)
class CaptionBatch:
    """Captions of one step; `indices_P` int64, their places in the whole list."""

    indices_P: np.ndarray
    captions: tuple[str, ...]


@dataclass(frozen=True)
class ImageBatch:
    """Images to train an image tokenizer on: `pixels_BHWC` uint8, `indices_B` int64."""

    indices_B: np.ndarray
    pixels_BHWC: np.ndarray


@dataclass(frozen=True)
class SftExampleBatch:
    """Right-padded rows of caption, plan and image; int32 arrays.

    The plan ends with BOI, which `plan_len_B` counts; padding holds the pad token. `indices_B`
    (int64) are places in the source.
    """

    indices_B: np.ndarray
    prompt_ids_BC: np.ndarray
    prompt_len_B: np.ndarray
    plan_ids_BT: np.ndarray
    plan_len_B: np.ndarray
    image_ids_BU: np.ndarray


def caption_batches(captions: Sequence[str], batch_size: int, seed: int) -> grain.IterDataset:
    """Endless `CaptionBatch`es. Raises InputError when there are fewer captions than a batch."""

    def collect(indices: Sequence[int]) -> CaptionBatch:
        return CaptionBatch(np.asarray(indices, np.int64), tuple(captions[i] for i in indices))

    return _epochs(len(captions), batch_size, seed, "captions", lambda index: index, collect)


def image_batches(source: ImageSource, batch_size: int, seed: int) -> grain.IterDataset:
    """Endless `ImageBatch`es. Raises InputError when the source is smaller than a batch."""

    def collect(rows: Sequence[tuple[int, np.ndarray]]) -> ImageBatch:
        indices, images = zip(*rows)
        return ImageBatch(np.asarray(indices, np.int64), np.stack(images))

    def read(index: int) -> tuple[int, np.ndarray]:
        return index, source.image(index)

    return _epochs(len(source), batch_size, seed, "pictures", read, collect)


def sft_batches(
    source: PlannedImageSource,
    image_ids_NU: np.ndarray,
    codec: TextTokenizer,
    template: str,
    limits: TextLimits,
    batch_size: int,
    seed: int,
    places: np.ndarray | None = None,
) -> grain.IterDataset:
    """Endless `SftExampleBatch`es; `image_ids_NU` are the images' ids, by index.

    With `places` only the rows at those places of every batch are read and returned.
    Raises InputError when the source is smaller than a batch or has another number of images,
    and, while iterating, for a caption or plan over its limit.
    """
    if len(image_ids_NU) != len(source):
        raise InputError(f"{len(source)} examples, but token ids of {len(image_ids_NU)} images")

    def read(index: int) -> tuple[int, list[int], list[int]]:
        caption, plan = source.text(index)
        plan_ids = [*codec.encode_plan(plan), codec.specials.boi]
        if len(plan_ids) > limits.max_plan_tokens:
            raise InputError(
                f"the plan of caption {_short(caption)} has {len(plan_ids)} tokens with the begin "
                f"of the image, over the limit of {limits.max_plan_tokens}; raise the limit"
            )
        return index, codec.encode_prompt(caption, template, limits.max_prompt_tokens), plan_ids

    def image_ids(places: np.ndarray) -> np.ndarray:
        return image_ids_NU[places].astype(np.int32)

    collect = _collector(image_ids, limits, codec.specials.pad)
    return _epochs(len(source), batch_size, seed, "examples", read, collect, places=places)


def record_batches(
    records: TokenizedRecords,
    codec: TextTokenizer,
    template: str,
    limits: TextLimits,
    batch_size: int,
    seed: int,
    places: np.ndarray | None = None,
) -> grain.IterDataset:
    """Endless `SftExampleBatch`es of records that are known to fit the limits.

    Where records have prompts, one is drawn by seed, epoch and place in it; the caption stands in
    for one that a record lacks or that is over the limit. `places` as in `sft_batches`.
    Raises InputError when there are fewer records than a batch.
    """

    def prompt_ids(text: str) -> list[int]:
        return codec.encode_prompt(text, template, limits.max_prompt_tokens)

    def read(index: int, rng: np.random.Generator) -> tuple[int, list[int], list[int]]:
        caption, plan = records.text(index)
        plan_ids = [*codec.encode_plan(plan), codec.specials.boi]
        drawn = records.draw_prompt(index, rng)
        if drawn is not None:
            with suppress(InputError):  # too long
                return index, prompt_ids(drawn), plan_ids
        return index, prompt_ids(caption), plan_ids

    collect = _collector(records.image_ids, limits, codec.specials.pad)
    return _epochs(
        len(records), batch_size, seed, "records", read, collect, drawing=True, places=places
    )


def _collector(
    image_ids: Callable[[np.ndarray], np.ndarray], limits: TextLimits, pad: int
) -> Callable[[Sequence[tuple[int, list[int], list[int]]]], SftExampleBatch]:
    """Rows (index, prompt ids, plan ids) -> a batch; `image_ids` gives int32 (B, U) by index."""

    def collect(rows: Sequence[tuple[int, list[int], list[int]]]) -> SftExampleBatch:
        indices, prompts, plans = zip(*rows)
        prompt_ids_BC, prompt_len_B = pad_rows(prompts, limits.max_prompt_tokens, pad)
        plan_ids_BT, plan_len_B = pad_rows(plans, limits.max_plan_tokens, pad)
        places = np.asarray(indices, np.int64)
        return SftExampleBatch(
            places, prompt_ids_BC, prompt_len_B, plan_ids_BT, plan_len_B, image_ids(places)
        )

    return collect


def pad_rows(rows: Sequence[Sequence[int]], width: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids, padded on the right: int32 (B, width), and their lengths, int32 (B,)."""
    ids = np.full((len(rows), width), pad, np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids, np.asarray([len(row) for row in rows], np.int32)


def _epochs(
    length: int,
    batch_size: int,
    seed: int,
    what: str,
    read: Callable[..., Any],
    collect: Callable[[Sequence[Any]], Any],
    drawing: bool = False,
    places: np.ndarray | None = None,
) -> grain.IterDataset:
    """`drawing`: `read(index, rng)` gets a generator of its own for each place of each epoch."""
    if batch_size > length:
        raise InputError(f"a batch of {batch_size} {what} cannot be drawn from {length}")
    dataset = grain.MapDataset.range(length).seed(seed).shuffle()
    dataset = dataset.random_map(read) if drawing else dataset.map(read)
    if places is not None:
        dataset = _Places(dataset, batch_size, places)
        batch_size = len(places)
    dataset = dataset.batch(batch_size, drop_remainder=True, batch_fn=collect)
    return dataset.repeat().to_iter_dataset(_READ)


class _Places(grain.MapDataset[Any]):
    """What stands at some places of every batch, one after the other; the rest is never read."""

    def __init__(self, whole: grain.MapDataset[Any], batch_size: int, places: np.ndarray) -> None:
        super().__init__(whole)
        self._whole, self._batch_size, self._places = whole, batch_size, places.tolist()

    def __len__(self) -> int:
        return len(self._whole) // self._batch_size * len(self._places)

    def __getitem__(self, index: Any) -> Any:
        epoch, rest = divmod(index, len(self))
        batch, place = divmod(rest, len(self._places))
        start = epoch * len(self._whole) + batch * self._batch_size
        return self._whole[start + self._places[place]]


def _short(caption: str) -> str:
    return repr(caption if len(caption) <= 60 else caption[:57] + "...")
