"""`gotr1 judge` on what runs and `gotr1 generate` leave behind."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from judge_server import Server, say, send
from PIL import Image
from tiny_qwen import TINY_QWEN, write_tiny_qwen

from gotr1_jax import cli
from gotr1_jax.config import from_dict
from gotr1_jax.plan import Box, format_object, parse_plan
from gotr1_jax.rewards.command import JudgeJob, default_batch, device_mesh, option_names
from gotr1_jax.rewards.judge_config import JudgeConfig
from gotr1_jax.rewards.scorer_configs import ClipScorerConfig
from gotr1_jax.rewards.stored_samples import find_samples
from gotr1_jax.rewards.terms import TermConfig
from gotr1_jax.tokenizers.janus import SPECIAL_STRINGS
from gotr1_jax.trainer.samples import SampleRecord, write_samples
from gotr1_jax.vlm_engine.config import HttpConfig

BOX = Box(100, 200, 500, 600)
PLAN = format_object("red circle", BOX)
COUNTING = """
from pathlib import Path

def judge(requests):
    with open("calls.txt", "a") as file:
        file.writelines(f"{r.caption}\\n" for r in requests)
    if Path("broken").exists():
        raise RuntimeError("no more")
    return [{"pi": float("nan") if "unsure" in r.caption else r.image.mean() / 255}
            for r in requests]
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "counting_judge.py").write_text(COUNTING)


