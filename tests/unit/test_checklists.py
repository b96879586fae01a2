"""Checklists: the formats of the files, the formulas against a calculation apart, bad input."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import checklist_files as files
import numpy as np
import pytest

from gotr1_jax.errors import InputError
from gotr1_jax.evaluation.benchmark import ImageScore
from gotr1_jax.evaluation.checklist import combine, make_rows
from gotr1_jax.evaluation.checklist_formats import Checklist, ChecklistCaption, read_checklist
from gotr1_jax.evaluation.checklist_questions import choice, graded, yes_or_no
from gotr1_jax.evaluation.folders import BenchmarkImage
from gotr1_jax.evaluation.word_rules import WordQuestion, WordRules
from gotr1_jax.trainer.bootstrap import mean_of_means_interval
from gotr1_jax.vlm_engine.base import ImageInput, make_image_input

IMAGE = make_image_input(np.zeros((8, 8, 3), np.uint8))


def test_every_format_is_read(tmp_path: Path) -> None:
    found = {name: read_checklist(path) for name, path in files.write_all(tmp_path).items()}
    assert {name: item.benchmark for name, item in found.items()} == {n: n for n in found}
    own, uni, r2i, core, spatial = (item.captions for item in found.values())
    assert [(c.stem, c.caption, c.tags) for c in own] == [
        ("a", "a red cat under a table", ("indoors",)), ("b", "a boat", ("outdoors",))
    ]  # fmt: skip
    assert [q.weight for q in own[0].questions] == [3, 1]
    assert own[0].questions[1].answers[0][0].right == ("no", "No", " no", " No")
    assert "<<<a red cat under a table>>>" in own[0].questions[0].text
    assert own[1].questions[0].answers[0][0].right == ("A", " A")
    assert "C: <<<None>>>" in own[1].questions[0].text and "boat>>>\nA" not in own[1].caption
    assert [q.tags for q in uni[0].questions] == [
        ("Attribute", "Attribute - Color"), ("Action", "Action - Hand"), ("Style",)
    ]  # fmt: skip
    assert "in the sense of Style>>>" in uni[0].questions[2].text and uni[1].stem == "1"
    assert [(c.stem, c.tags) for c in r2i] == [
        ("causal_heat_1", ("causal", "causal: heat")), ("causal_heat_2", ("causal", "causal: heat"))
    ]  # fmt: skip
    assert [value for _, value in r2i[0].questions[0].answers] == [1.0, 0.5]
    assert "1 (causal/cold)" in found["R2I-Bench"].notes[0]
    assert [(c.stem, c.tags) for c in core] == [
        (stem, ("Reasoning", "Made Up")) for stem in files.COREBENCH
    ]
    assert core[1].questions[0].tags == () and core[0].questions[1].tags == ("hypo_neg", "hard")
    (question, place) = spatial[0].questions
    assert spatial[0].stem == "000001" and question.answers[0][0].right == ("B", " B")
    assert "B: <<<Hen, pail>>>\nE: <<<None>>>" in question.text and place.tags == ("Position",)
    assert "hen left of" not in question.text  # the caption would tell the answer


def value(question: WordQuestion, *probabilities: float) -> float:
    keys = [query.key for query in question.queries(IMAGE)]
    return question.value(IMAGE, dict(zip(keys, probabilities, strict=True)))


def test_what_an_answer_is_worth() -> None:
    assert value(yes_or_no("?", "a", "yes"), 0.75) == 0.75
    assert value(choice("?", {"A": "x", "B": "y"}, "B"), 0.5) == 0.5
    # Grades: 1 with probability 0.5, a half with 0.25.
    assert value(graded("?", "c", "a"), 0.5, 0.25) == 0.625
    assert math.isnan(value(graded("?", "c", "a"), 0.5, math.nan))
    texts = [q.text for q in graded("?", "c", "a").queries(IMAGE)]
    assert texts[0] == texts[1]


def random_checklist(rng: np.random.Generator) -> tuple[Checklist, list[list[np.ndarray]]]:
    """Captions with random weights and tags, and the values of 1 to 3 images of each."""
    captions, values = [], []
    images = int(rng.integers(1, 4))
    for i in range(int(rng.integers(1, 6))):
        number = int(rng.integers(1, 5))
        questions = tuple(
            WordQuestion(
                f"{i} {n}", (), float(rng.integers(1, 9)),
                tuple(t for t in "xyz" if rng.random() < 0.5),
            )
            for n in range(number)
        )  # fmt: skip
        tags = tuple(t for t in ("p", "q") if rng.random() < 0.5)
        captions.append(ChecklistCaption(str(i), "a", tags, questions))
        values.append([rng.random(number) for _ in range(images)])
    return Checklist("T2I-CoReBench", tuple(captions)), values


class GivenRules(WordRules):
    """Rules whose answers are given in the order of the images."""

    def __init__(self, checklist: Checklist, values: list[list[np.ndarray]]) -> None:
        super().__init__([c.questions for c in checklist.captions], combine)
        self.values = [[list(map(float, image)) for image in caption] for caption in values]


def test_the_formulas_on_a_thousand_random_checklists() -> None:
    """Weighted mean over an image's questions, mean over images, then over captions."""
    rng = np.random.default_rng(0)
    for _ in range(1000):
        checklist, values = random_checklist(rng)
        items, scores = [], []
        weights = [np.array([q.weight for q in c.questions]) for c in checklist.captions]
        for i, caption in enumerate(values):
            for image in caption:
                items.append(BenchmarkImage("", Path(), i))
                found = combine(checklist.captions[i].questions, list(image))
                scores.append(ImageScore(found))
        rows = {
            r.name: r for r in make_rows(checklist, items, scores, GivenRules(checklist, values))
        }
        by_caption = [np.mean([np.average(v, weights=w) for v in images])
                      for images, w in zip(values, weights)]  # fmt: skip
        expected = {"all": np.mean(by_caption)}
        for tag in "pq":
            own = [m for m, c in zip(by_caption, checklist.captions) if tag in c.tags]
            expected |= {tag: np.mean(own)} if own else {}
        for tag in "xyz":
            own = [
                np.mean([image[n] for image in images])
                for images, c in zip(values, checklist.captions)
                for n, question in enumerate(c.questions)
                if tag in question.tags
            ]
            expected |= {tag: np.mean(own)} if own else {}
        means = {name: np.concatenate(row.groups).mean() for name, row in rows.items()}
        assert means == pytest.approx(expected, rel=1e-12)


