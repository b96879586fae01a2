"""Examples of supervised training: from their source to batches on the mesh."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from gotr1_jax.convert.find import find_checkpoint
from gotr1_jax.convert.image_tokenizer import ImageTokenizer
from gotr1_jax.data.pipeline import ImageSource, SftExampleBatch, record_batches, sft_batches
from gotr1_jax.data.records import find_record_files, fingerprint_files
from gotr1_jax.data.shards import TokenizedRecords, read_manifest
from gotr1_jax.data.text_tokens import TextFormat, TokenCounts
from gotr1_jax.data.token_cache import ImageTokenCache
from gotr1_jax.errors import InputError
from gotr1_jax.io.reading import read_bytes
from gotr1_jax.parallel.placement import put_addressable_rows
from gotr1_jax.parallel.processes import (
    check_same_on_all_processes,
    is_main_process,
    raise_on_all_processes,
)
from gotr1_jax.parallel.progress import Progress
from gotr1_jax.plan import BOX_START, Box, format_object, has_unread_boxes
from gotr1_jax.sampler.token_batch import TokenBatch
from gotr1_jax.sft.config import SftConfig, SftDataConfig
from gotr1_jax.sft.image_encoder import ImageEncoder, state_digest
from gotr1_jax.sft.tokenize_images import (
    HostShare,
    check_tokenizer,
    check_usable,
    given_shards,
    show_progress,
    tokenize_records,
)
from gotr1_jax.shapes.cells import CELL_CODES_FILE, CellCodes, SceneCodes
from gotr1_jax.shapes.dataset import ShapesSource
from gotr1_jax.tokenizers.janus import TOKENIZER_FILE, TextTokenizer

_log = logging.getLogger(__name__)
_CHECKED_PLANS = 4096


def make_batches(
    config: SftConfig,
    vq: ImageTokenizer,
    tokenizer: TextTokenizer,
    tokenizer_dir: Path,
    held: np.ndarray,
) -> grain.IterDataset[SftExampleBatch]:
    """Endless batches of a job's examples; their images are tokenised once and cached on disk.

    Args:
        config: the job.
        vq: the image tokenizer.
        tokenizer: the text tokenizer, and the folder that it was read from.
        held: rows of each batch that this process reads and returns.

    Raises InputError on every process, before the first batch, for data that do not fit.
    """
    data = config.data
    text = TextFormat(
        tokenizer, config.prompt_template, data.max_prompt_tokens, data.max_plan_tokens
    )
    if data.source == "shapes":
        source = ShapesSource(
            "train", data.examples, config.seed, data.unfaithful_fraction, data.plans,
            data.max_objects,
        )  # fmt: skip
        image_ids = _true_codes if data.true_codes else _shapes_image_ids
        ids_NU = image_ids(config, source, vq)
        return sft_batches(source, ids_NU, text, config.batch_size, config.seed, held)
    digest = hashlib.sha256(read_bytes(tokenizer_dir / TOKENIZER_FILE)).hexdigest()
    records = _load_records(config, vq, text, digest)
    return record_batches(records, text, config.batch_size, config.seed, held)


def describe_data(data: SftDataConfig) -> str:
    """What identifies the examples: of records, their files by name, size and ends."""
    if data.source == "shapes":
        return "shapes"
    folder = given_shards(data)
    if folder is not None:
        return f"image tokens {read_manifest(folder).key}"
    return f"files {fingerprint_files(find_record_files(data.source, data.records))[:16]}"


def _shapes_image_ids(config: SftConfig, source: ShapesSource, vq: ImageTokenizer) -> np.ndarray:
    """Image tokens of the shapes examples, int32 (N, U), the same on every process."""
    encode = ImageEncoder(vq.config, vq.state, jax.local_devices()[:1])
    return _cached_ids(config, source, state_digest(vq.state), encode)


def _true_codes(config: SftConfig, source: ShapesSource, vq: ImageTokenizer) -> np.ndarray:
    """The true codes of the shapes examples, int32 (N, U), the same on every process."""
    with raise_on_all_processes():
        path = find_checkpoint(config.vq) / CELL_CODES_FILE
        if not path.is_file():
            raise InputError(
                f"data.true_codes is set, but {path} does not exist: the tokenizer was trained "
                "without codes of cells"
            )
        codes = CellCodes.load(path)
        if len(codes.centres) + 1 != vq.config.codebook_size:
            raise InputError(
                f"{path} holds {len(codes.centres) + 1} codes, the tokenizer has "
                f"{vq.config.codebook_size}"
            )
    return _cached_ids(config, SceneCodes(source, codes), codes.digest, lambda ids: ids)


def _cached_ids(
    config: SftConfig,
    source: ImageSource,
    key: str,
    encode: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Image tokens of every image, int32 (N, U), from the cache where it has them."""
    cache = ImageTokenCache(Path(config.data.cache_dir), key, encode)
    with Progress("image tokens", len(source), 0) as progress:
        # The other processes read the cache of process 0 if they share its storage.
        for turn in (is_main_process(), True):
            with raise_on_all_processes():
                if turn:
                    ids_NU = cache.ids(source, lambda done, _: progress.update(done))
    check_same_on_all_processes(hashlib.sha256(ids_NU.tobytes()).hexdigest(), "set of image tokens")
    return ids_NU


