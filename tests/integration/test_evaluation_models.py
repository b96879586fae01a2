"""`gotr1 eval` with models: tiny random ones of `transformers`, and the judge in this process."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_evaluators import (
    write_blip,
    write_clip,
    write_depth_anything,
    write_mask2former,
    write_owl,
)
from tiny_qwen import TINY_QWEN, write_tiny_qwen

from gotr1_jax import cli

GENEVAL = [
    {"tag": "counting", "include": [{"class": "dog", "count": 2}],
     "exclude": [{"class": "dog", "count": 3}], "prompt": "two dogs"},
    {"tag": "color_attr", "include": [{"class": "bench", "count": 1, "color": "red"},
     {"class": "computer keyboard", "count": 1, "color": "blue"}], "prompt": "a pair"},
]  # fmt: skip
DPG = """item_id,proposition_id,dependency,tuple,question_natural_language
7,1,0,entity - whole (bench),Is there a bench?
7,2,1,attribute - color (green),Is the bench green?
"""


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)


def evaluate(*words: str | Path) -> None:
    assert cli.run(["eval", *map(str, words)]) == 0


def result(out: Path) -> dict[str, dict[str, object]]:
    return json.loads((out / "scores.json").read_text())["scores"]


@pytest.fixture
def dpg(tmp_path: Path) -> list[str | Path]:
    """Images, prompts and questions of one item."""
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "7.txt").write_text("a green bench")
    (tmp_path / "dpg.csv").write_text(DPG)
    draw(tmp_path / "dpg" / "7.png", 5)
    return ["dpg", "--images", tmp_path / "dpg", "--prompts", tmp_path / "prompts",
            "--questions", tmp_path / "dpg.csv"]  # fmt: skip


def test_the_three_benchmarks_by_models_without_torchvision(
    tmp_path: Path, dpg: list[str | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)
    blip, clip = write_blip(tmp_path / "blip"), write_clip(tmp_path / "clip")
    names = ["bench", "dog", "keyboard"]
    mask2former = write_mask2former(tmp_path / "mask2former", names)
    captions = ["The green bench was next to a dog.", "The red bench lay there."]
    (tmp_path / "complex.txt").write_text("\n".join(captions))
    for i in range(4):
        draw(tmp_path / "complex" / "samples" / f"{captions[i // 2]}_{i:06d}.png", i)
    complex_out = tmp_path / "complex_out"
    words = ["t2i_compbench", "--images", tmp_path / "complex", "--out", complex_out,
             "--prompts", tmp_path / "complex.txt", "--category", "complex", "--phrases", "rules",
             "--vqa-model", blip, "--clip-model", clip,
             "--detector", write_owl(tmp_path / "owl")]  # fmt: skip
    evaluate(*words)
    row = result(complex_out)["complex"]
    assert row["failed"] == 0 and 0 < float(str(row["value"])) < 1
    assert row["remark"] == (
        "OWLv2 in the place of UniDet and noun phrases by rules in the place of spaCy's and "
        "2 captions in the place of 300"
    )
    # All answers are there: models are not even loaded.
    before = (complex_out / "scores.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("gotr1_jax.evaluation.torch_models._TorchModel._load", None)
        evaluate(*words)
    assert (complex_out / "scores.json").read_bytes() == before

    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, GENEVAL)))
    for place, line in enumerate(GENEVAL):
        draw(tmp_path / "geneval" / f"{place:05d}" / "samples" / "00000.png", place)
        (tmp_path / "geneval" / f"{place:05d}" / "metadata.jsonl").write_text(json.dumps(line))
    evaluate("geneval", "--images", tmp_path / "geneval", "--prompts", tmp_path / "m.jsonl",
             "--out", tmp_path / "geneval_out", "--detector", mask2former,
             "--clip-model", clip)  # fmt: skip
    scores = result(tmp_path / "geneval_out")
    assert list(scores) == ["counting", "color_attr", "mean"] and scores["mean"]["failed"] == 0

    evaluate(*dpg, "--n", "4", "--out", tmp_path / "dpg_out", "--vqa-model", blip)
    scores = result(tmp_path / "dpg_out")
    assert list(scores) == ["dpg", "attribute", "entity"]
    assert scores["dpg"]["remark"] == "BLIP-VQA in the place of mPLUG"


def test_depths_and_counts_by_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)
    monkeypatch.setattr("gotr1_jax.evaluation.torch_models._MIN_OWL_SCORE", 0.0)
    captions = {"3d_spatial": "a dog behind a bench", "numeracy": "two dogs and a bench"}
    for place, (name, caption) in enumerate(captions.items()):
        (tmp_path / f"{name}_val.txt").write_text(caption)
        draw(tmp_path / "images" / name / "samples" / f"{caption}_000000.png", place)
    depth, words = write_depth_anything(tmp_path / "depth"), [
        "t2i_compbench", "--images", tmp_path / "images", "--prompts", tmp_path, "--phrases",
        "rules", "--category", *captions, "--detector", write_owl(tmp_path / "owl"),
    ]  # fmt: skip
    evaluate(*words, "--out", tmp_path / "out", "--depth-model", depth)
    rows = result(tmp_path / "out")
    assert list(rows) == ["3d_spatial", "3d_spatial, upright", "numeracy"]
    assert "Depth-Anything in the place of DPT" in str(rows["3d_spatial"]["remark"])
    assert "for want of new_objects.txt" in str(rows["numeracy"]["remark"])
    lines = (tmp_path / "out" / "answers" / "answers.jsonl").read_text().splitlines()
    depths = [
        v for v in map(lambda line: json.loads(line)["value"], lines) if v["kind"] == "nearer"
    ]
    assert len(depths) == 2 and all(-1 <= v["answer"] <= 1 for v in depths)
    assert "takes rows of the depth map for columns" in (tmp_path / "out" / "scores.md").read_text()
    metric = write_depth_anything(tmp_path / "metric", depth_estimation_type="metric", max_depth=9)
    words += ["--out", tmp_path / "bad", "--depth-model", metric]
    assert cli.run(["eval", *map(str, words)]) == 2
    assert "gives depth in metres" in capsys.readouterr().err


def test_the_judge_in_this_process_needs_no_torch(
    tmp_path: Path, dpg: list[str | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)
    monkeypatch.setattr("gotr1_jax.evaluation.torch_models.check_torch", None)
    text = dataclasses.replace(TINY_QWEN.text, num_layers=1)
    vision = dataclasses.replace(TINY_QWEN.vision, num_layers=1, full_attention=(0,))
    sizes = dataclasses.replace(TINY_QWEN, text=text, vision=vision)
    qwen = write_tiny_qwen(tmp_path / "qwen", sizes)
    evaluate(*dpg, "--n", "1", "--out", tmp_path / "out", "--scorer", "judge",
             "--judge.kind", "qwen_vl", "--judge.qwen_vl.checkpoint", qwen,
             "--judge.qwen_vl.dtype", "float32", "--judge.qwen_vl.rows", "4",
             "--judge.questions.reading", "expected", "--mesh.data", "1")  # fmt: skip
    assert result(tmp_path / "out")["dpg"]["failed"] == 0
    lines = (tmp_path / "out" / "answers" / "answers.jsonl").read_text().splitlines()
    shares = [json.loads(line)["value"]["answer"] for line in lines]
    assert len(shares) == 2 and all(0 < share < 1 for share in shares)
