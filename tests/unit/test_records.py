"""Records of every kind of file: read alike, by number, and refused in one clear line."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants
from PIL import Image
from record_files import WRITERS, image, made, write_jsonl, write_parquet, write_tar

from gotr1_jax.config import load_config
from gotr1_jax.data.config import PromptsConfig, RecordsConfig
from gotr1_jax.data.records import (
    Record,
    Records,
    Unusable,
    crop_square,
    find_record_files,
    fingerprint_files,
    locate_square,
    parse_literal,
    pick,
)
from gotr1_jax.errors import InputError
from gotr1_jax.sft.config import SftConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PROMPTS = (PromptsConfig("tags"), PromptsConfig("other.deep"), PromptsConfig("caption"))
CONFIG = RecordsConfig(prompts=PROMPTS)


def texts_and_pixels(record: Record | Unusable) -> tuple:
    assert isinstance(record, Record)
    pixels = np.asarray(record.load_image())
    return record.index, record.caption, record.plan, record.prompts, pixels.tobytes()


@pytest.mark.parametrize("kind", WRITERS)
def test_all_kinds_of_files_hold_the_same_records(kind: str, tmp_path: Path) -> None:
    given = made(10)
    records = Records([WRITERS[kind](tmp_path / kind, given)], CONFIG)
    assert len(records) == 10
    expected = [
        (
            i,
            r.caption,
            r.plan,
            (tuple(r.extra["tags"]), tuple(r.extra["other"]["deep"]), (r.caption,)),
            np.asarray(Image.open(io.BytesIO(r.png))).tobytes(),
        )
        for i, r in enumerate(given)
    ]
    assert [texts_and_pixels(r) for r in records.read(0, 10)] == expected
    # Any span of them, also across row groups and empty.
    for start, stop in ((2, 3), (3, 6), (5, 10), (9, 10), (4, 4)):
        assert [texts_and_pixels(r) for r in records.read(start, stop)] == expected[start:stop]


def test_several_files_are_one_source(tmp_path: Path) -> None:
    given = made(9)
    parts = (given[:2], given[2:6], given[6:])
    paths = [
        write(tmp_path / str(i), part)
        for i, (write, part) in enumerate(zip(WRITERS.values(), parts))
    ]
    records = Records(paths, CONFIG)
    found = [r for r in records.read(1, 8) if isinstance(r, Record)]
    assert [(r.index, r.caption) for r in found] == [(i, given[i].caption) for i in range(1, 8)]
    assert found[0].where == f"{paths[0]}, row 2" and found[-1].where == f"{paths[2]}, sample 2"
    # Names: wildcards, a folder, a list; sorted within a name.
    for source in (str(tmp_path / "*" / "records.*"), str(tmp_path), list(map(str, paths))):
        assert find_record_files(source, CONFIG) == tuple(paths)
    only = RecordsConfig(files=("1/*",))
    assert find_record_files(str(tmp_path), only) == (paths[1],)


def test_the_key_of_files_depends_on_names_and_sizes(tmp_path: Path) -> None:
    one, two = (write_tar(tmp_path / name / "t", made(3)) for name in "ab")
    assert fingerprint_files([one]) == fingerprint_files([two])
    assert fingerprint_files([one]) != fingerprint_files([write_tar(tmp_path / "c" / "t", made(4))])
    assert fingerprint_files([one, two]) != fingerprint_files([two, one])


def test_what_a_value_may_be() -> None:
    assert pick({"a": {"b": 1}}, "a.b") == 1 and pick({"a.b": 2, "a": {"b": 1}}, "a.b") == 2
    assert pick({"a": '{"b": ["x"]}'}, "a.b") == ["x"]
    assert pick({"a": b'{"b": 3}'}, "a.b") == 3
    assert pick({"a": "text"}, "a.b") is None and pick({}, "a") is None
    assert parse_literal("['it''s', \"b\"]") == ["its", "b"]
    assert parse_literal("[not a list") == "[not a list" and parse_literal("[photo] of a cat") != []


def test_the_fields_of_reasongen_r1(tmp_path: Path) -> None:
    config = load_config(SftConfig, CONFIGS / "reasongen_r1_sft.yaml").data.records
    lists = {"paraphrases": ["p1", "p2"], "varied_captions": ["v"], "tags": ["t1", "t2"]}
    spelled = {"paraphrases": "['p1', \"p2\"]", "varied_captions": '["v"]', "tags": '["t1", "t2"]'}
    expected = (("short",), ("p1", "p2"), ("v",), ("t1", "t2"), ("o1", "o2"))
    for i, (nested, found) in enumerate(
        (
            ({"short_caption": "short", **lists, "object_prompts": ["o1", "o2"]}, expected),
            ({"short_caption": "short", **spelled, "object_prompts": '["o1", "o2"]'}, expected),
            ({"short_caption": None, **lists, "object_prompts": []}, ((), *expected[1:4], ())),
        )
    ):
        for spell in (lambda x: x, json.dumps):  # a struct, or JSON in a text
            table = pa.table(
                {
                    "brief_caption": ["brief"],
                    "detailed_caption": ["A long text."],
                    "image": [{"bytes": image(0), "path": None}],
                    "augmented_prompts": [spell(nested)],
                }
            )
            path = tmp_path / f"{i}.parquet"
            pq.write_table(table, path)
            (record,) = Records([path], config).read(0, 1)
            assert isinstance(record, Record)
            assert (record.caption, record.plan) == ("brief", "A long text.")
            assert record.prompts == found


def test_unusable_records_give_their_reason(tmp_path: Path) -> None:
    good = {"caption": "c", "plan": "p", "image": "0.png"}
    rows = [
        good,
        {**good, "plan": " "},
        {**good, "caption": None},
        {"plan": "p", "image": "0.png"},
        {**good, "image": None},
        {**good, "image": "data:image/png;base64,@@"},
        {**good, "caption": "\ud800"},
        {**good, "image": "nowhere.png"},
        {**good, "image": "bad.png"},
    ]
    (tmp_path / "0.png").write_bytes(image(0))
    (tmp_path / "bad.png").write_bytes(image(0)[:60])
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = list(Records([path], RecordsConfig()).read(0, 9))
    reasons = [r.reason if isinstance(r, Unusable) else None for r in found]
    assert reasons[0] is None and reasons[7:] == [None, None]
    assert reasons[1] == f"{path}, row 2 has no text under 'plan'"
    assert [r.split("row ")[1] for r in reasons[2:7] if r] == [
        "3 has no text under 'caption'",
        "4 has no text under 'caption'",
        "5 has no image under 'image'",
        "6 has no image under 'image'",
        "7 has no text under 'caption'",
    ]
    for record, message in zip(found[7:], ("nowhere.png cannot be read: No such", "bad.png")):
        assert isinstance(record, Record)
        with pytest.raises(InputError, match=message):
            record.load_image()


@pytest.mark.parametrize("kind", WRITERS)
def test_a_missing_column_is_one_clear_line(kind: str, tmp_path: Path) -> None:
    path = WRITERS[kind](tmp_path / kind, made(2))
    for config, field in (
        (RecordsConfig(plan="rationale"), "plan"),
        (RecordsConfig(image="jpg"), "image"),
        (RecordsConfig(prompts=(PromptsConfig("tags"), PromptsConfig("a.b"))), "prompts[1].key"),
    ):
        with pytest.raises(InputError) as error:
            Records([path], config)
        text = str(error.value)
        assert text.startswith(f"{path} has no column '") and f"(data.records.{field})" in text
        assert "caption" in text.split("its columns: ")[1] and "\n" not in text


def test_unusable_files_are_one_clear_line(tmp_path: Path) -> None:
    def fails(name: str, data: bytes, message: str) -> None:
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(InputError, match=message) as error:
            list(Records([path], RecordsConfig()).read(0, 2))
        assert str(path) in str(error.value) and "\n" not in str(error.value)

    good = b'{"caption": "c", "plan": "p", "image": "i"}\n'
    for line, reason in (
        (b"{oops\n", "row 2 is not JSON"),
        (b"[1]\n", "row 2 is not a JSON object"),
        (b'{"caption": "\xff"}\n', "row 2 is not JSON in UTF-8"),
        (b"[" * 9999, "row 2 is nested more than 100 levels deep"),
        (good[:30], "row 2 is not JSON"),  # cut off
    ):
        (tmp_path / "a.jsonl").write_bytes(good + line)
        _, second = Records([tmp_path / "a.jsonl"], RecordsConfig()).read(0, 2)
        assert isinstance(second, Unusable) and reason in second.reason
    fails("a.jsonl", b"\n \n", "holds no record")
    fails("a.csv", b"x", "its name must end in .jsonl, .parquet, .tar")
    fails("a.parquet", b"PAR1 no", "cannot read records")
    whole = write_parquet(tmp_path / "p", made(4)).read_bytes()
    fails("b.parquet", whole[: len(whole) // 2], "cannot read records")
    tar = write_tar(tmp_path / "t", made(2)).read_bytes()
    fails("a.tar", b"\x1f\x8b" + tar, "must be a tar that is not compressed")
    fails("b.tar", tar[:4200], "cannot read records")
    empty = io.BytesIO()
    tarfile.open(fileobj=empty, mode="w").close()
    fails("c.tar", empty.getvalue(), "holds no record")
    nothing = pa.table({"caption": pa.array([], pa.string())})
    pq.write_table(nothing, tmp_path / "n.parquet")
    with pytest.raises(InputError, match="n.parquet holds no record"):
        Records([tmp_path / "n.parquet"], RecordsConfig())
    for name in ("none.jsonl", "none.parquet", "none.tar"):
        with pytest.raises(InputError, match="cannot read records from .*none"):
            Records([tmp_path / name], RecordsConfig())


def test_names_that_mean_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no file fits"):
        find_record_files(str(tmp_path / "*.jsonl"), RecordsConfig())
    with pytest.raises(InputError, match="holds no file that fits"):
        find_record_files(str(tmp_path), RecordsConfig())
    path = str(write_jsonl(tmp_path / "j", made(1)))
    with pytest.raises(InputError, match="named twice"):
        find_record_files([path, path], RecordsConfig())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(InputError, match="no data at org/set: .* hub cannot be reached") as error:
        find_record_files("org/set", RecordsConfig())
    assert "\n" not in str(error.value)


def test_a_hub_data_set_is_found_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "hub" / "datasets--org--set" / "snapshots" / ("0" * 40)
    path = write_parquet(snapshot / "data", made(2))
    (snapshot / "README.md").write_text("no records")
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert find_record_files("org/set", RecordsConfig()) == (path,)


def test_squares_by_hand() -> None:
    assert locate_square(10, 4, "center", 0, 0) == (3, 0, 7, 4)
    assert locate_square(4, 9, "center", 0, 0) == (0, 2, 4, 6)
    assert locate_square(5, 5, "random", 1, 2) == (0, 0, 5, 5)
    boxes = {locate_square(8, 4, "random", 7, i) for i in range(200)}
    assert boxes == {(x, 0, x + 4, 4) for x in range(5)}
    assert locate_square(800, 4, "random", 7, 3) == locate_square(800, 4, "random", 7, 3)
    assert locate_square(800, 4, "random", 7, 3) != locate_square(800, 4, "random", 8, 3)


def test_squares_keep_what_is_inside_and_nothing_else() -> None:
    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:, 4:8] = (10, 200, 30)
    image = Image.fromarray(pixels)
    found = crop_square(image, 8, "center", 0, 0)
    assert found.shape == (8, 8, 3) and found.dtype == np.uint8
    # Nothing of the black around the square leaks in.
    assert (found == (10, 200, 30)).all()
    np.testing.assert_array_equal(
        crop_square(image.crop((4, 0, 8, 4)), 4, "center", 0, 0), pixels[:, 4:8]
    )
