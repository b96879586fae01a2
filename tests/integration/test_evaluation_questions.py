"""`gotr1 eval geneval2` and `checklist` as commands: a scripted judge, facts, cards, restarts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from checklist_files import OWN, write_all
from fake_generator import FakeImageGenerator
from test_evaluation import check_stopped, evaluate, one_line
from tiny_checkpoints import write_tiny
from word_engine import TalkingEngine, WordEngine, chance

from gotr1_jax.evaluation.benchmark import read_image

LINES = [
    {"prompt": "two red cats", "atom_count": 3, "skills": ["count", "attribute", "object"],
     "vqa_list": [["How many cats are in the image?", "two"], ["Are the cats red?", "Yes"],
                  ["Are there any cats in the image?", "Yes"]]},
    {"prompt": "a dog behind a car", "atom_count": 3, "skills": ["position", "object"],
     "vqa_list": [["Is the dog behind the car?", "Yes"], ["Are there any dogs?", "Yes"]]},
    {"prompt": "a pig", "atom_count": 1, "skills": ["object"],
     "vqa_list": [["Are there any pigs in the image?", "Yes"]]},
]  # fmt: skip
JUDGE = ["--judge.kind", "http", "--judge.http.url", "http://127.0.0.1:9/v1", "--judge.http.model",
         "m", "--judge.questions.reading", "expected"]  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "ckpt")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> WordEngine:
    monkeypatch.setattr("gotr1_jax.generate.generator.ImageGenerator", FakeImageGenerator)
    monkeypatch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)
    made = WordEngine(chance)
    monkeypatch.setattr("gotr1_jax.evaluation.benchmark.make_engine", lambda *_: made)
    return made


def write_lines(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def rows(out: Path) -> dict[str, float]:
    found = json.loads((out / "scores.json").read_text())["scores"]
    return {name: row["value"] for name, row in found.items()}


def test_geneval2(tiny: Path, tmp_path: Path, engine: WordEngine) -> None:
    # Whatever the file is called, what is drawn are its captions.
    file, out = write_lines(tmp_path / "g.txt", LINES), tmp_path / "out"
    words = ["--prompts", file, "--out", out, "--n", 2, *JUDGE]
    assert evaluate("geneval2", "--ckpt", tiny, *words) == 0
    said = {(q.images[0].key, q.text): chance(q) for q in engine.asked}
    atoms: list[list[list[float]]] = []
    for i, line in enumerate(LINES):
        folder = out / "pictures" / f"{i:05d}"
        keys = [read_image(folder / f"image_0{n}.png").key for n in range(2)]
        texts = [f"{question} Answer in one word." for question, _ in line["vqa_list"]]
        atoms.append([[said[key, text] for text in texts] for key in keys])
    gm = [np.mean([scipy.stats.gmean(image) for image in caption]) for caption in atoms]
    by_skill: dict[str, list[float]] = {}
    for line, caption in zip(LINES, atoms):
        for skill, value in zip(line["skills"], np.mean(caption, axis=0)):
            by_skill.setdefault(skill, []).append(value)
    assert rows(out) == pytest.approx({
        "gm": np.mean(gm), "am": np.mean([np.mean(caption) for caption in atoms]),
        **{skill: np.mean(values) for skill, values in by_skill.items()},
        "3 atoms": np.mean(gm[:2]), "1 atoms": gm[2],
    })  # fmt: skip
    text = (out / "scores.md").read_text()
    assert "3 captions in the place of 800" in text and "Qwen3-VL-8B" in text
    assert "TIFA)" not in text and len(engine.asked) == 12
    paths = json.loads((out / "images.json").read_text())
    assert Path(paths["a pig"]).name == "image_00.png" and list(paths) == [
        line["prompt"] for line in reversed(LINES)
    ]
    engine.identity = "http http://h/v1 Qwen/Qwen3-VL-8B-Instruct multiple=28"
    # The same images by their stems, and other captions for the same images.
    for i in range(3):
        for n in range(2):
            source = out / "pictures" / f"{i:05d}" / f"image_0{n}.png"
            (tmp_path / f"{i}_{n}.png").write_bytes(source.read_bytes())
    again = tmp_path / "again"
    words = ["--images", tmp_path, "--prompts", file, "--out", again, *JUDGE]
    (tmp_path / "out").rename(tmp_path.parent / f"{tmp_path.name}_out")
    assert evaluate("geneval2", *words) == 0
    assert rows(again)["gm"] == pytest.approx(np.mean(gm)) and len(engine.asked) == 24
    assert "published numbers are by" not in (again / "scores.md").read_text()


@pytest.mark.parametrize("alive", [0, 1, 2])
def test_a_stopped_evaluation_gives_the_same_table(
    tiny: Path, tmp_path: Path, engine: WordEngine, monkeypatch: pytest.MonkeyPatch, alive: int
) -> None:
    monkeypatch.setattr("gotr1_jax.evaluation.judge_model.JudgeModel.images_per_call", 1)
    file = write_lines(tmp_path / "g.jsonl", LINES)
    words = ["--ckpt", tiny, "--prompts", file, "--n", 1, *JUDGE]
    check_stopped("geneval2", words, tmp_path, alive, engine.asked)


def test_bad_input_is_one_line(
    tmp_path: Path, engine: WordEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    (images / "00000").mkdir(parents=True)
    file = write_lines(tmp_path / "g.jsonl", LINES)
    other = write_lines(tmp_path / "o.jsonl", [{"tag": "x", "include": [], "prompt": "a"}])
    bare = write_lines(tmp_path / "b.jsonl", [{**LINES[0], "skills": None}])
    base = ["--images", images, "--out", tmp_path / "out"]
    for words, message in (
        (["--prompts", other, *JUDGE], "line 1 has no 'vqa_list'"),
        (["--prompts", bare, *JUDGE], "line 1 has no 'skills'"),
        (["--prompts", file], "judge.kind is shapes, which answers no questions"),
        (["--prompts", file, *JUDGE], "holds 0 of 1 images of 'two red cats'"),
    ):
        assert evaluate("geneval2", *base, *words) == 2, words
        one_line(capsys, message)
    (images / "00000" / "result.json").write_text('{"prompt": "a cow"}')
    assert evaluate("geneval2", *base, "--prompts", file, *JUDGE) == 2
    one_line(capsys, "00000 is of 'a cow', but the questions are about 'two red cats'")
    (images / "00000" / "result.json").unlink()
    (images / "7.png").write_bytes(b"")
    assert evaluate("geneval2", *base, "--prompts", file, *JUDGE) == 2
    one_line(capsys, r"7\.png is of no caption: no 0\.png")


def test_every_checklist_is_scored(tiny: Path, tmp_path: Path, engine: WordEngine) -> None:
    for name, path in write_all(tmp_path).items():
        out = tmp_path / f"out_{name}"
        words = ["--ckpt", tiny, "--questions", path, "--out", out, "--n", 1, *JUDGE]
        assert evaluate("checklist", *words) == 0, name
        found = json.loads((out / "scores.json").read_text())
        assert found["benchmark"] == name and 0 < found["scores"]["all"]["value"] < 1
        text = (out / "scores.md").read_text()
        assert "asked alone and in this project's words" in text and f"of {tiny}" in text
    own = tmp_path / "out_checklist"
    keys = [read_image(own / "pictures" / f"0000{i}" / "image_00.png").key for i in range(2)]
    texts = [[q["question"] for q in line["questions"]] for line in OWN]
    said = [
        [next(chance(q) for q in engine.asked if q.images[0].key == key and text in q.text)
         for text in of]
        for key, of in zip(keys, texts)
    ]  # fmt: skip
    expected = {
        "all": (np.average(said[0], weights=[3, 1]) + said[1][0]) / 2,
        "indoors": np.average(said[0], weights=[3, 1]), "outdoors": said[1][0],
        "color": said[0][0], "absence": said[0][1], "place": said[1][0],
    }  # fmt: skip
    assert rows(own) == pytest.approx(expected)


def write_run(folder: Path, model: Path, judge: str, init: str = "embedded") -> None:
    """A finished run that was trained on a judge."""
    folder.mkdir()
    (folder / "model").symlink_to(model)
    http = f"{{url: 'http://h/v1', model: {judge}}}"
    (folder / "config.yaml").write_text(
        f"policy: {{init: {init}}}\njudge: {{kind: http, http: {http}}}\n"
    )


def test_a_judge_that_was_trained_on_is_told(
    tiny: Path, tmp_path: Path, engine: WordEngine
) -> None:
    file = write_lines(tmp_path / "g.jsonl", LINES)
    engine.identity = "http http://127.0.0.1:9/v1 org/Judge-7B multiple=28"
    first, then = tmp_path / "first", tmp_path / "then"
    write_run(first, tiny, "Judge-7B")
    write_run(then, tiny, "Other-3B", str(first))
    for run in (first, then):  # what it began from counts too
        out = tmp_path / f"out_{run.name}"
        words = ["--ckpt", run, "--prompts", file, "--out", out, "--n", 1, *JUDGE]
        assert evaluate("geneval2", *words) == 0
        line = "the model was trained on judge http http://127.0.0.1:9/v1 org/Judge-7B, which sco"
        assert line in (out / "scores.md").read_text()
        facts = json.loads((out / "scores.json").read_text())["training_judge"]
        assert facts["known"] and len(facts["same"]) == 1 and "Judge-7B" in facts["trained_on"]
    # Given images say which checkpoint they are of.
    engine.identity = "http http://127.0.0.1:9/v1 org/Judge-72B multiple=28"
    words = ["--images", tmp_path / "out_first" / "pictures", "--prompts", file, *JUDGE]
    assert evaluate("geneval2", *words, "--out", tmp_path / "given") == 0
    text = (tmp_path / "given" / "scores.md").read_text()
    assert "The model was trained on Judge-7B; that does not score here." in text


def test_facts_travel_with_the_numbers_and_make_a_card(
    tiny: Path, tmp_path: Path, engine: WordEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    file, card = write_lines(tmp_path / "g.jsonl", LINES), tmp_path / "cards" / "mine.json"
    words = ["--ckpt", tiny, "--prompts", file, "--out", tmp_path / "out", "--n", 2, "--cfg", 3,
             "--temperature", 0.5, "--seed", 7, "--cache-dtype", "int8",
             "--expanded-by", "a longer model"]  # fmt: skip
    assert evaluate("geneval2", *words, *JUDGE, "--card", card) == 0
    text = (tmp_path / "out" / "scores.md").read_text()
    assert f"2 a caption, 4x4 pixels, of {tiny}; template gotr1, guidance 3, temper" in text
    assert "temperature 0.5 of the plan, 0.5 of the image" in text and "in int8, seed 7." in text
    assert "Captions: 3 of g.jsonl, expanded by a longer model, 3.3 words in the mean" in text
    assert "no run says so" in text
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["sampling"]["cfg"] == 3 and scores["images"]["per_caption"] == 2
    made = json.loads(card.read_text())
    assert made["seed"] == 7 and made["seconds"] >= 0 and made["hardware"]["devices"] >= 1
    assert made["versions"].keys() >= {"python", "gotr1_jax", "jax"}
    assert {n: r["value"] for n, r in made["scores"].items()} == rows(tmp_path / "out")
    assert made["captions"] == scores["captions"] and "gotr1" in made["command"]
    # Images of which nothing is known.
    (tmp_path / "out" / "pictures" / "generation.json").unlink()
    words = ["--images", tmp_path / "out" / "pictures", "--prompts", file, *JUDGE]
    assert evaluate("geneval2", *words, "--out", tmp_path / "given") == 0
    text = (tmp_path / "given" / "scores.md").read_text()
    assert "how they were sampled is not known (template, guidance, temperature)" in text
    assert "3 of g.jsonl, as they are" in text
    capsys.readouterr()
    assert evaluate("geneval2", *words, "--out", tmp_path / "x", "--card", tmp_path) == 2
    one_line(capsys, "--card .* is a folder; name a file")
    assert evaluate("geneval2", *words, "--out", tmp_path / "x", "--card", file / "a" / "b") == 2
    one_line(capsys, "--card .*g.jsonl is a file; choose another place")


def test_a_reading_that_a_server_cannot_give_is_refused_before_images(
    tiny: Path, tmp_path: Path, engine: WordEngine, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    talking = TalkingEngine({})
    monkeypatch.setattr("gotr1_jax.evaluation.benchmark.make_engine", lambda *_: talking)
    words = ["--ckpt", tiny, "--prompts", write_lines(tmp_path / "g.jsonl", LINES), *JUDGE]
    assert evaluate("geneval2", *words, "--out", tmp_path / "out") == 2
    one_line(capsys, "questions.reading is 'expected', which talking cannot; use 'text'")
    assert not (tmp_path / "out" / "pictures").exists()