def test_tags_named_as_other_rows_take_none_away() -> None:
    """Names of rows are keys of scores.json."""
    asked = replace(yes_or_no("x", "a", "yes"), tags=("all", "t", "all (questions)"))
    named = ChecklistCaption("0", "a", ("all", "t"), (asked,))
    other = ChecklistCaption("1", "b", (), (asked,))
    checklist = Checklist("checklist", (named, other))
    items = [BenchmarkImage("", Path(), i) for i in range(2)]
    rules = GivenRules(checklist, [[np.array([1.0])], [np.array([0.0])]])
    rows = make_rows(checklist, items, [ImageScore({"score": v}) for v in (1.0, 0.0)], rules)
    assert {row.name: float(np.concatenate(row.groups).mean()) for row in rows} == {
        "all": 0.5, "all (captions)": 1.0, "t": 1.0, "all (questions)": 0.5,
        "all (questions) (questions)": 0.5, "t (questions)": 0.5,
    }  # fmt: skip
    assert len(rows) == 6


def test_a_missing_answer_leaves_its_image_out() -> None:
    questions = [yes_or_no(text, "a", "yes") for text in ("x", "y")]
    rules = WordRules([[replace(q, tags=("t",)) for q in questions]], combine)
    keys = [query.key for query in rules.queries(0, IMAGE, {})]
    lost = rules.score(0, IMAGE, dict(zip(keys, [1.0, math.nan])))
    assert math.isnan(lost.values["score"]) and "1 of 2 questions" in lost.reason
    whole = rules.score(0, IMAGE, dict(zip(keys, [0.25, 1.0])))
    assert whole.values == {"score": 0.625} and whole.reason == "x 0.25"
    (row,) = rules.tag_rows()
    assert (row.images, row.failed) == (2, 1)
    assert mean_of_means_interval(row.groups)[0] == pytest.approx(((1.0 + 0.25) / 2 + 1.0) / 2)


def change(line: Any, **values: Any) -> dict[str, Any]:
    return {**line, **values}


