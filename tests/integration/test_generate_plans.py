"""Plans of `gotr1 generate`: sampled alone, written by hand, with captions, unusable ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from fake_generator import FakeImageGenerator, gotr1
from PIL import Image
from tiny_checkpoints import write_tiny

from gotr1_jax import cli
from gotr1_jax.errors import InputError
from gotr1_jax.tokenizers.janus import JANUS_TEMPLATE, TextTokenizer

PLAN = "<|obj_start|>cat<|obj_end|> <|box_start|>(1,2),(30,40)<|box_end|>"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "ckpt")


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gotr1_jax.generate.generator.ImageGenerator", FakeImageGenerator)


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    file = tmp_path / "captions.txt"
    file.write_bytes("a cat\r\n\r\nBjørn's 🟥 dog\r\na cat\r\n a long “red” caption".encode())
    return file


def test_sampled_plans_give_the_same_images(
    tiny: Path, tmp_path: Path, captions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--ckpt", tiny, "--json")
    gotr1(*common, "--prompts", captions, "--out", tmp_path / "whole", "--n", "2")
    whole = capsys.readouterr().out
    plans = tmp_path / "plans"
    gotr1(*common, "--prompts", captions, "--out", plans, "--n", "2", "--plans-only")
    printed = capsys.readouterr().out
    assert (plans / "plans.jsonl").read_text() == printed
    assert "image" not in json.loads(printed.splitlines()[0])["samples"][0]
    assert not list(plans.rglob("*.png"))
    for i, source in enumerate((plans / "plans.jsonl", plans, tmp_path / "whole")):
        gotr1(*common, "--plans", source, "--out", tmp_path / f"from_plans{i}")
        assert capsys.readouterr().out == whole
    gotr1(*common, "--plans", tmp_path / "whole" / "00001" / "result.json", "--out", tmp_path / "b")
    assert json.loads(capsys.readouterr().out)["prompt"] == "Bjørn's 🟥 dog"


def test_plans_by_hand(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = TextTokenizer.from_dir(tiny)
    boi = tokenizer.specials.boi
    file = tmp_path / "plans.jsonl"
    texts = ["", PLAN, PLAN + "<begin_of_image>", "a <begin_of_image> b", "<｜end▁of▁sentence｜>"]
    stale = {"plan_text": "another", "plan_ids": [5, boi]}
    kept = {"plan_text": tokenizer.decode([7, 9, boi], keep_special=True), "plan_ids": [7, 9, boi]}
    lines = [{"prompt": "a cat", "plan": text} for text in texts]
    lines.append({"caption": "a dog", "samples": [stale, kept]})  # type: ignore[dict-item]
    file.write_text("\r\n\r\n".join(json.dumps(line) for line in lines))
    gotr1(
        "--ckpt", tiny, "--plans", file, "--out", tmp_path / "out", "--n", "2", "--json",
        "--template", "janus",
    )  # fmt: skip
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    drawn = [[s["plan_ids"] for s in result["samples"]] for result in results]
    for ids, text in zip(drawn, ["", PLAN, PLAN, *texts[3:]]):
        assert ids == [[*tokenizer.encode_plan(text), boi]] * 2
        assert ids[0].count(boi) == 1 and tokenizer.specials.eos not in ids[0]
    assert results[1]["samples"][0]["objects"] == [{"name": "cat", "box": [1, 2, 30, 40]}]
    edited = [*tokenizer.encode_plan("another"), boi]
    assert drawn[5] == [edited, edited, [7, 9, boi], [7, 9, boi]]
    assert results[0]["sft_prompt"] == JANUS_TEMPLATE.format(caption="a cat")


def test_a_rationale_gives_an_image_and_a_score(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text without boxes: nothing is drawn over the image, nothing listed, all of it kept."""
    monkeypatch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)
    text = "The circle [left, (12,40)] is red.\n\n1. It is **red**; 2 < 3.\n"
    file, out = tmp_path / "plans.jsonl", tmp_path / "out"
    file.write_text(json.dumps({"prompt": "a red circle left of a blue square", "plan": text}))
    gotr1("--ckpt", tiny, "--plans", file, "--out", out)
    assert (out / "00000" / "plan_00.txt").read_text(encoding="utf-8").startswith(text)
    result = json.loads((out / "00000" / "result.json").read_text())
    assert result["samples"][0]["objects"] == []
    image, overlay = (
        Image.open(out / "00000" / f"{name}_00.png").convert("RGB") for name in ("image", "overlay")
    )
    np.testing.assert_array_equal(
        np.asarray(overlay), np.asarray(image.resize(overlay.size, Image.Resampling.NEAREST))
    )
    assert cli.run(["judge", "--input", str(out), "--out", str(tmp_path / "scores.jsonl")]) == 0
    line = json.loads((tmp_path / "scores.jsonl").read_text())
    assert line["plan_text"] == text and line["planned"] == [] and line["scores"]["ri"] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no plan"),
        ("{oops", "line 1 is not JSON"),
        ('{"prompt": "a", "plan": "b"}\n\n["x"]', "line 3 is not an object"),
        ('{"plan": "b"}', "line 1 has no text under 'prompt'"),
        ('{"prompt": "a"}', "line 1 has no text under 'plan'"),
        ('{"prompt": "a", "plan": 3}', "line 1 has no text under 'plan'"),
        ('{"prompt": "a", "samples": [{"plan_ids": [3]}]}', "line 1 has no text under 'plan'"),
        ('{"prompt": " ", "plan": "b"}', "line 1: the caption is empty"),
        ('{"prompt": "a", "plan": "\\ud800"}', "line 1: the plan is not valid Unicode"),
        ('{"prompt": "a", "plan": "%s"}' % ("b " * 99), r"line 1: the plan has \d+ tokens, .* 50"),
    ],
)
def test_bad_plans(tiny: Path, tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "plans.jsonl"
    file.write_text(text)
    with pytest.raises(InputError, match=f"plans.jsonl.*{message}"):
        gotr1("--ckpt", tiny, "--plans", file, "--out", tmp_path / "out", "--max-plan-tokens", "50")
    assert not (tmp_path / "out").exists()


def test_plans_with_prompts(tiny: Path, tmp_path: Path) -> None:
    metadata, plans = tmp_path / "metadata.jsonl", tmp_path / "plans.jsonl"
    metadata.write_text('{"prompt": "a cat", "tag": "x"}\n{"prompt": "a dog", "tag": "y"}\n')
    lines = [json.dumps({"prompt": p, "plan": PLAN}) for p in ("a cat", "a dog", "a cow")]
    words = ("--ckpt", tiny, "--prompts", metadata, "--plans", plans, "--layout", "geneval")
    plans.write_text("\n".join(lines[:2]))
    gotr1(*words, "--n", "4", "--out", tmp_path / "out")
    assert len(os.listdir(tmp_path / "out" / "00001" / "samples")) == 4
    assert json.loads((tmp_path / "out" / "00001" / "metadata.jsonl").read_text())["tag"] == "y"
    for wrong, message in (
        (lines[:1], "metadata.jsonl, line 2: there are fewer plans"),
        (lines, "plans.jsonl, line 3: there are more plans"),
        (lines[1::-1], "plans.jsonl, line 1 is a plan for 'a dog', but"),
    ):
        plans.write_text("\n".join(wrong))
        with pytest.raises(InputError, match=message):
            gotr1(*words, "--out", tmp_path / "wrong")
    with pytest.raises(InputError, match="geneval needs the benchmark's own --prompts"):
        gotr1("--plans", plans, "--layout", "geneval", "--out", tmp_path / "wrong")
    with pytest.raises(InputError, match="--plans-only makes none"):
        gotr1(*words[:4], "--plans-only", "--layout", "geneval", "--out", tmp_path / "wrong")