def _load_records(
    config: SftConfig, vq: ImageTokenizer, text: TextFormat, tokenizer_digest: str
) -> TokenizedRecords:
    """The records that fit; every process tokenises its share of those that are not cached."""
    data, share = config.data, HostShare(jax.process_index(), jax.process_count())
    with raise_on_all_processes(), show_progress() as on_progress:
        folder = given_shards(data)
        if folder is None:
            folder = tokenize_records(data, vq, share, on_progress)
        else:
            check_tokenizer(folder, vq)
    with raise_on_all_processes():
        records = TokenizedRecords(folder, data.records.prompts)
        _check_plan_tokens(config, text.tokenizer, records)
        counts = TokenCounts.in_cache(Path(data.cache_dir), records, text, tokenizer_digest)
        for shard in share.shards(records.manifest):
            counts.count(shard, records.shards[shard])
    check_same_on_all_processes(records.manifest.key, "set of records")
    with raise_on_all_processes():
        _drop_long_records(data, records, counts)
    return records


def _check_plan_tokens(
    config: SftConfig, tokenizer: TextTokenizer, records: TokenizedRecords
) -> None:
    """Compare the plans, of many records some, with what the tokenizer has and the parser reads.

    Raises InputError if plans have boxes and the tokenizer lacks their control tokens; warns of
    plans with marks or coordinates none of which will be read.
    """
    count = min(len(records), _CHECKED_PLANS)
    plans = [records.text(i * len(records) // count)[1] for i in range(count)]
    if not tokenizer.marks_plans:
        if any(BOX_START in plan for plan in plans):
            raise InputError(
                f"the plans of the records hold {BOX_START}, which the tokenizer of init "
                f"{config.init} would spell letter by letter; set add_plan_tokens: true"
            )
        return
    unread = [plan for plan in plans if has_unread_boxes(plan)]
    if unread:
        _log.warning(
            "%d of %d plans have marks or coordinates, but no object with a box that can be read: "
            "training, rewards and report will see no box in such plans. The first is %r; an "
            "object is written %s",
            len(unread), count, unread[0][:120], format_object("name", Box(100, 100, 900, 900)),
        )  # fmt: skip
    elif plans and not any(BOX_START in plan for plan in plans):
        _log.info("none of %d plans holds a box", count)


def _drop_long_records(data: SftDataConfig, records: TokenizedRecords, counts: TokenCounts) -> None:
    """Drop the records that exceed the limits; InputError if too many are too long or unusable."""
    total = records.manifest.records
    results = [shard.result for shard in records.shards]
    unusable = check_usable(results, total, data.records.unusable_limit)
    records.keep(counts.fitting(records))
    too_long = total - unusable - len(records)
    if too_long > data.records.too_long_limit * total:
        raise InputError(
            f"{too_long} of {total} records are longer than data.max_prompt_tokens "
            f"{data.max_prompt_tokens} or data.max_plan_tokens {data.max_plan_tokens}, more "
            f"than the share {data.records.too_long_limit} (data.records.too_long_limit)"
        )
    _log.info("%d records; left out: %d unusable, %d too long", len(records), unusable, too_long)


def to_token_batch(batch: SftExampleBatch, count: int, mesh: Mesh) -> TokenBatch:
    """Put a batch of examples on the mesh; every plan token is in the loss.

    The whole batch has `count` rows; `batch` those of `addressable_rows`.
    """
    T = batch.plan_ids_BT.shape[1]
    mask_BT = np.arange(T)[None, :] < batch.plan_len_B[:, None]
    put = partial(put_addressable_rows, count=count, mesh=mesh)
    return TokenBatch(
        prompt_ids_BC=put(batch.prompt_ids_BC),
        prompt_len_B=put(batch.prompt_len_B),
        plan_ids_BT=put(batch.plan_ids_BT),
        plan_len_B=put(batch.plan_len_B),
        plan_mask_BT=put(mask_BT),
        image_ids_BU=put(batch.image_ids_BU),
    )
