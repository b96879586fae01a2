"""Records of one's own: tokenised once, by one host or several, and learned from."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from record_files import made, write_jsonl, write_parquet
from tiny import (
    SHAPES,
    assert_equal_trees,
    compiled_once,
    interrupt_after,
    record_saves,
    sft_values,
    steady_metrics,
    write_config,
    write_shapes,
)
from tiny_checkpoints import write_tiny

from gotr1_jax import cli
from gotr1_jax.convert.image_tokenizer import load_vq
from gotr1_jax.data.config import RecordsConfig
from gotr1_jax.data.records import Record, Records, crop_square
from gotr1_jax.data.shards import TokenizedRecords, read_manifest
from gotr1_jax.sft.image_encoder import ImageEncoder
from gotr1_jax.tokenizers.janus import PLAN_TOKENS, TextTokenizer
from gotr1_jax.trainer.metrics import read_metrics

COUNT = 11


@pytest.fixture(scope="module")
def vq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with compiled_once(tmp_path_factory.getbasetemp() / "programs"):
        yield write_shapes(tmp_path_factory.mktemp("tiny") / "checkpoint")


def values_of(vq: Path, folder: Path, source: Path | str) -> dict[str, Any]:
    """A job of 2 steps on records, with small shards."""
    values = sft_values(vq, folder / "run")
    values["steps"] = 2
    values["data"] = {
        "source": str(source),
        "records": {"shard_records": 4},
        "max_prompt_tokens": 48,
        "max_plan_tokens": 80,
        "cache_dir": str(folder / "cache"),
    }
    return values


def command(values: dict[str, Any], *words: str) -> int:
    """`gotr1 *words` with the configuration."""
    path = write_config(Path(values["run_dir"]).parent / "sft.yaml", values)
    first = ["train", "sft"] if not words or words[0].startswith("--") else []
    with pytest.MonkeyPatch.context() as patch:
        # The devices of this process are set already.
        patch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)
        return cli.run([*first, *words, "--config", str(path)])


def tokenize(values: dict[str, Any], out: Path, *words: str) -> int:
    return command(values, "tokenize-images", "--out", str(out), "--batch", "1", *words)


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(vq: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A job's values, and the shards of its records made at one go."""
    folder = tmp_path_factory.mktemp("whole")
    values = values_of(vq, folder, write_parquet(folder / "data", made(COUNT)))
    assert tokenize(values, folder / "out") == 0
    return values, folder / "out"


def test_shards_hold_the_records_and_their_tokens(whole, vq: Path) -> None:
    values, out = whole
    assert sorted(shard_bytes(out)) == ["manifest.json", *(f"shard_0000{i}.arrow" for i in "012")]
    manifest = read_manifest(out)
    assert (manifest.records, manifest.tokens, manifest.codes) == (COUNT, 64, 32)
    found = TokenizedRecords(out)
    assert len(found) == COUNT
    tokenizer = load_vq(vq)
    encode = ImageEncoder(tokenizer.config, tokenizer.state)
    records = list(Records([Path(values["data"]["source"])], RecordsConfig()).read(0, COUNT))
    for i, (record, given) in enumerate(zip(records, made(COUNT))):
        assert isinstance(record, Record)
        assert found.text(i) == (given.caption, given.plan)
        assert found.shards[i // 4].record(i % 4) == i
        pixels = crop_square(record.load_image(), 128, "center", 0, i)
        np.testing.assert_array_equal(found.image_ids(np.array([i])), encode(pixels[None]))
    assert len({found.image_ids(np.array([i])).tobytes() for i in range(COUNT)}) == COUNT


def test_hosts_share_the_work(whole, tmp_path: Path) -> None:
    values, out = whole
    for host in "10":
        assert tokenize(values, tmp_path / "out", "--host", host, "--hosts", "2") == 0
        if host == "1":
            assert sorted(shard_bytes(tmp_path / "out"))[1:] == [
                "shard_00001.arrow",
                "shard_00002.arrow",
            ]
    assert shard_bytes(tmp_path / "out") == shard_bytes(out)


def test_killed_between_shards_and_started_again(whole, tmp_path: Path) -> None:
    values, out = whole
    path = write_config(tmp_path / "sft.yaml", values)
    words = ["tokenize-images", "--config", str(path), "--out", str(tmp_path / "out")]
    # The second shard never comes: its file cannot be renamed, and the process waits to be killed.
    program = (
        "import os, sys, time\n"
        "rename = os.replace\n"
        "def replace(a, b):\n"
        "    if 'shard_00001' in str(b):\n"
        "        open(sys.argv[1], 'w').close(); time.sleep(600)\n"
        "    rename(a, b)\n"
        "os.replace = replace\n"
        "from gotr1_jax import cli\n"
        "cli.run(sys.argv[2:])\n"
    )
    waiting = tmp_path / "waiting"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(waiting), *words, "--batch", "1"],
        stderr=subprocess.DEVNULL,
    )
    while not waiting.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = {name for name in shard_bytes(tmp_path / "out") if not name.startswith(".")}
    assert left == {"manifest.json", "shard_00000.arrow"}
    first = os.stat(tmp_path / "out" / "shard_00000.arrow").st_mtime_ns
    assert tokenize(values, tmp_path / "out") == 0
    # The finished shard stayed, what was half-written is gone.
    assert os.stat(tmp_path / "out" / "shard_00000.arrow").st_mtime_ns == first
    assert shard_bytes(tmp_path / "out") == shard_bytes(out)