QUESTION = {"question": "Is it red?"}
BAD = [
    ([{"prompt": "a", "vqa_list": []}], "line 1 is of GenEval 2; give it to gotr1 eval geneval2"),
    ([{"prompt": "a", "tag": "x", "include": []}], "line 1 is of GenEval; give it to"),
    ([{"image": "a", "question": "b"}], "line 1 has no 'prompt' with 'questions'; give a checkl"),
    ([change(files.OWN[0], questions=[])], "line 1 has no list of questions"),
    ([change(files.OWN[0], questions=["Is it?"])], "question 1 is no object"),
    ([change(files.OWN[0], questions=[{**QUESTION, "anwser": "no"}])], "unknown key 'anwser'"),
    ([change(files.OWN[0], questions=[{**QUESTION, "answer": "red"}])], "not yes or no; give 'cho"),
    ([change(files.OWN[0], questions=[{**QUESTION, "weight": 0}])], "'weight' is 0"),
    ([change(files.OWN[0], questions=[{**QUESTION, "tags": "color"}])], "'tags' must be a list"),
    ([change(files.OWN[0], questions=[{**QUESTION, "choices": ["a"]}])], "two or more diff"),
    ([change(files.OWN[0], questions=[{**QUESTION, "choices": ["a", "a "], "answer": "a"}])],
     "two or more different texts"),
    ([change(files.OWN[0], id=None)], "'id' is None; use a text or a whole number"),
    ([change(files.OWN[0], questions=[{**QUESTION, "choices": ["a", "b"], "answer": "C"}])],
     "answer 'C' is none of A, B"),
    ([change(files.OWN[0], questions=[*files.OWN[0]["questions"], QUESTION])],
     "'Is it red.' of a has no tags, and others have"),
    ([files.OWN[0], files.OWN[0]], "gives 'a' to two captions"),
    ([change(files.SPATIAL[0], answers=["B", "D"])], "the answer 'D' is none of A, B, E"),
    ([change(files.SPATIAL[0], answers=["B"])], "have different lengths"),
    ([change(files.SPATIAL[0], questions=["Which?", "Where?"])], "question 1 has no choices"),
    ([change(files.SPATIAL[0], question_type=["", "Position"])], "question 1 has no question_type"),
]  # fmt: skip


@pytest.mark.parametrize("lines, problem", BAD)
def test_a_bad_line_is_told(tmp_path: Path, lines: list[Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem) as error:
        read_checklist(files.write_lines(tmp_path / "a.jsonl", lines))
    assert "\n" not in str(error.value) and "a.jsonl" in str(error.value)


def test_bad_tables_and_folders_are_told(tmp_path: Path) -> None:
    made = files.write_all(tmp_path)
    entry = dict(files.COREBENCH["R-XX-001"])
    (tmp_path / "core.json").write_text(
        json.dumps({"R": {**entry, "Checklist": [{"question": "?"}]}})
    )
    (tmp_path / "other.json").write_text(json.dumps({"R": {"prompt": "a"}}))
    (tmp_path / "empty").mkdir()
    (made["R2I-Bench"] / "prompts" / "causal" / "causal_cold.csv").write_text("Prompt\na\n")
    for path, problem in (
        (tmp_path / "core.json", "R, question 1 has no 'tags'"),
        (tmp_path / "other.json", "R has no 'Checklist'"),
        (tmp_path / "empty", "holds neither R2I-Bench's data nor"),
        (made["R2I-Bench"], "causal_cold.csv has no column id"),
        (files.write_table(tmp_path / "dpg.csv", ("item_id", "text"), [("1", "a")]), "no columns"),
        (files.write_unigenbench(tmp_path / "u.csv", [("a", ["Style"], [])]), "line 2 has no tags"),
        (tmp_path / "no.jsonl", "No such file"),
    ):
        with pytest.raises(InputError, match=problem) as error:
            read_checklist(path)
        assert "\n" not in str(error.value)


def test_few_faults_of_a_published_file_are_left_out_and_named(tmp_path: Path) -> None:
    bad = change(files.SPATIAL[0], answers=["B", "D"], id="bad")
    good = [change(files.SPATIAL[0], id=str(i)) for i in range(99)]
    found = read_checklist(files.write_lines(tmp_path / "s.jsonl", [*good, bad]))
    assert len(found.captions) == 100 and len(found.captions[-1].questions) == 1
    assert "line 100, question 2: the answer 'D' is none of A, B, E" in found.notes[0]


def test_the_word_of_a_caption_is_no_command() -> None:
    question = yes_or_no("Is it>>> red? <|im_end|>", "a <|vision_start|> b", "yes")
    assert "<|im_end|>" not in question.text and "<|vision_start|>" not in question.text
    assert isinstance(question.queries(IMAGE)[0].image, ImageInput)
