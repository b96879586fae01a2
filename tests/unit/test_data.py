"""Sources, pipelines with exact resume, and the cache of image tokens."""

from __future__ import annotations

import json
import os
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gotr1_jax.data.captions import read_captions
from gotr1_jax.data.pipeline import (
    caption_batches,
    pad_rows,
    sft_batches,
)
from gotr1_jax.data.text_tokens import TextFormat
from gotr1_jax.data.token_cache import ImageTokenCache
from gotr1_jax.errors import InputError, RunError
from gotr1_jax.shapes.captions import is_heldout, parse_caption
from gotr1_jax.shapes.dataset import ShapesSource, shapes_captions
from gotr1_jax.shapes.render import render
from gotr1_jax.shapes.tokenizer import train_tokenizer
from gotr1_jax.tokenizers.janus import GOTR1_TEMPLATE, TextTokenizer

CAPTIONS = tuple(f"caption {letter}" for letter in "abcdefg")


class Encoder:
    """Stands for the image tokenizer: two numbers that depend on the image."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        assert pixels.dtype == np.uint8 and pixels.shape[1:] == (128, 128, 3)
        self.batches.append(len(pixels))
        total = pixels.astype(np.int64).sum(axis=(1, 2, 3))
        return np.stack([total % 997, pixels[:, 64, 64, 0]], axis=1)


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    out = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(out)
    return TextTokenizer.from_dir(out)


# --- sources


def test_an_example_depends_on_seed_and_index_alone() -> None:
    one, long = ShapesSource("train", 5, 3, 0.5), ShapesSource("train", 10**9, 3, 0.5)
    assert [one[i] for i in (4, 0)] == [long[i] for i in (4, 0)]
    assert one[0] != one[1]
    assert one[0] != ShapesSource("train", 5, 4, 0.5)[0]
    assert one.key == long.key != ShapesSource("train", 5, 4, 0.5).key
    assert one.text(2) == (one[2].caption, one[2].plan)
    np.testing.assert_array_equal(one.image(2), render(one[2].scene))
    for bad in (
        {"split": "test"}, {"length": 0}, {"unfaithful_fraction": 1.5}, {"max_objects": 0},
    ):  # fmt: skip
        with pytest.raises(InputError):
            ShapesSource(**{"split": "train", "length": 5, **bad})


def test_examples_of_few_objects() -> None:
    whole = ShapesSource("train", 20, 3)
    for most in (1, 2):
        few = ShapesSource("train", 20, 3, max_objects=most)
        assert {len(few[i].scene.objects) for i in range(20)} == set(range(1, most + 1))
        assert few.key != whole.key
        # An example of few objects that is drawn anyway is the same one.
        same = [i for i in range(20) if few[i] == whole[i]]
        assert all(len(whole[i].scene.objects) > most for i in set(range(20)) - set(same))
    assert ShapesSource("train", 20, 3, max_objects=4).key == whole.key


def test_captions_of_the_splits_are_distinct_and_disjoint() -> None:
    train, heldout = shapes_captions("train", 500), shapes_captions("heldout", 200)
    assert len(set(train)) == 500 and len(set(heldout)) == 200
    assert not set(train) & set(heldout)
    assert shapes_captions("train", 100) == train[:100]
    assert shapes_captions("train", 100, seed=1) != train[:100]
    for caption in heldout:
        spec = parse_caption(caption)
        assert spec is not None and is_heldout(spec)


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("lines.txt", b"one\ntwo\n", ("one", "two")),
        ("crlf.txt", b"one\r\n\r\n  two  \r\nthree", ("one", "two", "three")),
        ("bom.txt", b"\xef\xbb\xbfone\n", ("one",)),
        ("inside.txt", "a\u2028b \U0001f389\n\u05e9\u05dc\u05d5\u05dd".encode(), None),
        ("p.jsonl", b'{"prompt": "one", "tag": 1}\r\n\n{"caption": "two"}', ("one", "two")),
    ],
)
def test_caption_files(
    tmp_path: Path, name: str, data: bytes, expected: tuple[str, ...] | None
) -> None:
    (tmp_path / name).write_bytes(data)
    expected = expected or ("a\u2028b \U0001f389", "\u05e9\u05dc\u05d5\u05dd")
    assert read_captions(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b" \r\n\n", "holds no caption"),
        ("a.txt", b"one\n\xff\xfe", "not UTF-8"),
        ("a.jsonl", b'{"prompt": "x"}\n{oops', "line 2 is not JSON"),
        (
            "a.jsonl",
            b'{"text": "x"}',
            "line 1 has no text under 'prompt' or 'caption'; its keys: t",
        ),
        ("a.jsonl", b'{"prompt": "  "}', "line 1 has no text"),
        ("a.jsonl", b'["x"]', "line 1 is not a JSON object"),
    ],
)
def test_unusable_caption_files(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_captions(tmp_path / name)


def test_missing_caption_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_captions(tmp_path / "none.txt")


# Captions of every file, counted apart from our reader: characters that some would take for line
# ends, blank lines and a missing last line end are in them.
REAL = {
    **{
        f"t2i_compbench/{name}_{split}.txt": count
        for name in (
            "color", "shape", "texture", "spatial", "3d_spatial", "non_spatial", "numeracy",
            "complex",
        )
        for split, count in (("train", 700), ("val", 300))
    },
    "geneval_metadata.jsonl": 553,
    "reasongen_r1/geneval_val.txt": 553,
    "reasongen_r1/dpg_val.txt": 1065,
    "reasongen_r1/t2i_val.txt": 2395,
}  # fmt: skip


def test_real_caption_files(shared: Path) -> None:
    root = shared / "prompts"
    files = [p for p in root.rglob("*") if p.suffix in (".txt", ".jsonl")]
    assert {p.relative_to(root).as_posix() for p in files} == set(REAL)
    for name, count in REAL.items():
        captions = read_captions(root / name)
        assert (name, len(captions)) == (name, count)
        text = (root / name).read_bytes().decode("utf-8-sig")
        for caption in captions:
            assert caption == caption.strip() != "" and "\r" not in caption
            assert caption in text or name.endswith(".jsonl")
    whole = read_captions([str(root / "t2i_compbench" / "*_train.txt")])
    assert len(whole) == 8 * 700
    assert any(not caption.isascii() for caption in read_captions(root / "**" / "*.txt"))


def test_several_files_are_one_list(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("two\nthree")
    (tmp_path / "a.jsonl").write_text('{"prompt": "one", "TEXT": "uno"}\n')
    pq.write_table(
        pa.table({"TEXT": ["four", " five "], "caption": ["vier", "fünf"]}),
        tmp_path / "c.parquet",
        row_group_size=1,
    )
    a, b, c = (str(tmp_path / name) for name in ("a.jsonl", "b.txt", "c.parquet"))
    assert read_captions([c, a]) == ("vier", "fünf", "one")
    # Text has no columns; files in the order of their names, a wildcard's sorted.
    assert read_captions([c, b, a], "TEXT") == ("four", "five", "two", "three", "uno")
    assert read_captions(str(tmp_path / "[ab].*")) == ("one", "two", "three")
    assert read_captions([b, b]) == ("two", "three") * 2
    # Spread evenly: the 1st and the 3rd of 5, then all.
    whole = read_captions([a, b, c])
    assert read_captions([a, b, c], count=2) == (whole[0], whole[2])
    assert read_captions([a, b, c], count=5) == whole
    with pytest.raises(InputError, match="6 captions are requested of .*, which holds 5"):
        read_captions([a, b, c], count=6)


def test_unusable_captions_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"

    def fails(table: pa.Table, message: str, column: str = "") -> None:
        pq.write_table(table, path)
        with pytest.raises(InputError, match=message) as error:
            read_captions(path, column)
        assert str(path) in str(error.value) and "\n" not in str(error.value)

    fails(pa.table({"x": ["a"], "y": [1]}), "no column 'prompt' or 'caption' .* it has x, y")
    fails(pa.table({"caption": ["a"], "y": [1]}), "no column 'z' .* it has caption, y", "z")
    fails(pa.table({"caption": ["a", None]}), "row 2 has no text under 'caption'")
    fails(pa.table({"caption": ["a", "b"], "y": [1, 2]}), "row 1 has no text under 'y'", "y")
    fails(pa.table({"caption": pa.array([], pa.string())}), "holds no caption")
    path.write_bytes(b"PAR1")
    with pytest.raises(InputError, match="cannot read captions from .*c.parquet"):
        read_captions(path)
    with pytest.raises(InputError, match="no file fits"):
        read_captions(str(tmp_path / "*.txt"))
    with pytest.raises(InputError, match="is a folder; name files"):
        read_captions(tmp_path)


# --- pipelines


def test_every_epoch_is_a_new_order_of_all_captions() -> None:
    batches = list(islice(iter(caption_batches(CAPTIONS[:6], 2, seed=0)), 12))
    for batch in batches:
        assert batch.captions == tuple(CAPTIONS[i] for i in batch.indices_P)
    epochs = [[i for b in batches[k : k + 3] for i in b.indices_P] for k in range(0, 12, 3)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    again = list(islice(iter(caption_batches(CAPTIONS[:6], 2, seed=0)), 12))
    assert [b.captions for b in again] == [b.captions for b in batches]
    other = list(islice(iter(caption_batches(CAPTIONS[:6], 2, seed=1)), 12))
    assert [b.captions for b in other] != [b.captions for b in batches]


def test_no_batch_holds_a_caption_twice() -> None:
    for batch in islice(iter(caption_batches(CAPTIONS, 3, seed=0)), 50):
        assert len(set(batch.indices_P.tolist())) == 3
    with pytest.raises(InputError, match="a batch of 8 captions cannot be drawn from 7"):
        caption_batches(CAPTIONS, 8, seed=0)


def test_iterators_resume_exactly(codec: TextTokenizer) -> None:
    source = ShapesSource("train", 11, seed=1, unfaithful_fraction=0.3)
    ids_NU = np.arange(22, dtype=np.int32).reshape(11, 2)
    text = TextFormat(codec, GOTR1_TEMPLATE, 48, 80)
    for dataset in (
        caption_batches(CAPTIONS, 3, seed=5),
        sft_batches(source, ids_NU, text, 3, seed=5),
    ):
        iterator = iter(dataset)
        for _ in range(4):
            next(iterator)
        # What a checkpoint keeps: the state must survive being written as JSON.
        state = json.loads(json.dumps(iterator.get_state()))
        expected = [next(iterator) for _ in range(6)]
        resumed = iter(dataset)
        next(resumed)
        resumed.set_state(state)
        for batch in expected:
            other = next(resumed)
            for name in vars(batch):
                np.testing.assert_array_equal(getattr(other, name), getattr(batch, name))


def test_sft_rows_spell_caption_and_plan(codec: TextTokenizer) -> None:
    source = ShapesSource("train", 8, seed=2)
    ids_NU = np.arange(24, dtype=np.uint16).reshape(8, 3)
    text = TextFormat(codec, GOTR1_TEMPLATE, 48, 80)
    batches = sft_batches(source, ids_NU, text, 8, seed=0)
    batch = next(iter(batches))
    assert batch.prompt_ids_BC.shape == (8, 48) and batch.plan_ids_BT.shape == (8, 80)
    for row, index in enumerate(batch.indices_B.tolist()):
        caption, plan = source.text(index)
        prompt_len, plan_len = batch.prompt_len_B[row], batch.plan_len_B[row]
        prompt = batch.prompt_ids_BC[row]
        assert prompt[0] == codec.specials.bos
        assert codec.decode(prompt[1:prompt_len]) == GOTR1_TEMPLATE.format(caption=caption)
        assert set(prompt[prompt_len:].tolist()) == {codec.specials.pad}
        assert codec.decode(batch.plan_ids_BT[row, : plan_len - 1]) == plan
        assert batch.plan_ids_BT[row, plan_len - 1] == codec.specials.boi
        assert set(batch.plan_ids_BT[row, plan_len:].tolist()) == {codec.specials.pad}
        assert batch.image_ids_BU[row].tolist() == [3 * index, 3 * index + 1, 3 * index + 2]
    assert batch.image_ids_BU.dtype == batch.plan_ids_BT.dtype == np.int32


def test_positions_of_a_batch_are_those_rows_of_the_whole_batch(codec: TextTokenizer) -> None:
    source, read = ShapesSource("train", 10, seed=2), []

    class Watched(ShapesSource):
        def text(self, index: int) -> tuple[str, str]:
            read.append(index)
            return source.text(index)

    ids_NU, text = np.arange(20).reshape(10, 2), TextFormat(codec, GOTR1_TEMPLATE, 48, 80)
    rest = (ids_NU, text, 4, 7)
    whole = iter(sft_batches(source, *rest))
    part = iter(sft_batches(Watched("train", 10, seed=2), *rest, np.array([1, 2])))
    wanted: set[int] = set()
    for _ in range(5):  # two batches an epoch
        batch, rows = next(whole), next(part)
        wanted |= set(rows.indices_B.tolist())
        for name in vars(batch):
            np.testing.assert_array_equal(getattr(rows, name), getattr(batch, name)[[1, 2]])
    assert part.get_state() == whole.get_state()
    assert len(read) >= 10 and wanted <= set(read)
    # Prefetched batches included: two rows of a batch, not four.
    assert len(read) <= 2 * (5 + 8)


def test_sft_refuses_what_does_not_fit(codec: TextTokenizer) -> None:
    source = ShapesSource("train", 4)
    ids_NU = np.zeros((4, 2), np.int32)

    def first(max_prompt: int, max_plan: int, ids: np.ndarray = ids_NU) -> object:
        text = TextFormat(codec, GOTR1_TEMPLATE, max_prompt, max_plan)
        return next(iter(sft_batches(source, ids, text, 2, seed=0)))

    with pytest.raises(InputError, match="the prompt has .* the limit of 20.*'a"):
        first(20, 80)
    with pytest.raises(InputError, match="the plan of caption 'a .* over the limit of 10"):
        first(64, 10)
    with pytest.raises(InputError, match="4 examples, but token ids of 3"):
        first(64, 80, ids_NU[:3])


def test_pad_rows_by_hand() -> None:
    ids, lengths = pad_rows([[5, 6], [7], []], 3, 9)
    assert ids.tolist() == [[5, 6, 9], [7, 9, 9], [9, 9, 9]] and lengths.tolist() == [2, 1, 0]


# --- image tokens


def test_image_tokens_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gotr1_jax.data.token_cache._SHARD", 4)
    source, encode = ShapesSource("train", 10), Encoder()
    seen: list[tuple[int, int]] = []
    cache = ImageTokenCache(tmp_path, "weights-1", encode, batch_size=3)
    ids_NU = cache.ids(source, lambda done, total: seen.append((done, total)))
    assert ids_NU.shape == (10, 2) and ids_NU.dtype == np.int32
    for index in range(10):
        np.testing.assert_array_equal(ids_NU[index], Encoder()(source.image(index)[None])[0])
    # Shards of 4, 4 and 2, in batches of 3 that are always full.
    assert encode.batches == [3, 3, 3, 3, 3]
    assert seen[-1] == (10, 10) and seen == sorted(seen)

    again = Encoder()
    np.testing.assert_array_equal(ImageTokenCache(tmp_path, "weights-1", again).ids(source), ids_NU)
    assert again.batches == []
    for other in (
        (ImageTokenCache(tmp_path, "weights-2", again, 5), source),
        (ImageTokenCache(tmp_path, "weights-1", again, 5), ShapesSource("train", 10, seed=1)),
    ):
        again.batches.clear()
        other[0].ids(other[1])
        assert sum(again.batches) >= 10


def test_damaged_and_missing_shards_are_computed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gotr1_jax.data.token_cache._SHARD", 4)
    source = ShapesSource("train", 10)
    ids_NU = ImageTokenCache(tmp_path, "w", Encoder()).ids(source)
    first, second, third = sorted(tmp_path.rglob("*.npz"))
    data = bytearray(first.read_bytes())
    data[-150] ^= 1
    first.write_bytes(data)
    second.write_bytes(second.read_bytes()[:50])
    encode = Encoder()
    np.testing.assert_array_equal(ImageTokenCache(tmp_path, "w", encode, 4).ids(source), ids_NU)
    assert encode.batches == [4, 4]
    # A longer source of the same key keeps the full shards.
    encode.batches.clear()
    longer = ImageTokenCache(tmp_path, "w", encode, 4).ids(ShapesSource("train", 12))
    np.testing.assert_array_equal(longer[:10], ids_NU)
    assert encode.batches == [4]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="disk full: .*ids_00000.npz was not written"):
        ImageTokenCache(tmp_path, "w", Encoder()).ids(ShapesSource("train", 3))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