def test_a_damaged_shard_is_made_anew(whole, tmp_path: Path) -> None:
    values, out = whole
    assert tokenize(values, tmp_path / "out") == 0
    path = tmp_path / "out" / "shard_00001.arrow"
    path.write_bytes(path.read_bytes()[:300])
    assert tokenize(values, tmp_path / "out") == 0
    assert shard_bytes(tmp_path / "out") == shard_bytes(out)


def test_other_settings_and_other_files_are_refused(whole, vq, tmp_path, capsys) -> None:
    values, out = whole

    def refused(message: str, *words: str, source: Path | None = None) -> None:
        given = values if source is None else {**values, "data": {**values["data"]}}
        if source is not None:
            given["data"]["source"] = str(source)
        assert tokenize(given, out, *words) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and message in lines[0] and str(out) in lines[0]

    refused("with crop 'center', now it is 'random, seed 3'", "--data.records.crop", "random",
            "--data.records.crop_seed", "3")  # fmt: skip
    refused("with shard_records 4, now it is 5", "--data.records.shard_records", "5")
    refused("made of other files", source=write_parquet(tmp_path / "p", made(COUNT + 1)))
    other = write_tiny(tmp_path / "other", SHAPES, seed=1)
    refused("with vq '", "--vq", str(other))
    # As a source they are refused for another tokenizer too.
    given = values_of(vq, tmp_path / "job", out)
    (tmp_path / "job").mkdir()
    assert command(given, "--vq", str(other)) == 2
    assert "made with another image tokenizer" in capsys.readouterr().err
    assert command(given, "tokenize-images") == 2
    assert "holds image tokens already" in capsys.readouterr().err
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "manifest.json").write_bytes((out / "manifest.json").read_bytes())
    given["data"]["source"] = str(tmp_path / "half")
    assert command(given) == 2
    assert "lacks 3 of 3 shards" in capsys.readouterr().err


def test_from_shards_alone_and_resumed_within_an_epoch(
    whole, vq: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out = whole
    prompts = [{"key": "tags", "take": "some"}, {"key": "other.deep"}]
    folder = tmp_path / "data"
    made_once = values_of(vq, folder, write_jsonl(folder / "data", made(COUNT)))
    made_once["data"]["records"]["prompts"] = prompts
    assert tokenize(made_once, tmp_path / "out") == 0
    for path in (folder / "data").rglob("*"):  # the shards are enough
        if path.is_file():
            path.unlink()

    def job(name: str) -> dict[str, Any]:
        (tmp_path / name).mkdir()
        values = values_of(vq, tmp_path / name, tmp_path / "out")
        values["data"]["records"]["prompts"] = prompts
        # An epoch has 2 batches of 4: step 3 is in the middle of the second.
        return {**values, "steps": 4, "checkpoint": {"every": 3}}

    straight, stopped = job("straight"), job("stopped")
    with pytest.MonkeyPatch.context() as patch:
        saved = record_saves(patch)
        assert command(straight) == 0
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 4)
        assert command(stopped) == 130
    again = record_saves(monkeypatch)
    assert command(stopped) == 0
    assert sorted(again) == [4]
    assert_equal_trees(again[4], saved[4])
    assert steady_metrics(tmp_path / "stopped" / "run") == steady_metrics(
        tmp_path / "straight" / "run"
    )


def test_two_steps_on_parquet_without_what_cannot_be_used(vq, tmp_path, capsys, caplog) -> None:
    records = made(COUNT)
    for i in (0, 3):
        records[i] = replace(records[i], png=records[i].png[:50])
    records[5] = replace(records[5], plan=records[5].plan * 5)
    path = write_parquet(tmp_path / "data", records)
    values = values_of(vq, tmp_path, path)
    # Refused while the images are tokenised, and again from the shards.
    for _ in range(2):
        assert command(values) == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert "2 of 11 records cannot be used, more than the share 0.01" in message
        assert f"the image {path}, row 1 cannot be read" in message
    allowed = ("--data.records.unusable_limit", "0.2")
    assert command(values, *allowed, "--data.records.too_long_limit", "0.05") == 2
    assert "1 of 11 records are longer than data.max_prompt_tokens 48 or" in capsys.readouterr().err
    with caplog.at_level("INFO", logger="gotr1_jax"):
        assert command(values, *allowed) == 0
    assert "8 records; left out: 2 unusable, 1 too long" in caplog.text
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2]
    assert all(np.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines)


def test_a_tokenizer_learns_the_marks_of_plans(whole, vq: Path, tmp_path: Path, capsys) -> None:
    start = tmp_path / "start"
    shutil.copytree(vq, start)
    spec = json.loads((start / "tokenizer.json").read_text("utf-8"))
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] not in PLAN_TOKENS]
    (start / "tokenizer.json").write_text(json.dumps(spec), "utf-8")
    values = values_of(vq, tmp_path, whole[1]) | {"init": str(start), "model": None}
    assert command(values) == 2
    assert "would spell letter by letter; set add_plan_tokens: true" in capsys.readouterr().err
    values |= {"add_plan_tokens": True, "steps": 1}
    assert command(values) == 0
    assert TextTokenizer.from_dir(tmp_path / "run" / "model").marks_plans


def test_bad_words_of_the_command(whole, tmp_path, capsys) -> None:
    values, _ = whole
    for words, message in (
        (["--host", "1"], "give both --host and --hosts"),
        (["--host", "2", "--hosts", "2"], "--host is 2, --hosts is 2"),
        (["--data.source", "shapes"], "data.source is shapes"),
        (["--data.records.plan", "got"], "has no column 'got' (data.records.plan)"),
        (["--data.sourse", "x"], "did you mean 'data.source'?"),
    ):
        assert tokenize(values, tmp_path / "out", *words) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
