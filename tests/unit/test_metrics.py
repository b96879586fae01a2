"""Metrics, progress and the run directory."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import pty
import termios
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog

from gotr1_jax.errors import InputError, RunError
from gotr1_jax.io.files import atomic_write, write_json_atomic
from gotr1_jax.parallel.progress import Progress
from gotr1_jax.plan import Box
from gotr1_jax.trainer import metrics as metrics_module
from gotr1_jax.trainer.metrics import MetricsWriter, is_timing, read_metrics
from gotr1_jax.trainer.run_dir import RunDir, create_run_dir, store_config
from gotr1_jax.trainer.samples import (
    SampleRecord,
    drop_samples_after,
    followed_name,
    followed_steps,
    read_samples,
    sample_steps,
    write_samples,
)


def write_steps(run: RunDir, start: int, stop: int, seconds: float) -> None:
    with MetricsWriter(run, start) as writer:
        for step in range(start + 1, stop + 1):
            values = {"reward/total/mean": step / 8, "judge/failed_frac": math.nan}
            writer.write(step, {**values, "time/step": seconds, "lr": jnp.float32(0.5)})


def without_timing(run: RunDir) -> list[dict]:
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{k: v for k, v in line.items() if not is_timing(k)} for line in lines]


def events(run: RunDir) -> list[Event]:
    """The records of every event file: length (8 bytes), checksum (4), data, checksum (4)."""
    found = []
    for path in sorted(run.tensorboard.iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_a_line_a_step_and_the_same_events(tmp_path):
    run = create_run_dir(tmp_path / "run", "a: 1\n", may_exist=False)
    write_steps(run, 0, 2, 1.0)
    assert without_timing(run) == [
        {"step": 1, "reward/total/mean": 0.125, "judge/failed_frac": None, "lr": 0.5},
        {"step": 2, "reward/total/mean": 0.25, "judge/failed_frac": None, "lr": 0.5},
    ]
    assert math.isnan(read_metrics(run.metrics)[1]["judge/failed_frac"])
    found = [(e.step, {v.tag: v.simple_value for v in e.summary.value}) for e in events(run)[2:]]
    assert found == [
        (1, {"reward/total/mean": 0.125, "time/step": 1.0, "lr": 0.5}),
        (2, {"reward/total/mean": 0.25, "time/step": 1.0, "lr": 0.5}),
    ]


def test_a_resumed_file_equals_an_uninterrupted_one(tmp_path):
    whole, resumed = RunDir(tmp_path / "whole"), RunDir(tmp_path / "resumed")
    write_steps(whole, 0, 6, 1.0)
    write_steps(resumed, 0, 4, 2.0)
    with open(resumed.metrics, "a") as file:
        file.write('{"step": 5, "rew')  # killed while it wrote
    assert [line["step"] for line in read_metrics(resumed.metrics)] == [1, 2, 3, 4]
    write_steps(resumed, 2, 6, 3.0)
    assert without_timing(resumed) == without_timing(whole)
    assert [line["time/step"] for line in read_metrics(resumed.metrics)] == [2, 2, 3, 3, 3, 3]
    # TensorBoard drops what came before at or after the step of the second start.
    starts = [e.step for e in events(resumed) if e.session_log.status == SessionLog.START]
    assert starts == [1, 3]


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    run = RunDir(tmp_path)
    writer = MetricsWriter(run)

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "_add_event", full)
    with pytest.raises(RunError, match="disk full: .*metrics.jsonl"):
        writer.write(1, {"lr": 1.0})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="disk full: .*summary.json"):
        write_json_atomic(run.summary, {"total": 1.0})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]
    with pytest.raises(RunError, match="disk full"):
        writer.close()


def test_progress_in_plain_lines(monkeypatch):
    clock = iter([100.0, 104.0, 108.0, 112.0, 116.0])
    monkeypatch.setattr(metrics_module.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    with Progress("grpo", 25, start=20, every_seconds=8.0, stream=stream) as progress:
        for step in range(21, 26):
            progress.update(step, reward=step / 100)
    # 4 s a step after the first one; a line each 8 s, and at the end.
    assert stream.getvalue().splitlines() == [
        "grpo 21/25  reward 0.21",
        "grpo 23/25  4.0 s/step  0:08 left  reward 0.23",
        "grpo 25/25  4.0 s/step  0:00 left  reward 0.25",
    ]


def test_the_last_step_is_one_line_however_often_it_is_told() -> None:
    stream = io.StringIO()
    with Progress("out", 8, unit="megabyte", stream=stream) as progress:
        for done in (0, 8, 8, 8):  # tensors of less than a megabyte
            progress.update(done)
    assert [line.split("  ")[0] for line in stream.getvalue().splitlines()] == [
        "out 0/8",
        "out 8/8",
    ]


def test_progress_bar_on_a_terminal():
    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, (24, 100))
    with open(writer, "w") as stream, Progress("sft", 4, stream=stream) as progress:
        progress.update(2, loss=1.5)
        progress.note("a line between")
        progress.update(4, loss=0.5)
    text = ""
    with contextlib.suppress(OSError):  # the terminal's end is an error, once all is read
        while part := os.read(reader, 4096):
            text += part.decode()
    os.close(reader)
    assert "sft" in text and "4/4" in text and "loss 0.5" in text
    assert "a line between\r\n" in text


def test_run_dir_is_not_mixed_with_another(tmp_path):
    run = create_run_dir(tmp_path / "a" / "run", "steps: 3\n", may_exist=False)
    assert run.config.read_text() == "steps: 3\n"
    assert run.checkpoints.is_dir() and run.samples.is_dir()
    with pytest.raises(InputError, match="already holds a run"):
        create_run_dir(run.root, "steps: 4\n", may_exist=False)
    assert run.config.read_text() == "steps: 3\n"
    # A run that is gone on with keeps what it has until its checkpoint is restored.
    create_run_dir(run.root, "steps: 4\n", may_exist=True)
    assert run.config.read_text() == "steps: 3\n"
    store_config(run, "steps: 4\n")
    assert run.config.read_text() == "steps: 4\n"
    with pytest.raises(InputError, match="is a file"):
        create_run_dir(run.config, "", may_exist=True)


def test_what_a_killed_process_left_half_written_is_cleared(tmp_path):
    run = create_run_dir(tmp_path, "steps: 3\n", may_exist=False)
    write_samples(run.samples, 1, [make_record(0)])
    for path in (run.samples / ".step_000002.tmp77", tmp_path / ".model.old7"):
        path.mkdir()
        (path / "file").touch()
    for name in (".summary.json.tmp77", ".mine", "notes.tmp1"):
        (tmp_path / name).touch()
    before = {path for path in tmp_path.rglob("*") if "7" not in str(path.relative_to(tmp_path))}
    create_run_dir(tmp_path, "steps: 3\n", may_exist=True)
    assert set(tmp_path.rglob("*")) == before


def test_a_line_is_on_disk_when_it_is_written(tmp_path, monkeypatch):
    with MetricsWriter(RunDir(tmp_path)) as writer:
        flushed: list[os.stat_result] = []
        monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.fstat(descriptor)))
        writer.write(1, {"lr": 1.0})
    about = (tmp_path / "metrics.jsonl").stat()
    assert (about.st_ino, about.st_size) in [(found.st_ino, found.st_size) for found in flushed]


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    atomic_write(path, "old")

    def broken(*_args):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched, pytest.raises(RunError, match="cannot write .*a.txt"):
        patched.setattr(os, "fsync", broken)
        atomic_write(path, b"new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"


def make_record(sample_index: int) -> SampleRecord:
    rng = np.random.default_rng(sample_index)
    return SampleRecord(
        caption="a red circle left of a \u2028 blue square 🙂",
        caption_index=3,
        sample_index=sample_index,
        plan_text="plan\nwith a line break",
        planned=(("red circle", Box(1, 2, 300, 400)), ("blue square", Box(9, 9, 1, 1))),
        detections=(),
        scores={"sem": 0.5, "pi": math.nan},
        total=math.nan,
        advantage=-0.25,
        image=rng.integers(0, 256, (8, 6, 3), dtype=np.uint8),
        rationale="unsure",
    )


def test_samples_come_back_as_written(tmp_path):
    records = [make_record(0), replace(make_record(1), image_advantage=0.5)]
    write_samples(tmp_path, 10, records[:1])
    folder = write_samples(tmp_path, 10, records)
    assert folder == tmp_path / "step_000010"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["03_00.png", "03_01.png", "samples.jsonl"]
    for got, want in zip(read_samples(folder), records, strict=True):
        np.testing.assert_array_equal(got.image, want.image)
        assert got.planned == want.planned and got.detections == () and got.rationale == "unsure"
        assert (got.caption, got.plan_text) == (want.caption, want.plan_text)
        assert (got.caption_index, got.sample_index) == (3, want.sample_index)
        assert got.scores["sem"] == 0.5 and math.isnan(got.scores["pi"]) and math.isnan(got.total)
        assert got.advantage == -0.25 and got.image_advantage == want.image_advantage
    lines = (folder / "samples.jsonl").read_text()
    assert '"image_advantage": 0.5' in lines and '"image_advantage": null' in lines
    # A line of an earlier version has one advantage for all tokens.
    earlier = lines.replace(', "image_advantage": 0.5', "").replace(', "image_advantage": null', "")
    assert "image_advantage" not in earlier
    (folder / "samples.jsonl").write_text(earlier)
    assert [r.image_advantage for r in read_samples(folder)] == [None, None]
    with Image.open(folder / "03_01.png") as raw_image:
        assert raw_image.size == (6, 8)


def test_samples_of_earlier_versions_are_read(tmp_path):
    folder = write_samples(tmp_path, 10, [make_record(0)])
    path = folder / "samples.jsonl"
    line = json.loads(path.read_text())
    assert {"detections", "rationale", "raw_answers"} < line.keys()
    assert not {"located", "words", "said"} & line.keys()
    for key in ("detections", "rationale", "raw_answers"):
        del line[key]
    old = {"located": [{"name": "cat", "box": [1, 2, 3, 4]}], "words": "why", "said": {"pi": "no"}}
    path.write_text(json.dumps(line | old) + "\n")
    (record,) = read_samples(folder)
    assert record.detections == (("cat", Box(1, 2, 3, 4)),)
    assert (record.rationale, record.raw_answers) == ("why", {"pi": "no"})


def test_samples_of_later_steps_are_dropped(tmp_path):
    for step in (5, 10, 15):
        write_samples(tmp_path, step, [])
        write_samples(tmp_path, step, [], name=followed_name(step))
    drop_samples_after(tmp_path, 10)
    assert list(sample_steps(tmp_path)) == list(followed_steps(tmp_path)) == [5, 10]
    assert sample_steps(tmp_path / "none") == {}


def test_half_written_samples_never_appear(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(RunError, match="disk full: .*step_000001"):
        write_samples(tmp_path, 1, [make_record(0)])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="step_000001 cannot be read"):
        read_samples(tmp_path / "step_000001")


def test_progress_that_says_the_same_step_twice_has_no_rate_yet() -> None:
    stream = io.StringIO()
    with Progress("pictures", 8, stream=stream, every_seconds=0.0) as progress:
        progress.update(8)
        progress.update(8)
    assert "left" not in stream.getvalue()
