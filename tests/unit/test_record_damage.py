"""Records as they are found: gaps, common shapes of columns, stray files, damaged archives."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from record_files import image, made, write_jsonl, write_parquet, write_tar
from test_shards import MANIFEST, ids, record, write

from gotr1_jax.data.captions import read_captions
from gotr1_jax.data.config import RecordsConfig
from gotr1_jax.data.records import Record, Records, Unusable, find_record_files
from gotr1_jax.data.shards import Shard, write_shard
from gotr1_jax.errors import InputError
from gotr1_jax.plan import has_unread_boxes

CONFIG = RecordsConfig()


def read(path: Path) -> list[Record | Unusable]:
    records = Records([path], CONFIG)
    return list(records.read(0, len(records)))


def usable(path: Path) -> list[bool]:
    return [isinstance(item, Record) for item in read(path)]


def pack(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


TEXT = json.dumps({"caption": "c", "plan": "p"}).encode()


@pytest.mark.parametrize("lacks", [0, 1])
@pytest.mark.parametrize("key", ["caption", "plan", "image"])
def test_no_record_decides_for_all(tmp_path: Path, key: str, lacks: int) -> None:
    rows = [{"caption": "c", "plan": "p", "image": "0.png"} for _ in range(3)]
    del rows[lacks][key]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert usable(path) == [i != lacks for i in range(3)]
    with pytest.raises(InputError, match=f"no column '{key}' .* its columns: "):
        path.write_text(json.dumps(rows[lacks]))
        Records([path], CONFIG)


def test_the_first_sample_of_a_tar_lacks_its_image(tmp_path: Path) -> None:
    members = [("0.json", TEXT), ("1.json", TEXT), ("1.png", image(1))]
    assert usable(pack(tmp_path / "a.tar", members)) == [False, True]


def test_shapes_of_an_image_column(tmp_path: Path) -> None:
    png = image(0)
    (tmp_path / "0.png").write_bytes(png)
    text = base64.b64encode(png).decode()
    broken_lines = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    for value in (
        "0.png", ["0.png"], {"path": "0.png"}, {"bytes": None, "path": "0.png"},
        [{"path": "0.png"}],
        '["0.png"]', '{"path": "0.png"}', text, [text], {"bytes": text}, broken_lines,
        text.rstrip("="), "data:image/png;base64," + text, ["data:image/png;base64," + text],
        f"file://{tmp_path}/0.png", str(tmp_path / "0.png"),
    ):  # fmt: skip
        path = tmp_path / "a.jsonl"
        path.write_text(json.dumps({"caption": ["c"], "plan": "p", "image": value}))
        (item,) = read(path)
        assert isinstance(item, Record) and item.load_image().size, value
    for value in ([], ["0.png", "0.png"], {}, 3, [[]], None, [None], {"path": 3}):
        path.write_text(json.dumps({"caption": "c", "plan": "p", "image": value}))
        assert usable(path) == [False]
    for column in ([[png]], [[{"bytes": png, "path": None}]], [{"bytes": png}], [png]):
        parquet = tmp_path / "a.parquet"
        pq.write_table(pa.table({"caption": ["c"], "plan": ["p"], "image": column}), parquet)
        assert usable(parquet) == [True]


def test_text_that_is_not_utf8_in_parquet(tmp_path: Path) -> None:
    texts = pa.array([b"c", b"\xff", b"d"]).view(pa.string())
    columns = {"caption": texts, "plan": pa.array(["p"] * 3), "image": pa.array([image(0)] * 3)}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert usable(tmp_path / "a.parquet") == [True, False, True]


def test_stray_files_are_no_records(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a", made(2)).rename(tmp_path / "a.jsonl")
    for name in (
        "._a.jsonl", ".ipynb_checkpoints/a.jsonl", "__MACOSX/a.jsonl", ".cache/x.parquet",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\26\7")
    for source in (str(tmp_path), str(tmp_path / "*.jsonl")):
        assert find_record_files(source, CONFIG) == (tmp_path / "a.jsonl",)
    members = [
        ("./._0.json", b"\0\5"), ("__MACOSX/0.json", b"\0"), (".DS_Store", b"\0"),
        ("./0.json", TEXT), ("./._0.png", b"\0"), ("./0.png", image(0)), ("README.md", b"x"),
    ]  # fmt: skip
    assert usable(pack(tmp_path / "a.tar", members)) == [True]


def test_a_tar_that_is_cut_off_or_damaged_is_no_smaller_data_set(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "t", made(4)).read_bytes()
    path = tmp_path / "x.tar"
    path.write_bytes(whole)
    assert len(Records([path], CONFIG)) == 4
    end = len(whole.rstrip(b"\0"))
    end += -end % 512
    second = whole.index(b"ustar", 600) - 257
    cuts = {*range(512, end, 512), end, end - 100, end - 512 - 100, second + 10}
    for cut in sorted(cuts):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"x\.tar"):
            Records([path], CONFIG)
    for data, message in (
        (whole[:second] + b"\xff" * 512 + whole[second + 512 :], "other data|cannot read"),
        (whole + whole, "several tars were joined"),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match=message):
            Records([path], CONFIG)


def test_samples_of_a_tar_whose_files_are_apart(tmp_path: Path) -> None:
    names = ("0.json", "1.json", "0.png", "1.png")
    path = pack(tmp_path / "a.tar", [(n, TEXT if "json" in n else image(0)) for n in names])
    with pytest.raises(InputError, match="files of the sample 0 are not next to each other; sort"):
        Records([path], CONFIG)


def test_files_that_are_no_files(tmp_path: Path) -> None:
    for ending in (".jsonl", ".tar", ".parquet"):
        path = tmp_path / f"x{ending}"
        os.mkfifo(path)
        with pytest.raises(InputError, match="FIFO"):
            Records([path], CONFIG)
    whole = write_parquet(tmp_path / "p", made(4)).read_bytes()
    for cut in range(0, len(whole), len(whole) // 7):
        (tmp_path / "cut.parquet").write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"cut\.parquet"):
            read(tmp_path / "cut.parquet")


@pytest.mark.parametrize("wrong", [32, 255, -1])
def test_image_tokens_outside_the_vocabulary(tmp_path: Path, wrong: int) -> None:
    folder = write(tmp_path)
    wide = replace(MANIFEST, codes=2**17 if wrong < 0 else 256)  # int32 or uint16
    row = ids(0).copy()
    row[2] = wrong
    write_shard(folder, 0, wide, [(record(i), row) for i in range(3)], [])
    with pytest.raises(InputError, match=rf"shard_00000.arrow holds the image token {wrong}; .*31"):
        Shard(folder, 0, MANIFEST)


def test_bad_captions_of_many(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = [f"a red circle {i}" for i in range(95)]
    bad = [None, "", " ", "a\0b", "long " * 50]
    pq.write_table(pa.table({"prompt": good + bad}), "c.parquet")
    rows = [{"prompt": text} for text in (*good, *bad, "\ud800", 3)]
    lines = [json.dumps(row) for row in rows] + ["{", "[" * 9999, "{}"]
    Path("c.jsonl").write_text("\n".join(lines))
    Path("c.txt").write_text("\n".join((*good, "a\x1bb", "long " * 50)))

    def fits(caption: str) -> None:
        if len(caption) > 100:
            raise InputError(f"the prompt has {len(caption)} tokens")

    for name, count in (("c.parquet", 5), ("c.jsonl", 10), ("c.txt", 2)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert read_captions(name, check=fits, unusable_limit=0.1) == tuple(good)
        (message,) = caplog.messages
        assert f"left out {count} of {95 + count} captions" in message
        assert f"{name}, {'row' if name == 'c.parquet' else 'line'} 96" in message
        assert read_captions(name, count=3, check=fits, unusable_limit=0.1)[0] == good[0]
        with pytest.raises(InputError, match=rf"{name}, .* 96.*\({count} of {95 + count} captions"):
            read_captions(name, check=fits, unusable_limit=0.01)


@pytest.mark.parametrize(
    "text, is_unread",
    [
        ("<|obj_start|>cat<|obj_end|> <|box_start|>(1,2),(3,4)<|box_end|>", False),
        ("<|object_ref_start|>cat<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>", True),
        ("a cat (1,2),(300,400)", True),
        ("a cat [0.1, 0.2, 0.5, 0.5]", True),
        ('{"bbox_2d": [1, 2, 3, 4], "label": "cat"}', True),
        ("<phrase>a cat</phrase><object><patch_index_0044></object>", True),
        ("cat<loc_12><loc_3><loc_4><loc_5>", True),
        ("<ref>cat</ref><box>(1,2),(3,4)</box>", True),
        ("<|obj_start|>cat<|obj_end|> <|box_start|>1,2,3,4<|box_end|>", True),
        ("The cat (a tabby) sits to the left of two dogs.", False),
        ("", False),
    ],
)
def test_plans_in_another_grammar(text: str, is_unread: bool) -> None:
    assert has_unread_boxes(text) is is_unread


def test_stray_files_are_no_captions_images_or_samples(tmp_path: Path) -> None:
    from gotr1_jax.evaluation.folders import find_dpg_images
    from gotr1_jax.generate.config import GenerateConfig
    from gotr1_jax.generate.tasks import read_tasks
    from gotr1_jax.rewards.stored_samples import find_samples

    prompts, images, run = (tmp_path / name for name in ("prompts", "images", "run"))
    for folder, name in ((prompts, "a.txt"), (images, "a.png")):
        folder.mkdir()
        (folder / name).write_text("a red circle")
        for stray in ("._a.txt", "README.txt", "Thumbs.db", "desktop.ini", ".DS_Store", "a.png~"):
            (folder / stray).write_bytes(b"\0\xff")
        (folder / "__MACOSX").mkdir()
    config = GenerateConfig(out=tmp_path / "out", prompts=prompts)
    assert [task.caption for task in read_tasks(config)] == ["a red circle"]
    assert [image.name for image in find_dpg_images(images, ["a"])] == ["a.png"]
    line = json.dumps({"caption": "c", "plan_text": "p", "image": "0.png"})
    for folder in ("step_000001", ".ipynb_checkpoints"):
        (run / "samples" / folder).mkdir(parents=True)
        (run / "samples" / folder / "samples.jsonl").write_text(line)
    assert [sample.name for sample in find_samples(run)] == ["step_000001/0"]
