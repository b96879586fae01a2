"""`gotr1 eval` from the command line: a checkpoint generates images, a server judges."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from fake_generator import FakeImageGenerator
from judge_server import Server, say, send
from PIL import Image
from report_pages import PageReader
from tiny_checkpoints import write_tiny

from gotr1_jax import cli
from gotr1_jax.evaluation.queries import CachedModels

COLOR = ["a green bench and a red bowl", "a blue bowl and a red dog"]
SPATIAL = ["a hat on the left of a cat", "a hat on the right of a cat", "a hat near a bird"]
NON_SPATIAL = ["A person is looking at a rainbow."]
COMPLEX = ["The red hat was on the left of the cat.", "The blue hat lay on a mat.",
           "The red hat sat near the cat."]  # fmt: skip
GENEVAL = [
    {"tag": "single_object", "include": [{"class": "hat", "count": 1}]},
    {"tag": "two_object", "include": [{"class": "hat", "count": 1}, {"class": "bird", "count": 1}]},
    {"tag": "counting", "include": [{"class": "dog", "count": 2}],
     "exclude": [{"class": "dog", "count": 3}]},
    {"tag": "colors", "include": [{"class": "hat", "count": 1, "color": "red"}]},
    {"tag": "position", "include": [{"class": "cat", "count": 1},
                                    {"class": "hat", "count": 1, "position": ["left of", 0]}]},
    {"tag": "color_attr", "include": [{"class": "hat", "count": 1, "color": "red"},
                                      {"class": "cat", "count": 1, "color": "blue"}]},
]  # fmt: skip
DPG = """item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language
7,x,,1,0,entity,whole,entity - whole (hat),Is there a hat?
7,x,,2,1,attribute,color,"attribute - color (hat, blue)",Is the hat blue?
7,x,,3,2,attribute,size,"attribute - size (hat, big)",Is the hat big?
8,x,,1,0,entity,whole,entity - whole (cat),Is there a cat?
"""  # noqa: E501
# Images are sent with 28 pixels a side. A hat on the left, a cat on the right, two dogs, no bird.
BOXES = {"hat": [[2, 8, 10, 20]], "cat": [[18, 8, 26, 20]],
         "dog": [[0, 0, 9, 9], [12, 12, 20, 20]]}  # fmt: skip


def judge(handler: BaseHTTPRequestHandler, number: int, body: Any) -> None:
    """Says yes to whatever is not blue."""
    content = body["messages"][-1]["content"]
    text = " ".join(part["text"] for part in content if part["type"] == "text")
    thing = re.findall("<<<(.*?)>>>", text)[-1]
    if "Find every instance" in text:
        say(handler, json.dumps([{"bbox_2d": box} for box in BOXES.get(thing, [])]))
    elif "Caption: <<<" in text:
        say(handler, '{"score": 7}')
    else:
        say(handler, json.dumps({"score": int("blue" not in thing)}))


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(judge) as running:
        yield running


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "ckpt")


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gotr1_jax.generate.generator.ImageGenerator", FakeImageGenerator)
    monkeypatch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """A folder with the prompt files of all three benchmarks."""
    folder = tmp_path / "prompts"
    (folder / "dpg").mkdir(parents=True)
    for name, captions in (("color", COLOR), ("spatial", SPATIAL), ("non_spatial", NON_SPATIAL),
                           ("complex", COMPLEX)):  # fmt: skip
        (folder / f"{name}_val.txt").write_text("\n".join(captions) + "\n")
    lines = (json.dumps({**line, "prompt": f"a photo {i}"}) for i, line in enumerate(GENEVAL))
    (folder / "geneval.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "dpg.csv").write_text(DPG)
    for stem in ("7", "8"):
        (folder / "dpg" / f"{stem}.txt").write_text("a caption")
    return folder


def evaluate(what: str, *words: str | Path) -> int:
    return cli.run(["eval", what, *map(str, words)])


def judged(server: Server) -> list[str]:
    http = ["--judge.http.url", server.url, "--judge.http.model", "m"]
    return ["--scorer", "judge", "--judge.kind", "http", *http]


def scores(out: Path) -> dict[str, float]:
    rows = json.loads((out / "scores.json").read_text())["scores"]
    return {name: row["value"] for name, row in rows.items()}


def test_t2i_compbench(tiny: Path, prompts: Path, tmp_path: Path, server: Server) -> None:
    out = tmp_path / "out"
    words = ["--ckpt", tiny, "--prompts", prompts, "--out", out, "--n", 2]
    categories = ["--category", "color", "spatial", "non_spatial", "complex"]
    assert evaluate("t2i_compbench", *map(str, words), *categories, *judged(server)) == 0
    # Two found objects: 0.99 / 2, and a half for the place; else less than a half, so nothing.
    near, left = 0.995, 0.995
    assert scores(out) == pytest.approx({
        "color": (1 + 0) / 2,
        "spatial": (left + 0 + 0) / 3,
        "non_spatial": 0.7,
        # attributes with the place; with the match (blue is wrong); all three.
        "complex": ((1 + left) / 2 + (0 + 0.7) / 2 + (1 + near + 0.7) / 3) / 3,
    })  # fmt: skip
    assert len(list((out / "pictures" / "spatial" / "samples").iterdir())) == 6
    text = (out / "scores.md").read_text()
    assert f"judge http {server.url} m" in text and "0.8139" in text
    assert "Not comparable with published numbers: the judge" in text
    records = [json.loads(line) for line in (out / "pictures.jsonl").read_text().splitlines()]
    assert len(records) == 2 * (2 + 3 + 1 + 3)
    assert records[2]["picture"] == "samples/a blue bowl and a red dog_000002.png"
    assert records[2]["values"] == {"score": 0, "yes": 0}
    assert records[2]["words"] == "a blue bowl? 0.000; a red dog? 1.000"
    page = PageReader((out / "gallery.html").read_text("utf-8"))
    shown = page.items("images")
    assert [len(item["cards"]) for item in shown] == [2] * (2 + 3 + 1 + 3)
    third = page.data["samples"][2]
    assert third["key"] == "color/samples/a blue bowl and a red dog_000002.png"
    assert third["values"] == {"score": 0, "yes": 0} and "plan" in third
    assert third["judges"][0]["rationale"] == "a blue bowl? 0.000; a red dog? 1.000"
    # The images that are there, by another command: the answers are the same.
    again = tmp_path / "again"
    images = ["--images", out / "pictures", "--prompts", prompts, "--out", again]
    assert evaluate("t2i_compbench", *map(str, images), *categories, *judged(server)) == 0
    drawn, given = (json.loads((folder / "scores.json").read_text()) for folder in (out, again))
    of = [found.pop("images") for found in (drawn, given)]
    assert [facts["resolution"] for facts in of] == [["4x4"]] * 2
    assert drawn["sampling"]["cfg"] == 5 and drawn == given


def test_depths_and_counts_by_the_judge(tiny: Path, tmp_path: Path, server: Server) -> None:
    captions = {"3d_spatial": ["a hat in front of a cat", "a hat behind a blue"],
                "numeracy": ["two dogs", "three dogs and a bird"]}  # fmt: skip
    for name, lines in captions.items():
        (tmp_path / f"{name}_val.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "new_objects.txt").write_text("dog - dogs\nbird - birds\n")
    words = ["--ckpt", tiny, "--prompts", tmp_path, "--n", 1, "--category", *captions]
    assert evaluate("t2i_compbench", *words, "--out", tmp_path / "out", *judged(server)) == 0
    # Both are found, and nearer as it says; their boxes do not touch. Of a blue nothing is found.
    assert scores(tmp_path / "out") == pytest.approx({
        "3d_spatial": (0.99 / 2 + 0.99 / 4) / 2, "numeracy": (1 + 0.25) / 2
    })  # fmt: skip
    asked = [json.dumps(body) for body in server.bodies]
    assert sum("is the hat nearer to the viewer than the cat?" in text for text in asked) == 1
    assert "the judge in the place of" in (tmp_path / "out" / "scores.md").read_text()
    (tmp_path / "new_objects.txt").write_text("dog, dogs\n")
    assert evaluate("t2i_compbench", *words, "--out", tmp_path / "bad", *judged(server)) == 2


def test_geneval(tiny: Path, prompts: Path, tmp_path: Path, server: Server) -> None:
    out = tmp_path / "out"
    words = ["--ckpt", tiny, "--prompts", prompts / "geneval.jsonl", "--out", out]
    assert evaluate("geneval", *words, *judged(server)) == 0
    assert scores(out) == {
        "single_object": 1, "two_object": 0, "counting": 1, "colors": 1, "position": 1,
        "color_attr": 0, "mean": pytest.approx(4 / 6),
    }  # fmt: skip
    first = json.loads((out / "scores.json").read_text())["scores"]["mean"]
    assert (first["captions"], first["pictures"], first["failed"]) == (6, 24, 0)
    assert first["published"] == {"Janus-Pro-1B": 0.73, "Janus-Pro-7B": 0.8, "GoT-R1-7B": 0.75}
    page = PageReader((out / "gallery.html").read_text("utf-8"))
    assert len(page.items("images")) == 6 and len(page.data["samples"]) == 24
    assert page.data["binary"] == ["correct"] and page.data["total"] == "correct"


def test_dpg(tiny: Path, prompts: Path, tmp_path: Path, server: Server) -> None:
    out = tmp_path / "out"
    words = ["--ckpt", tiny, "--prompts", prompts / "dpg", "--questions", prompts / "dpg.csv"]
    assert evaluate("dpg", *words, "--out", out, *judged(server)) == 0
    # The hat is there, but not blue, so its size counts for nothing; the cat is there.
    expected = {"dpg": (1 / 3 + 1) / 2, "entity": 1, "attribute": 1 / 2}
    assert scores(out) == pytest.approx(expected)
    assert sorted(p.name for p in (out / "pictures").iterdir()) == ["7.png", "8.png"]
    page = PageReader((out / "gallery.html").read_text("utf-8"))
    assert ["plan" in sample for sample in page.data["samples"]] == [False] * 2  # of grids


def check_stopped(
    benchmark: str, words: Sequence[Any], folder: Path, alive: int, asked: Sequence[Any]
) -> None:
    """An evaluation that is stopped after some calls, and goes on, writes what a whole one does.

    alive: calls of the models before it is stopped. asked: the questions so far, as they grow.
    """
    before, calls, whole = len(asked), 0, CachedModels.answer

    def dying(self: CachedModels, queries: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > alive:
            raise KeyboardInterrupt
        return whole(self, queries)

    assert evaluate(benchmark, *words, "--out", folder / "whole") == 0
    once = len(asked) - before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CachedModels, "answer", dying)
        assert evaluate(benchmark, *words, "--out", folder / "parts") == 130
    assert not (folder / "parts" / "scores.json").exists()
    assert evaluate(benchmark, *words, "--out", folder / "parts") == 0
    for name in ("scores.json", "scores.md", "pictures.jsonl"):
        assert (folder / "parts" / name).read_bytes() == (folder / "whole" / name).read_bytes()
    assert once and len(asked) == before + 2 * once  # nothing was asked twice


@pytest.mark.parametrize("alive", [1, 3])
def test_an_evaluation_that_was_stopped_goes_on(
    tiny: Path, prompts: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch,
    alive: int,
) -> None:  # fmt: skip
    monkeypatch.setattr("gotr1_jax.evaluation.judge_model.JudgeModel.images_per_call", 2)
    words = ["--ckpt", tiny, "--prompts", prompts / "geneval.jsonl", *judged(server)]
    check_stopped("geneval", words, tmp_path, alive, server.bodies)


def test_answers_that_failed_are_counted_and_asked_again(
    tiny: Path, prompts: Path, tmp_path: Path
) -> None:
    sick = True

    def behave(handler: BaseHTTPRequestHandler, number: int, body: Any) -> None:
        if sick and number > 1 and "a red bowl" in json.dumps(body):
            send(handler, 400, b"{}")
        else:
            judge(handler, number, body)

    words = ["--ckpt", tiny, "--prompts", prompts / "color_val.txt", "--category", "color"]
    with Server(behave) as server:
        words += ["--n", "1", "--out", tmp_path / "out", *judged(server)]
        assert evaluate("t2i_compbench", *words) == 0
        row = json.loads((tmp_path / "out" / "scores.json").read_text())["scores"]["color"]
        assert (row["value"], row["failed"]) == (0, 1)
        sick, asked = False, len(server.bodies)
        assert evaluate("t2i_compbench", *words) == 0
        assert len(server.bodies) == asked + 1
        assert scores(tmp_path / "out") == {"color": 0.5}


def one_line(capsys: pytest.CaptureFixture[str], message: str) -> None:
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 1 and re.search(message, lines[0]), lines


def test_bad_input_is_one_line(
    prompts: Path, tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    images = tmp_path / "images"
    (images / "samples").mkdir(parents=True)
    base = ["--images", images, "--out", tmp_path / "out"]
    ask = judged(server)
    color, lines = prompts / "color_val.txt", prompts / "geneval.jsonl"
    table = ["--questions", prompts / "dpg.csv"]
    for what, words, message in (
        ("t2i_compbench", ["--prompts", prompts, *ask], r"has no shape_val\.txt"),
        ("t2i_compbench", ["--prompts", tmp_path / "no", *ask], "no captions at"),
        ("t2i_compbench", ["--prompts", color, *ask], "say which by --category"),
        ("t2i_compbench", ["--prompts", lines, "--category", "color", *ask], "another benchmark"),
        ("t2i_compbench", ["--prompts", color, "--category", "color", *ask], "lacks image"),
        ("t2i_compbench", ["--prompts", color, "--category", "color"], "--phrases rules"),
        ("geneval", ["--prompts", color, *ask], "line 1 is no line of GenEval's metadata"),
        ("geneval", ["--prompts", prompts / "no.jsonl", *ask], "there is no file"),
        ("geneval", ["--prompts", lines, *ask], "has no folder 00000"),
        ("geneval", ["--prompts", lines, "--scorer", "judge"], "judge.kind is shapes"),
        ("geneval", ["--prompts", lines, "--n", "0", *ask], "--n is 0"),
        ("dpg", ["--prompts", lines, *table, *ask], "directory of prompt files"),
        ("dpg", ["--prompts", prompts / "dpg", "--questions", color, *ask], "has no column"),
        ("dpg", ["--prompts", prompts / "dpg", "--questions", tmp_path, *ask], "cannot be read"),
        ("dpg", ["--prompts", prompts, *table, *ask], "has no questions for"),
        ("dpg", ["--prompts", prompts / "dpg", *table, *ask], r"has no image 7\.png"),
        ("dpg", ["--prompts", prompts / "dpg", *table, "--n", "5", *ask], "4 images"),
    ):
        assert evaluate(what, *base, *words) == 2, (what, words)
        one_line(capsys, message)
    for stem in ("7", "8"):
        Image.new("RGB", (9, 9)).save(images / f"{stem}.png")
    (images / "samples").rmdir()
    assert evaluate("dpg", *base, "--prompts", prompts / "dpg", *table, *ask) == 2
    one_line(capsys, r"7\.png: an image of 9x9 is no grid of 4 squares")
    (images / "8.png").write_bytes(b"no")
    dpg = ["--prompts", prompts / "dpg", *table, "--n", "1", *ask]
    assert evaluate("dpg", *base, *dpg) == 2
    one_line(capsys, r"8\.png is not an image in a known format")
    monkeypatch.setattr("gotr1_jax.evaluation.torch_models.find_spec", lambda name: None)
    assert evaluate("geneval", *base, "--prompts", lines) == 2
    one_line(capsys, r"needs torch: pip install 'gotr1_jax\[eval\]', or use --scorer judge")
