"""`gotr1 eval given_plans` without a model: moved boxes, the stages, the table's numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gotr1_jax.cli import run
from gotr1_jax.evaluation import given_plans, true_images
from gotr1_jax.evaluation.box_edits import SCALES, move_box
from gotr1_jax.evaluation.given_plans import GivenPlansConfig, make_cases
from gotr1_jax.plan import Box, Plan, add_object, iou, parse_plan
from gotr1_jax.shapes.render import render
from gotr1_jax.shapes.vocabulary import BORDER, IMAGE_SIZE, MIN_GAP

pytestmark = pytest.mark.usefixtures("devices_as_they_are")

PLAN = add_object(
    add_object(parse_plan(""), "small red circle", Box(100, 100, 300, 320)),
    "large blue square", Box(500, 500, 900, 900),
)  # fmt: skip


def boxes(plan: Plan) -> list[Box]:
    return [box for _, box in plan.boxes]


def test_moved_boxes_keep_clear_and_take_any_thousandth() -> None:
    left, moved, gap = set(), [0, 0], MIN_GAP - 1
    for seed in range(200):
        plan = move_box(np.random.default_rng(seed), PLAN)
        assert plan is not None
        (changed,) = (i for i in (0, 1) if boxes(plan)[i] != boxes(PLAN)[i])
        moved[changed] += 1
        new, old, other = boxes(plan)[changed], boxes(PLAN)[changed], boxes(PLAN)[1 - changed]
        assert min(new.x1, new.y1) >= BORDER and max(new.x2, new.y2) <= 999 - BORDER
        grown = Box(new.x1 - gap, new.y1 - gap, new.x2 + gap, new.y2 + gap)
        assert iou(grown, other) == 0
        factor = (new.x2 - new.x1) / (old.x2 - old.x1)
        assert SCALES[0] - 0.005 <= factor <= SCALES[1] + 0.005
        left.add(new.x1 % 10)
        assert plan.objects[changed].name == PLAN.objects[changed].name
    assert left == set(range(10)) and min(moved) > 20


def test_a_plan_without_room_or_boxes_is_not_moved() -> None:
    rng = np.random.default_rng(0)
    full = add_object(parse_plan(""), "large red square", Box(0, 0, 999, 999))
    tight = add_object(full, "small blue circle", Box(10, 10, 200, 200))
    for plan in (parse_plan("nothing"), tight, parse_plan("<|obj_start|>a cat<|obj_end|>")):
        assert move_box(rng, plan) is None


def test_edits_are_of_the_first_scenes_and_depend_on_the_seed(tmp_path: Path) -> None:
    config = GivenPlansConfig(tmp_path, "embedded", captions=6, edits=4)
    cases = make_cases(config)
    assert [case.edited is not None for case in cases] == [True] * 4 + [False] * 2
    assert cases == make_cases(config)
    other = make_cases(GivenPlansConfig(tmp_path, "embedded", captions=6, edits=4, seed=1))
    assert [c.caption for c in other] != [c.caption for c in cases]


class TrueImages:
    """Draws the true scene, whatever the plan says; its tokenizer is perfect."""

    image_size = IMAGE_SIZE

    def __init__(self, *_: Any) -> None:
        self.drawn: list[str] = []

    def draw_images(self, rows: Any) -> list[Any]:
        self.drawn += [row.task.plans[0].text for row in rows]
        cases = make_cases(GivenPlansConfig(Path("."), "embedded", captions=5, edits=3))
        return [([0], render(cases[row.task.index].scene)) for row in rows]

    def __call__(self, pixels: np.ndarray) -> Any:
        return np.zeros((len(pixels), 64), np.int32), pixels


@pytest.fixture
def true_drawing(monkeypatch: pytest.MonkeyPatch) -> TrueImages:
    drawing = TrueImages()
    monkeypatch.setattr(given_plans, "load_drawing", lambda *_: drawing)
    monkeypatch.setattr(true_images, "ImageReconstructor", TrueImages)
    nats = lambda *_: lambda batch, ids_BU: np.full(len(ids_BU), 0.5)  # noqa: E731
    monkeypatch.setattr(true_images, "ImageTokenScorer", nats)
    return drawing


WORDS = ["eval", "given_plans", "--ckpt", "embedded", "--captions", "5", "--edits", "3",
         "--batch-size", "2"]  # fmt: skip


def test_a_model_that_ignores_moved_boxes(
    true_drawing: TrueImages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run([*WORDS, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "nats a token (perplexity 1.65)" in printed
    found = json.loads((out / "scores.json").read_text())
    scores = found["scores"]
    true = ("generated ri", "generated pi", "generated verdict", "reconstructed ri", "rendered ri")
    for name in true:
        assert scores[name]["value"] == pytest.approx(1, abs=0.02), name
    assert scores["nats"]["value"] == 0.5
    # The image has the old box: one object of each plan is off by what it was moved.
    cases = make_cases(GivenPlansConfig(out, "embedded", captions=5, edits=3))
    expected = []
    for case in cases[:3]:
        assert case.edited is not None
        pairs = zip(boxes(parse_plan(case.edited)), boxes(parse_plan(case.plan)), strict=True)
        expected.append(np.mean([iou(a, b) for a, b in pairs]))
    assert scores["edited ri"]["value"] == pytest.approx(np.mean(expected), abs=0.02)
    assert scores["edited ri"]["captions"] == 3
    assert scores["edited - unedited ri"]["value"] == pytest.approx(np.mean(expected) - 1, abs=0.02)
    assert true_drawing.drawn == [c.plan for c in cases] + [c.edited for c in cases[:3]]
    counts = {n: row["generated ri"]["captions"] for n, row in found["by_objects"].items()}
    assert sum(counts.values()) == 5
    assert counts == {str(n): sum(len(c.scene.objects) == n for c in cases) for n in map(int, counts)}  # fmt: skip  # noqa: E501
    assert len((out / "pictures.jsonl").read_text().splitlines()) == 5 + 5 + 3
    assert "| one box moved | 3 |" in (out / "scores.md").read_text()


def test_a_stopped_command_draws_only_the_missing_batch(
    true_drawing: TrueImages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run([*WORDS, "--out", str(out)]) == 0
    before = {f: f.read_bytes() for f in out.rglob("*") if f.is_file()}
    for file in sorted((out / "generated" / "00003").iterdir()):
        file.unlink()
    (out / "generated" / "00003").rmdir()
    (out / "scores.json").unlink()
    (out / "edited" / ".00001.tmp7").mkdir()  # what a killed process leaves
    true_drawing.drawn.clear()
    assert run([*WORDS, "--out", str(out)]) == 0
    assert len(true_drawing.drawn) == 2  # the batch of scenes 2 and 3
    assert {f: f.read_bytes() for f in out.rglob("*") if f.is_file()} == before
    assert run([*WORDS, "--out", str(out), "--cfg", "2.5"]) == 2
    assert "guidance 1.5, not 2.5" in capsys.readouterr().err
    (out / "edited" / "00001" / "samples.jsonl").write_text("")
    assert run([*WORDS, "--out", str(out)]) == 2
    assert "edited/00001 holds no result" in capsys.readouterr().err


def test_no_edits(true_drawing: TrueImages, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run([*WORDS[:-4], "--edits", "0", "--out", str(out)]) == 0
    assert "edited ri" not in json.loads((out / "scores.json").read_text())["scores"]
    assert "moved" not in (out / "scores.md").read_text().split("ri: mean")[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--captions", "0"], "captions is 0"),
        (["--captions", "4", "--edits", "5"], "edits is 5, more than captions 4"),
        (["--edits", "-1"], "edits is -1"),
        (["--cfg", "-1"], "cfg is -1"),
        (["--temperature", "0"], "temperature is 0"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--template", "nothing"], "nothing"),
        (["--ckpt", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_settings(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*WORDS, "--out", str(tmp_path / "out"), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
