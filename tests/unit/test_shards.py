"""Shards of tokenised records: read as written, prompts drawn, the order resumed exactly."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from gotr1_jax.data.config import PromptsConfig, RecordsConfig
from gotr1_jax.data.pipeline import record_batches
from gotr1_jax.data.records import Record
from gotr1_jax.data.shards import (
    Manifest,
    Shard,
    TokenizedRecords,
    begin_folder,
    read_manifest,
    shard_path,
    write_shard,
)
from gotr1_jax.data.text_tokens import TextFormat, TokenCounts
from gotr1_jax.errors import InputError, RunError
from gotr1_jax.shapes.tokenizer import train_tokenizer
from gotr1_jax.tokenizers.janus import GOTR1_TEMPLATE, TextTokenizer

MANIFEST = Manifest(
    source=("a.jsonl",), files="f", records=7, shard_records=3, caption="caption", plan="plan",
    image="image", prompts=("short", "all", "some"), crop="center", image_size=8, vq="v", tokens=4,
    codes=32,
)  # fmt: skip
KINDS = (
    PromptsConfig("short"),
    PromptsConfig("all", "all", ","),
    PromptsConfig("some", "some", " and "),
)


def record(index: int) -> Record:
    prompts = (("a short one",), ("red", "blue"), ("cat", "dog", "cow")) if index else ((), (), ())
    return Record(index, "", f"a circle {index}", f"plan ö {index}", prompts, b"")


def ids(index: int) -> np.ndarray:
    return np.arange(4) + 4 * index


def write(folder: Path, manifest: Manifest = MANIFEST) -> Path:
    """Three shards of 7 records, of which the fifth is unusable."""
    begin_folder(folder, manifest)
    for shard in range(manifest.shards):
        rows = [(record(i), ids(i)) for i in range(*manifest.span(shard)) if i != 4]
        write_shard(folder, shard, manifest, rows, ["why"] if shard == 1 else [])
    return folder


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    out = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(out)
    return TextTokenizer.from_dir(out)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "new" / "shards")
    assert read_manifest(folder) == MANIFEST
    records = TokenizedRecords(folder)
    kept = [0, 1, 2, 3, 5, 6]
    assert len(records) == 6
    assert [records.text(i) for i in range(6)] == [(f"a circle {k}", f"plan ö {k}") for k in kept]
    found = records.image_ids(np.array([5, 0, 3]))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, [ids(6), ids(0), ids(3)])
    assert [shard.record(0) for shard in records.shards] == [0, 3, 6]
    results = [shard.result for shard in records.shards]
    assert [(r.rows, r.unusable, r.reason) for r in results] == [
        (3, 0, ""),
        (2, 1, "why"),
        (1, 0, ""),
    ]
    assert records.shards[1].ids.dtype == np.uint16
    records.keep(np.array([True, False, True, False, False, True]))
    assert [records.text(i)[0][-1] for i in range(len(records))] == ["0", "2", "6"]


def test_large_codebooks_and_empty_shards(tmp_path: Path) -> None:
    manifest = replace(MANIFEST, codes=2**17, records=2, shard_records=2)
    begin_folder(tmp_path, manifest)
    write_shard(tmp_path, 0, manifest, [(record(1), np.full(4, 2**16 + 1))], ["x"])
    assert TokenizedRecords(tmp_path).image_ids(np.array([0])).tolist() == [[2**16 + 1] * 4]
    write_shard(tmp_path, 0, manifest, [], ["x", "y"])
    assert len(TokenizedRecords(tmp_path)) == 0


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    begin_folder(tmp_path, replace(MANIFEST, source=("elsewhere/a.jsonl",)))
    for change, message in (
        ({"vq": "w"}, "made with vq 'v', now it is 'w'"),
        ({"prompts": ()}, "made with prompts"),
        ({"files": "g"}, "made of other files, which were a.jsonl"),
    ):
        with pytest.raises(InputError, match=message):
            begin_folder(tmp_path, replace(MANIFEST, **change))
    with pytest.raises(InputError, match="made without the prompts 'long'; they have short, all"):
        TokenizedRecords(tmp_path, [PromptsConfig("long")])
    shard_path(tmp_path, 1).unlink()
    with pytest.raises(InputError, match="lacks 1 of 3 shards, the first is shard_00001.arrow"):
        TokenizedRecords(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(InputError, match="is no manifest of image tokens"):
        read_manifest(tmp_path)


def test_damaged_and_foreign_shards_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    path = shard_path(tmp_path, 1)
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"x" * len(whole)):
        path.write_bytes(data)
        with pytest.raises(InputError, match="shard_00001.arrow"):
            Shard(tmp_path, 1, MANIFEST)
    path.write_bytes(shard_path(tmp_path, 0).read_bytes())
    with pytest.raises(InputError, match="does not fit manifest.json"):
        Shard(tmp_path, 1, MANIFEST)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="disk full: .*shard_00000.arrow was not written"):
        write_shard(tmp_path / "deep", 0, MANIFEST, [(record(0), ids(0))], [])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_prompts_are_drawn_by_kind_then_within(tmp_path: Path) -> None:
    records = TokenizedRecords(write(tmp_path), KINDS)
    rng = np.random.default_rng(0)
    assert records.draw_prompt(0, rng) is None  # it has none
    drawn = Counter(records.draw_prompt(1, rng) for _ in range(6000))
    some = ("cat", "cat and dog", "cat and dog and cow")
    assert set(drawn) == {"a short one", "red,blue", *some}
    for text, expected in (("a short one", 2000), ("red,blue", 2000), *((t, 667) for t in some)):
        assert abs(drawn[text] - expected) < 200
    # A list gives one of its texts.
    one = TokenizedRecords(tmp_path, [PromptsConfig("some")])
    assert {one.draw_prompt(1, rng) for _ in range(100)} == {"cat", "dog", "cow"}
    assert TokenizedRecords(tmp_path).draw_prompt(1, rng) is None


def batches_of(folder: Path, codec: TextTokenizer, limit: int = 48):
    records = TokenizedRecords(folder, KINDS)
    return record_batches(records, TextFormat(codec, GOTR1_TEMPLATE, limit, 32), 2, seed=3)


def prompts_of(batch, codec: TextTokenizer) -> list[tuple[int, str]]:
    head, tail = GOTR1_TEMPLATE.split("{caption}")
    texts = [codec.decode(row[1:n]) for row, n in zip(batch.prompt_ids_BC, batch.prompt_len_B)]
    found = [text.removeprefix(head).removesuffix(tail) for text in texts]
    return list(zip(batch.indices_B.tolist(), found))


def test_every_epoch_draws_anew_and_resumes_exactly(tmp_path: Path, codec: TextTokenizer) -> None:
    dataset = batches_of(write(tmp_path), codec)
    iterator = iter(dataset)
    batches = list(islice(iterator, 60))
    for batch in batches:
        for i, index in enumerate(batch.indices_B.tolist()):
            kept = [0, 1, 2, 3, 5, 6][index]
            np.testing.assert_array_equal(batch.image_ids_BU[i], ids(kept))
            plan = batch.plan_ids_BT[i, : batch.plan_len_B[i]]
            assert codec.decode(plan[:-1]) == codec.decode(codec.encode_plan(f"plan ö {kept}"))
            assert plan[-1] == codec.specials.boi
    seen = [pair for batch in batches for pair in prompts_of(batch, codec)]
    assert {text for index, text in seen if index == 0} == {"a circle 0"}
    # 20 epochs: a record's prompt changes from one to the next.
    for index in range(1, 6):
        assert len({text for i, text in seen if i == index}) > 2
    assert len({text for index, text in seen if index}) == 5

    again = iter(dataset)
    next(again)
    for _ in range(3):  # 4 batches: within the second epoch
        next(again)
    state = json.loads(json.dumps(again.get_state()))
    resumed = iter(batches_of(tmp_path, codec))
    resumed.set_state(state)
    for batch, expected in zip(islice(resumed, 20), batches[4:24]):
        for name in vars(batch):
            np.testing.assert_array_equal(getattr(batch, name), getattr(expected, name))


def test_a_caption_stands_in_for_prompts_that_are_too_long(
    tmp_path: Path, codec: TextTokenizer
) -> None:
    folder = write(tmp_path)
    limit = max(len(codec.encode_prompt(f"a circle {i}")) for i in range(7))
    assert len(codec.encode_prompt("cat and dog and cow")) > limit
    for batch in islice(iter(batches_of(folder, codec, limit)), 30):
        assert batch.prompt_ids_BC.shape[1] == limit and batch.prompt_len_B.max() <= limit


def test_token_counts_tell_what_fits(tmp_path: Path, codec: TextTokenizer) -> None:
    records = TokenizedRecords(write(tmp_path / "shards"))

    def counts(max_prompt: int, max_plan: int, template: str = GOTR1_TEMPLATE) -> TokenCounts:
        text = TextFormat(codec, template, max_prompt, max_plan)
        return TokenCounts.in_cache(tmp_path / "cache", records, text, "name")

    first = counts(1, 1)
    assert not first.fitting(records).any()  # counted now
    for shard, rows in enumerate(records.shards):
        first.count(shard, rows)
    prompt, plan = len(codec.encode_prompt("a circle 0")), len(codec.encode_plan("plan ö 0")) + 1
    for limits, expected in (((prompt, plan), 6), ((prompt - 1, plan), 0), ((prompt, plan - 1), 0)):
        assert counts(*limits).fitting(records).sum() == expected
    # Existing counts are used, and damaged ones made anew.
    fit = counts(prompt, plan)
    np.save(fit.path(0), np.full((3, 2), 1000, np.int32))
    fit.count(0, records.shards[0])
    assert fit.fitting(records).tolist() == [False] * 3 + [True] * 3
    fit.path(0).write_bytes(b"")
    fit.count(0, records.shards[0])
    assert fit.fitting(records).all()
    assert counts(1, 1, "{caption}").folder != fit.folder == first.folder


def test_faults_of_the_settings() -> None:
    good = RecordsConfig()
    for changes, message in (
        ({"caption": ""}, "caption is ''"),
        ({"unusable_limit": 1.5}, "unusable_limit is 1.5"),
        ({"shard_records": 0}, "shard_records is 0"),
        ({"files": ()}, "files is empty"),
        ({"prompts": (PromptsConfig("a"), PromptsConfig("a"))}, "give each once"),
    ):
        with pytest.raises(InputError, match=message):
            replace(good, **changes)
