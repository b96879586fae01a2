"""`Pipeline`: the tokens of the commands, edited plans, judges, kept programs, bad input."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import gotr1_jax
from gotr1_jax import Box, InputError, Pipeline
from gotr1_jax.generate import command, describe
from gotr1_jax.generate.arguments import as_image
from gotr1_jax.rewards.base import JudgeRequest
from gotr1_jax.rewards.shapes import ShapesJudge

pytestmark = pytest.mark.usefixtures("compiled_programs")

CAPTIONS = ("a red circle left of a blue square", "a large green star")
SHORT = {"max_plan_tokens": 60}


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_pretrained("embedded", batch_size=3)


@pytest.fixture(scope="module")
def drawn(pipe: Pipeline) -> gotr1_jax.PipelineOutput:
    return pipe(CAPTIONS, n=2, seed=3, judge="shapes", **SHORT)


def gotr1(module: Any, *words: str | Path) -> None:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    module.run(parser.parse_args([str(word) for word in words]))


def results(out: Path) -> list[dict[str, Any]]:
    files = [out / f"{i:05d}" / "result.json" for i in range(len(CAPTIONS))]
    return [sample for file in files for sample in json.loads(file.read_text())["samples"]]


def test_tokens_are_those_of_the_command(pipe, drawn, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS))
    common = ("--seed", "3", "--max-plan-tokens", "60")
    sampled, painted = tmp_path / "sampled", tmp_path / "painted"
    words = ("--prompts", tmp_path / "captions.txt", "--n", "2", "--batch-size", "4")
    gotr1(command, *words, "--out", sampled, *common)
    given = results(sampled)
    assert [sample["plan_ids"] for sample in given] == drawn.plan_ids
    assert [sample["image_ids"] for sample in given] == drawn.image_ids
    assert [sample["plan_text"] for sample in given] == [
        str(plan) + "<begin_of_image>" for plan in drawn.plans
    ]
    assert drawn.prompts == [caption for caption in CAPTIONS for _ in range(2)]
    for i, image in enumerate(drawn.images):
        with Image.open(sampled / f"{i // 2:05d}" / f"image_{i % 2:02d}.png") as stored:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(stored))
    assert pipe.plan(CAPTIONS, 2, 3, **SHORT).plan_ids == drawn.plan_ids

    plans = [drawn.plans[0], str(drawn.plans[2])]
    lines = [
        json.dumps({"prompt": caption, "plan": str(plan)})
        for caption, plan in zip(CAPTIONS, plans, strict=True)
    ]
    (tmp_path / "plans.jsonl").write_text("\n".join(lines))
    words = ("--plans", tmp_path / "plans.jsonl", "--n", "2", "--batch-size", "4")
    gotr1(command, *words, "--out", painted, *common, "--speculative", "8")
    gotr1(command, *words, "--out", painted, *common)  # finished, by whatever window
    again = pipe.paint(CAPTIONS, plans, n=2, seed=3, **SHORT)
    assert [sample["image_ids"] for sample in results(painted)] == again.image_ids
    assert all((logps == 0).all() for logps in again.plan_logps)
    # The plan as sampled and the same plan given have the same image.
    assert again.image_ids[0] == drawn.image_ids[0]


def test_the_same_images_in_fewer_passes(pipe, drawn) -> None:
    fast = pipe(CAPTIONS, n=2, seed=3, speculative=8, **SHORT)
    assert fast.image_ids == drawn.image_ids and fast.plan_ids == drawn.plan_ids
    for ours, one_by_one in zip(fast.image_logps, drawn.image_logps, strict=True):
        np.testing.assert_allclose(ours, one_by_one, atol=1e-4)
    assert len(fast.image_passes) == 4 and max(fast.image_passes) < 64 // 2
    assert drawn.image_passes == []


def test_answers_are_those_of_the_command(pipe, drawn, tmp_path: Path, capsys) -> None:
    drawn.images[0].save(tmp_path / "0.png")
    question = "What is left of the square?"
    words = ("--image", tmp_path / "0.png", "--question", question, "--max-tokens", "8")
    gotr1(describe, *words)
    answer = capsys.readouterr().out.rstrip("\n")
    pixels = np.asarray(drawn.images[0])
    for image in (tmp_path / "0.png", str(tmp_path / "0.png"), drawn.images[0], pixels):
        assert pipe.describe(image, question, max_tokens=8) == answer
    assert pipe.describe([pixels, drawn.images[1]], question, max_tokens=8) is not None


def test_log_probs_and_scores(drawn) -> None:
    assert len(drawn) == 4
    tokens = zip(drawn.plan_ids, drawn.plan_logps, drawn.image_ids, drawn.image_logps)
    for plan_ids, plan_logps, image_ids, image_logps in tokens:
        assert len(plan_ids) == len(plan_logps) and len(image_ids) == len(image_logps) == 64
        for logps in (plan_logps, image_logps):  # rounding may give a little more than 0
            assert (logps <= 1e-5).all() and logps.min() < 0
    requests = [
        JudgeRequest(caption, plan, np.asarray(image), group=i // 2)
        for i, (caption, plan, image) in enumerate(zip(drawn.prompts, drawn.plans, drawn.images))
    ]
    assert drawn.scores == [dict(r.scores) for r in ShapesJudge().judge(requests)]


def test_edits_reach_the_image(pipe) -> None:
    plan = gotr1_jax.parse_plan("").add_object("large red circle", Box(0, 100, 480, 580))
    plan = plan.add_object("large blue square", Box(520, 400, 990, 870))
    moved = plan.replace_box(1, Box(503, 17, 951, 461))
    first, second = (pipe.paint(CAPTIONS[0], p, **SHORT) for p in (plan, moved))
    assert str(first.plans[0]) == str(plan) and str(second.plans[0]) == str(moved)
    assert first.image_ids != second.image_ids
    assert [o.name for o in moved.rename_object(0, "star").remove_object(1).objects] == ["star"]
    assert plan.swap_boxes(0, 1).boxes[0][1] == Box(520, 400, 990, 870)


def test_groups_and_own_functions(pipe, drawn, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "def groups(requests):\n    return [float(r.group) for r in requests]\n"
        "groups.group_wise = True\n"
    )
    out = pipe(CAPTIONS, n=2, seed=3, judge=f"{file}:groups", **SHORT)
    assert [score["groups"] for score in out.scores] == [0, 0, 1, 1]
    assert out.image_ids == drawn.image_ids


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """Names of what is compiled from now on."""
    found: list[str] = []

    def listen(event: str, _: float, **fields: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(str(fields))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def test_programs_are_kept(pipe, drawn, compilations: list[str]) -> None:
    again = pipe(CAPTIONS, n=2, seed=4, **SHORT)
    assert again.image_ids != drawn.image_ids and not compilations
    pipe(CAPTIONS[0], seed=4, greedy=True, **SHORT)
    assert compilations  # another way of sampling is another program


def test_save_and_load(pipe, drawn, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "saved")
    copy = Pipeline.from_pretrained(tmp_path / "saved", batch_size=3)
    assert copy.generation_config == pipe.generation_config
    assert copy(CAPTIONS, n=2, seed=3, **SHORT).image_ids == drawn.image_ids
    with pytest.raises(InputError, match="is the source itself"):
        copy.save_pretrained(tmp_path / "saved")


class Answers:
    """A judge that gives what it was made with."""

    terms, identity = ("own",), "own"

    def __init__(self, results: list[gotr1_jax.JudgeResult]) -> None:
        self.results = results

    def judge(self, _: Any) -> list[gotr1_jax.JudgeResult]:
        return self.results


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p([]), "there is no prompt"),
        (lambda p: p(""), "prompt|caption"),
        (lambda p: p("a cat", n=0), "n is 0"),
        (lambda p: p("a cat", guidence=3.0), "'guidence' is no setting of sampling.*guidance"),
        (lambda p: p("a cat", temperature=-1.0), "temperature"),
        (lambda p: p("a cat", speculative=1), r"speculative is 1; .*\[2, 4096\], or 0"),
        (lambda p: p("a cat", speculative=65), "speculative is 65, and an image has 64 tokens"),
        (lambda p: p("a cat", template="no caption"), "caption"),
        (lambda p: p("a cat", judge="shape"), "judge is 'shape'"),
        (lambda p: p.paint(["a cat"], ["x", "y"]), "2 plans for 1 prompts"),
        (lambda p: p.paint("a cat", "word " * 99, max_plan_tokens=9), "more than the limit of 9"),
        (lambda p: p.describe(np.zeros((4, 4)), "What?"), r"float64 \(4, 4\)"),
        (lambda p: p.describe("/nowhere.png", "What?"), "nowhere.png"),
        (lambda p: p.describe([], "What?"), "no image"),
        (lambda p: p.describe(None, "What?"), "image is null"),
        (lambda p: p.describe(np.zeros((0, 4, 3), np.uint8), "What?"), r"uint8 \(0, 4, 3\)"),
        (lambda p: p.describe(Image.new("RGB", (0, 4)), "What?"), "0 x 4 pixels"),
        (lambda p: p.describe(Image.new("RGB", (4, 4)), None), "question is null"),
        (lambda p: p.describe(Image.new("RGB", (4, 4)), "What?", seed=-1), "seed is -1"),
        (lambda p: p(None), "prompt is null"),
        (lambda p: p(["a cat", None]), "prompt is null"),
        (lambda p: p(b"a cat"), "prompt is 97"),
        (lambda p: p("a cat", n=2.5), "n is 2.5"),
        (lambda p: p("a cat", n=10**12), "n is 1000000000000"),
        (lambda p: p("a cat", seed=-1), "seed is -1"),
        (lambda p: p("a cat", seed=2**32), "seed is 4294967296"),
        (lambda p: p("a cat", seed=1.5), "seed is 1.5"),
        (lambda p: p("a cat", temperature=0), "^temperature is 0"),
        (lambda p: p("a cat", top_p=0), "top_p is 0"),
        (lambda p: p("a cat", guidance=math.nan), "guidance is nan"),
        (lambda p: p("a cat", judge=5), "judge is 5"),
        (lambda p: p.paint("a cat", None), "plan is null"),
        (lambda p: p.paint(["a cat"], [None]), "plan is null"),
        (lambda p: p.paint("a cat", ["x"], judge=Answers([])), "0 results for 1 samples"),
        (lambda p: Pipeline.from_pretrained("embedded", batch_size=2.5), "batch_size is 2.5"),
        (lambda p: Pipeline.from_pretrained("embedded", devices=[]), "no device"),
        (lambda p: Pipeline.from_pretrained("embedded", dtype="float16"), "dtype is 'float16'"),
        (lambda p: Pipeline.from_pretrained("embedded", revision="v1"), "a revision belongs"),
        (lambda p: Pipeline.from_pretrained("embedded", batch_size=0), "batch_size is 0"),
    ],
)
def test_bad_input(pipe, call, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        call(pipe)
    assert "\n" not in str(error.value)


def test_a_judge_that_there_is_not_is_known_before_anything_is_drawn(pipe, monkeypatch) -> None:
    def sample(*_: Any) -> None:
        raise AssertionError("sampled before the judge was looked for")

    monkeypatch.setattr(pipe.runner, "sample", sample)
    for call in (pipe, lambda caption, **words: pipe.paint(caption, "a plan", **words)):
        with pytest.raises(InputError, match="judge is 'shape'"):
            call("a cat", judge="shape")


def test_prompts_and_numbers_of_other_kinds(pipe, drawn) -> None:
    given = (caption for caption in CAPTIONS)
    plans = pipe.plan(given, n=np.int64(2), seed=np.int32(3), max_plan_tokens=np.int64(60))
    assert plans.plan_ids == drawn.plan_ids
    assert pipe.plan(CAPTIONS, 2, 3, temperature=np.float32(1), **SHORT).plan_ids == plans.plan_ids
    unscored = [gotr1_jax.JudgeResult({"own": math.nan})]
    (scores,) = pipe.paint(CAPTIONS[0], "", judge=Answers(unscored), **SHORT).scores
    assert math.isnan(scores["own"])


def test_an_image_of_pillow_is_read_like_its_file(tmp_path: Path) -> None:
    """16-bit gray is scaled, not clipped to white, and the orientation counts."""
    gray = np.linspace(0, 65535, 12).astype(np.uint16).reshape(3, 4)
    Image.fromarray(gray).save(tmp_path / "16.png")
    turned = Image.new("RGB", (8, 4), "red")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    for name, size in (("16.png", (4, 3)), ("turned.jpg", (4, 8))):
        with Image.open(tmp_path / name) as image:
            found = as_image(image)
        assert found.mode == "RGB" and found.size == size
        np.testing.assert_array_equal(np.asarray(found), np.asarray(as_image(tmp_path / name)))
    assert len(np.unique(np.asarray(as_image(Image.fromarray(gray))))) == 12


def test_one_device_that_is_not_the_first() -> None:
    program = (
        "import jax\n"
        "from gotr1_jax import Pipeline\n"
        "load = Pipeline.from_pretrained\n"
        "first, second = (load('embedded', devices=[d]) for d in jax.devices())\n"
        "one, two = (p('a red circle', max_plan_tokens=20) for p in (first, second))\n"
        "assert one.image_ids == two.image_ids\n"
        "for leaf in jax.tree.leaves(second.runner.policy):\n"
        "    assert leaf.devices() == {jax.devices()[1]}, leaf.devices()\n"
        "a, b = (p.describe(one.images[0], 'What?', max_tokens=4) for p in (first, second))\n"
        "assert a == b\n"
        "assert second.paint('a cat', 'a plan', max_plan_tokens=20).image_ids\n"
    )
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, **flags})


def test_the_package_is_imported_without_libraries() -> None:
    program = (
        "import sys, gotr1_jax\n"
        "assert {'jax', 'numpy', 'PIL'}.isdisjoint(sys.modules)\n"
        "assert all(getattr(gotr1_jax, name) is not None for name in gotr1_jax.__all__)\n"
        "assert set(gotr1_jax.__all__) <= set(dir(gotr1_jax))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(AttributeError, match="no attribute 'Pipelin'"):
        gotr1_jax.Pipelin  # noqa: B018
    assert math.isfinite(float(gotr1_jax.__version__.split(".")[0]))