def record(caption: str, index: int, shade: int = 51) -> SampleRecord:
    return SampleRecord(
        caption=caption, caption_index=index, sample_index=0, plan_text=PLAN,
        planned=parse_plan(PLAN).boxes, detections=(), scores={"pi": 0.0}, total=0.0, advantage=0.0,
        image=np.full((8, 8, 3), shade, np.uint8),
    )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two steps and an evaluation."""
    samples = tmp_path / "run" / "samples"
    write_samples(samples, 10, [record("a", 0), record("b", 1)])
    write_samples(samples, 20, [record("c", 0)])
    write_samples(samples, 0, [record("d", 0, 255)], name="eval_after")
    return tmp_path / "run"


def judge(source: Path, *words: str, out: str = "scores.jsonl") -> int:
    return cli.run(["judge", "--input", str(source), "--out", out, *words])


OWN = ("--judge.kind", "python", "--judge.python.function", "counting_judge:judge",
       "--judge.terms", "[pi]")  # fmt: skip


def lines(name: str = "scores.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def calls() -> list[str]:
    path = Path("calls.txt")
    words = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return words


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def test_a_run_is_judged_and_a_second_command_asks_nothing(run, capsys) -> None:
    assert judge(run, *OWN) == 0
    found = lines()
    assert [x["sample"] for x in found] == [
        "eval_after/00_00", "step_000010/00_00", "step_000010/01_00", "step_000020/00_00"
    ]  # fmt: skip
    assert [x["scores"]["pi"] for x in found] == [1.0, 0.2, 0.2, 0.2]
    assert found[1]["caption"] == "a" and found[1]["plan_text"] == PLAN
    assert found[1]["planned"] == [{"name": "red circle", "box": [100, 200, 500, 600]}]
    assert Path(found[1]["image"]) == run / "samples" / "step_000010" / "00_00.png"
    assert "pi       0.400  0 of 4" in capsys.readouterr().out
    assert calls() == ["d", "a", "b", "c"]
    before = Path("scores.jsonl").read_bytes()
    assert judge(run, *OWN) == 0 and calls() == []
    assert Path("scores.jsonl").read_bytes() == before
    # The run has gone on: only what is new or changed is asked.
    write_samples(run / "samples", 20, [record("c", 0, 0), record("e", 1)])
    assert judge(run, *OWN) == 0 and calls() == ["c", "e"]
    assert [x["caption"] for x in lines()] == ["d", "a", "b", "c", "e"]


def test_a_folder_and_a_file_of_samples(run) -> None:
    step = run / "samples" / "step_000010"
    assert judge(step, *OWN) == 0 and judge(step / "samples.jsonl", *OWN, out="two.jsonl") == 0
    assert [x["sample"] for x in lines()] == ["00_00", "01_00"]
    assert lines() == lines("two.jsonl")


def test_it_goes_on_after_it_was_stopped(run, capsys) -> None:
    write_samples(run / "samples", 30, [record("unsure", 0)])
    assert judge(run, *OWN, "--batch", "2") == 0
    calls()
    partial = Path("scores.jsonl.partial")
    whole = Path("scores.jsonl").read_text()
    first, second, *_ = whole.splitlines(keepends=True)
    Path("scores.jsonl").unlink()
    partial.write_text("\n" + first + second[:40])  # killed in the middle of a line
    assert judge(run, *OWN, "--batch", "2") == 0
    assert calls() == ["a", "b", "c", "unsure"]
    assert Path("scores.jsonl").read_text() == whole and not partial.exists()
    # What nobody could tell is asked again.
    assert judge(run, *OWN) == 0 and calls() == ["unsure"]
    # A judge that breaks leaves the old scores and a way to go on.
    write_samples(run / "samples", 40, [record("f", 0)])
    Path("broken").touch()
    assert judge(run, *OWN) == 1
    assert "counting_judge:judge raised RuntimeError: no more" in error_line(capsys)
    assert Path("scores.jsonl").read_text() == whole
    Path("broken").unlink()
    assert judge(run, *OWN) == 0 and len(lines()) == 6


def write_result(folder: Path, name: str = "result.json", images: Path | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    images = images or folder
    Image.new("RGB", (64, 64), "white").save(images / "image_00.png")
    sample = {"plan_text": f"{PLAN} {SPECIAL_STRINGS['boi']}", "image": "image_00.png"}
    (folder / name).write_text(json.dumps({"prompt": "a red circle", "samples": [sample]}))


def test_what_generate_wrote(tmp_path) -> None:
    for place in ("00000", "00001"):
        write_result(tmp_path / "many" / place)
    write_result(tmp_path / "one")
    write_result(tmp_path / "bench" / "plans", "00003.json", tmp_path / "bench")
    for source, names in (
        ("many", ["00000/image_00", "00001/image_00"]),
        ("one", ["image_00"]),
        ("one/result.json", ["image_00"]),
        ("bench", ["00003/image_00"]),
    ):
        assert [s.name for s in find_samples(tmp_path / source)] == names
    assert find_samples(tmp_path / "one")[0].plan_text == f"{PLAN} "
    # The exact judge of the shapes world: nothing of the plan is in the white image.
    assert judge(tmp_path / "one") == 0
    (line,) = lines()
    assert line["scores"] == {"sem": 1.0, "spa": 1.0, "ri": 0.0, "pi": 0.0}
    assert line["judge"] == "shapes" and "planned 1, 0 of them found" in line["rationale"]


def test_a_server_is_asked_and_its_words_are_kept(run) -> None:
    def behave(handler, number: int, body: Any) -> None:
        content = body["messages"][0]["content"]
        text = " ".join(part["text"] for part in content if part["type"] == "text")
        if "written plan" in text:
            say(handler, '{"score": 9, "reason": "short"}')
        elif "sketch" in text:
            say(handler, "lovely")
        elif "every instance" in text:
            # 28 by 28 is what is sent of 8 by 8.
            say(handler, '```json\n[{"bbox_2d": [0, 0, 14, 28], "label": "circle"}]\n```')
        else:
            send(handler, 503, b"")

    with Server(behave) as server:
        words = ("--judge.kind", "http", "--judge.http.url", server.url, "--judge.http.model",
                 "m", "--judge.http.retries", "0", "--judge.cache.folder", "cache")  # fmt: skip
        assert judge(run, *words) == 0
        asked = len(server.bodies)
        Path("scores.jsonl").unlink()
        assert judge(run, *words) == 0
        again = len(server.bodies) - asked
    (line, *_) = lines()
    assert line["scores"]["sem"] == 0.9 and line["scores"]["spa"] is line["scores"]["pi"] is None
    # (0,0)-(500,999) found, (100,200)-(500,600) planned: 160 of 499.5 thousand.
    assert line["detections"] == [{"name": "red circle", "box": [0, 0, 500, 999]}]
    assert line["scores"]["ri"] == pytest.approx(160 / 499.5)
    assert line["raw_answers"]["sem"] == '{"score": 9, "reason": "short"}'
    assert line["raw_answers"]["spa"] == "lovely" and "pi failed: status 503" in line["rationale"]
    # Four samples of two images and one plan. At first 4 sem, 4 + 4 spa (unreadable), 2 boxes
    # and 4 pi; from the cache then all but spa and pi.
    assert asked == 18 and again == 12


def test_ctrl_c_keeps_what_a_slow_server_has_answered(run, capsys) -> None:
    def behave(handler, number: int, body: Any) -> None:
        if slow and number == 3:  # of the third sample
            os.kill(os.getpid(), signal.SIGINT)
            server.ended.wait(60)
        say(handler, '{"score": 9}')

    slow = True
    with Server(behave) as server:
        words = ("--judge.kind", "http", "--judge.http.url", server.url, "--judge.http.model", "m",
                 "--judge.terms", "[pi]")  # fmt: skip
        for index in range(3):
            write_samples(run / "samples", 40 + index, [record("a", 0, 100 + index)])
        assert judge(run, *words, "--batch", "1") == 130
        assert error_line(capsys) == "gotr1: error: interrupted"
        assert not Path("scores.jsonl").exists()
        assert len(Path("scores.jsonl.partial").read_text().split("\n")) == 1 + 2 + 1
        slow, asked = False, len(server.bodies)
        assert judge(run, *words) == 0
    assert len(server.bodies) - asked == 7 - 2 and len(lines()) == 7
    small = JudgeConfig("http", http=HttpConfig("http://a/v1", "m", concurrency=4))
    assert (default_batch(small), default_batch(JudgeConfig())) == (8, 64)
    both = JudgeConfig(terms=("sem",), also=(dataclasses.replace(small, terms=("pi",)),))
    assert default_batch(both) == 8
    server = {"http": {"url": "http://a", "model": "m", "concurrency": 3, "batch_size": 2}}
    assert default_batch(JudgeConfig(), {"red": from_dict(TermConfig, server)}) == 12


def test_a_model_judges_on_all_devices(run, tmp_path, capsys) -> None:
    text = dataclasses.replace(TINY_QWEN.text, num_layers=1)
    vision = dataclasses.replace(TINY_QWEN.vision, num_layers=1, full_attention=(0,))
    tiny = dataclasses.replace(TINY_QWEN, text=text, vision=vision)
    checkpoint = write_tiny_qwen(tmp_path / "qwen", tiny)
    words = ("--judge.kind", "qwen_vl", "--judge.qwen_vl.checkpoint", str(checkpoint),
             "--judge.qwen_vl.dtype", "float32", "--judge.qwen_vl.rows", "4",
             "--judge.questions.reading", "expected", "--judge.terms", "[pi]")  # fmt: skip
    for out, devices in (("one.jsonl", "1"), ("two.jsonl", "2")):
        assert judge(run, *words, "--mesh.data", devices, out=out) == 0
    alone, spread = ([line["scores"]["pi"] for line in lines(f"{n}.jsonl")] for n in ("one", "two"))
    np.testing.assert_allclose(spread, alone, atol=1e-4)
    assert len(set(spread)) > 1
    assert judge(run, *words, "--mesh.data", "3", "--mesh.fsdp", "5") == 2
    assert "needs 15 devices" in error_line(capsys)
    hps = JudgeConfig("hps", hps=ClipScorerConfig("nowhere"))
    for config in (hps, JudgeConfig(also=(hps,))):
        mesh = device_mesh(JudgeJob(config))
        assert mesh is not None and mesh.size == jax.device_count()
    assert device_mesh(JudgeJob(JudgeConfig("http", http=HttpConfig("http://a/v1", "m")))) is None


def test_a_configuration_file(run, tmp_path) -> None:
    (tmp_path / "judge.yaml").write_text(
        "judge: {terms: [sem], also: [{kind: python, terms: [pi], "
        "python: {function: 'counting_judge:judge'}}]}\n"
    )
    assert judge(run, "--config", "judge.yaml", "--judge.terms", "[sem, spa]") == 0
    assert list(lines()[0]["scores"]) == ["sem", "spa", "pi"]


def test_no_score_at_all_is_a_failure(tmp_path, capsys) -> None:
    write_samples(tmp_path / "run" / "samples", 1, [record("unsure", 0)])
    assert judge(tmp_path / "run", *OWN) == 1
    assert "could not score any of 1 samples" in error_line(capsys)
    assert lines()[0]["scores"] == {"pi": None}


def test_input_that_cannot_be_judged(run, tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.jsonl").write_text("{\n")
    (tmp_path / "list.jsonl").write_text("[]\n")
    (tmp_path / "keys.jsonl").write_text('{"caption": "a", "plan_text": "b"}\n')
    write_result(tmp_path / "grid")
    grid = json.loads((tmp_path / "grid" / "result.json").read_text())
    grid["samples"] *= 2
    (tmp_path / "grid" / "result.json").write_text(json.dumps(grid))
    for source, message in (
        ("nowhere", "no such file or folder"),
        ("empty", "nothing to judge in"),
        ("text.jsonl", "line 1 is not JSON"),
        ("list.jsonl", "line 1 is not a JSON object"),
        ("keys.jsonl", "line 1: a sample has no image"),
        ("grid", "have the image image_00: a grid cannot be judged"),
    ):
        assert judge(tmp_path / source) == 2
        assert message in error_line(capsys)
    (run / "samples" / "step_000010" / "00_00.png").write_bytes(b"no image")
    assert judge(run) == 2 and "00_00.png is not an image" in error_line(capsys)
    assert not Path("scores.jsonl").exists()


def test_options_that_cannot_work(run, tmp_path, capsys) -> None:
    for words, message in (
        (("--batch", "0"), "--batch is 0"),
        (("--judge.kind", "oracle"), "judge.kind is 'oracle'"),
        (
            ("--judge.kind", "http", "--judge.http.url", "http://host"),
            "'judge.http.model' is missing",
        ),
        (("--judge.kind", "qwen_vl"), "qwen_vl"),
        (("--judge.qwen2_5_vl.rows", "many"), "judge.qwen_vl.rows is 'many'"),
        (("--judge.http.timeout", "soon"), "judge.http"),
        (("--config", "nowhere.yaml"), "cannot read configuration"),
    ):
        assert judge(run, *words) == 2, words
        assert message in error_line(capsys)
    assert judge(run, out=str(tmp_path)) == 2 and "is a folder" in error_line(capsys)
    names = list(option_names())
    assert {"judge.http.url", "mesh.fsdp"} < set(names)
    assert not {"judge.also", "judge.http", "judge", "mesh"} & set(names)


def test_scores_of_others_are_not_overwritten(run, capsys) -> None:
    assert judge(run, *OWN) == 0
    kept = Path("scores.jsonl").read_text()
    assert judge(run) == 2 and "scores of another judge" in error_line(capsys)
    assert judge(run / "samples" / "step_000010", *OWN) == 2
    assert "samples that are not in --input" in error_line(capsys)
    assert Path("scores.jsonl").read_text() == kept
    Path("notes.txt").write_text("my notes\n")
    assert judge(run, *OWN, out="notes.txt") == 2
    assert "line 1 is no line of scores" in error_line(capsys)
    assert Path("notes.txt").read_text() == "my notes\n"
