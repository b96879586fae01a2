"""Understanding side by side: rules of reading, the file, figures by hand, going on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gotr1_jax.errors import InputError
from gotr1_jax.evaluation.understanding import (
    Respondent,
    UnderstandingConfig,
    evaluate_understanding,
)
from gotr1_jax.evaluation.understanding_questions import (
    ALL,
    UnderstandingQuestion,
    normalise,
    read_answer,
    read_questions,
)
from gotr1_jax.generate.answer_questions import GeneratedAnswer

CHOICES = ("red", "a blue one", "A")


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The  Two cats, 1,000 of 2.5!", "2 cats 1000 of 2.5"),
        ("Red.", "red"),
        ("an ÄPFEL", "äpfel"),
        ("１２", "12"),
        ("twelve, thirteen", "12 thirteen"),
        ("1,2", "1 2"),
        ("a", ""),
    ],
)
def test_normalise(text: str, plain: str) -> None:
    assert normalise(text) == plain


@pytest.mark.parametrize(
    ("said", "read"),
    [("Yes, it is.", "yes"), ("NO", "no"), ("There is no cat", ""), ("", ""), ("yesterday", "")],
)
def test_yes_and_no(said: str, read: str) -> None:
    assert read_answer(said, "yes_no") == read


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("B", "B"), ("b", "B"), ("(B)", "B"), ("B.", "B"), ("B. It is red.", "B"),
        ("B a blue one", "B"), ("B red", ""), ("A circle is shown", ""), ("A\nbecause", "A"),
        ("The answer is C", "C"), ("option (A)", "A"), ("option A or option B", ""),
        ("red", "A"), ("Blue one!", "B"), ("D", ""), ("", ""), ("I think so", ""),
    ],
)  # fmt: skip
def test_letters(said: str, read: str) -> None:
    assert read_answer(said, "choice", CHOICES) == read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, color in (("one", "red"), ("two", "blue"), ("three", "green")):
        Image.new("RGB", (20, 12), color).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return tmp_path


def write(folder: Path, records: Sequence[Any]) -> Path:
    path = folder / "questions.jsonl"
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    path.write_text("\n".join(lines) + "\n")
    return path


def ask_about(image: str, answer: Any, **more: Any) -> dict[str, Any]:
    return {"image": image, "question": " What is it? ", "answer": answer, **more}


def test_forms_and_accepted_answers(folder: Path) -> None:
    path = write(
        folder,
        [
            ask_about("one.png", ["A cat", "kitten"]),
            ask_about("one.png", 2, kind="counting"),
            ask_about("two.png", "No"),
            ask_about("two.png", "red", choices=["blue", "red"]),
            ask_about("two.png", "a", choices=["blue", "red"]),
        ],
    )
    questions, bad = read_questions(path, 0.0)
    assert bad == []
    found = [(q.line, q.form, q.accepted, q.kind) for q in questions]
    assert found == [
        (1, "short", ("cat", "kitten"), "short"),
        (2, "short", ("2",), "counting"),
        (3, "yes_no", ("no",), "yes_no"),
        (4, "choice", ("B",), "choice"),
        (5, "choice", ("A",), "choice"),
    ]
    assert questions[0].is_right("the Cat.") and not questions[0].is_right("a cat, I think")
    assert questions[1].is_right("Two")
    assert not read_questions(write(folder, [ask_about("one.png", "x")]), 0)[0][0].is_right("")
    asked = questions[3].prompt.splitlines()
    assert asked[:3] == ["What is it?", "A. blue", "B. red"] and "letter" in asked[3]
    assert questions[0].image == questions[1].image != questions[2].image


BAD = [
    ("{", "line 2 is not JSON"),
    ("[]", "line 2 is not an object"),
    ({"image": "one.png", "answer": "x"}, "line 2 has no text under 'question'"),
    ({"question": "x", "answer": "x"}, "line 2 has no text under 'image'"),
    ({"image": "one.png", "question": "x"}, "line 2 has no text under 'answer'"),
    (ask_about("one.png", []), "line 2 has nothing under 'answer'"),
    (ask_about("one.png", True), "line 2 has no text under 'answer'"),
    (ask_about("one.png", "the"), "line 2 has an answer that cannot be matched"),
    (ask_about("one.png", "green", choices=["blue", "red"]), "answer that cannot be matched"),
    (ask_about("one.png", "A", choices=["blue"]), "line 2 has 1 choices"),
    (ask_about("one.png", "x", kind="all"), "line 2 has the kind 'all'"),
    (ask_about("one.png", "\ud800"), "no valid Unicode under 'answer'"),
    (ask_about("one.png", "x") | {"question": "\ud800"}, "no valid Unicode under 'question'"),
    (ask_about("none.png", "x"), "none.png"),
    (ask_about("broken.png", "x"), "broken.png"),
]


@pytest.mark.parametrize(("record", "message"), BAD)
def test_a_bad_line_is_left_out_or_refused(folder: Path, record: Any, message: str) -> None:
    good = ask_about("one.png", "x")
    path = write(folder, [good, record, good])
    questions, bad = read_questions(path, 0.34)
    assert [q.line for q in questions] == [1, 3]
    assert len(bad) == 1 and message in bad[0]
    with pytest.raises(InputError, match="1 of 3 lines") as raised:
        read_questions(path, 0.33)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_file_without_any_question(folder: Path) -> None:
    for records in ([], ["{", "{"]):
        with pytest.raises(InputError, match="cannot be used; --max-bad"):
            read_questions(write(folder, records), 1.0)


class Scripted:
    """Answers by a table; counts what it is asked and can stop in the middle."""

    def __init__(self, answers: dict[int, str], stop_at: int | None = None) -> None:
        self.answers, self.stop_at = answers, stop_at
        self.asked: list[int] = []
        self.loaded = 0

    def load(self) -> Callable[[Sequence[UnderstandingQuestion]], list[GeneratedAnswer]]:
        self.loaded += 1
        return self.answer

    def answer(self, group: Sequence[UnderstandingQuestion]) -> list[GeneratedAnswer]:
        if self.stop_at is not None and len(self.asked) + len(group) > self.stop_at:
            raise KeyboardInterrupt
        self.asked += [question.line for question in group]
        return [
            GeneratedAnswer(self.answers[q.line], (), self.answers[q.line] != "cut") for q in group
        ]


def respondents(ckpt: Scripted, baseline: Scripted) -> dict[str, Respondent]:
    return {"ckpt": Respondent("new", ckpt.load), "baseline": Respondent("old", baseline.load)}


# Eight questions, two kinds; what is right by line: colors 1-4, yes or no 5-8.
RIGHT = {1: "red", 2: "red", 3: "red", 4: "blue", 5: "yes", 6: "yes", 7: "no", 8: "no"}
OLD = {1: "red", 2: "red", 3: "green", 4: "red", 5: "yes", 6: "hm", 7: "no", 8: "cut"}
NEW = {1: "red", 2: "A blue", 3: "red", 4: "blue", 5: "perhaps", 6: "yes", 7: "No.", 8: "no!"}


def make_data(folder: Path, on_first_image: Sequence[int]) -> Path:
    return write(
        folder,
        [
            {
                "image": "one.png" if i in on_first_image else "two.png",
                "question": f"{i}?",
                "answer": RIGHT[i],
                "kind": "color" if i <= 4 else "yes or no",
            }
            for i in range(1, 9)
        ],
    )


@pytest.fixture
def data(folder: Path) -> Path:
    return make_data(folder, (1, 2, 5, 6))


def config(data: Path, out: Path, **more: Any) -> UnderstandingConfig:
    return UnderstandingConfig(out=out, ckpt="A", baseline="B", data=data, batch=3, **more)


def test_side_by_side_by_hand(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = evaluate_understanding(config(data, out), respondents(Scripted(NEW), Scripted(OLD)))
    written = json.loads((out / "scores.json").read_text())
    assert (out / "scores.md").read_text() == text
    scores = written["scores"]
    assert list(scores) == [ALL, "color", "yes or no"]
    # Right: old 1, 2 | 5, 7; new 1, 3, 4 | 6, 7, 8.
    whole = scores[ALL]
    assert (whole["questions"], whole["pictures"]) == (8, 2)
    assert (whole["baseline"], whole["ckpt"], whole["gain"]) == (4 / 8, 6 / 8, 2 / 8)
    assert (whole["lost"], whole["won"]) == (2, 4)  # 2, 5; 3, 4, 6, 8
    # Image one gains 1 - 2, image two 3: drawn alone they give -1/4 and 3/4.
    assert (whole["low"], whole["high"]) == (-1 / 4, 3 / 4)
    # The commonest color is red (3 of 4); yes and no are as common.
    assert (scores["color"]["commonest"], scores["yes or no"]["commonest"]) == (3 / 4, 2 / 4)
    assert whole["commonest"] == 5 / 8 and whole["over_commonest"] == pytest.approx(-1 / 8)
    # "hm", "cut" and "perhaps" say neither yes nor no; "A blue" is an answer, a wrong one.
    assert (whole["unclear_baseline"], whole["unclear_ckpt"]) == (2, 1)
    assert (whole["cut_baseline"], whole["cut_ckpt"]) == (1, 0)
    color = scores["color"]
    assert (color["baseline"], color["ckpt"], color["lost"], color["won"]) == (2 / 4, 3 / 4, 1, 2)
    assert "says nothing about what training did" in text
    row = next(line for line in text.splitlines() if line.startswith("| all "))
    assert [c.strip() for c in row.split("|")[2:9]] == [
        "8", "0.750", "0.500", "+0.250", "-0.250 to +0.750", "2", "4",
    ]  # fmt: skip

    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [a["line"] for a in answers] == list(range(1, 9))
    assert answers[1]["ckpt"] == {"said": "A blue", "ended": True, "read": "blue", "right": False}
    assert answers[7]["baseline"]["ended"] is False


def test_a_baseline_that_can_answer(folder: Path, tmp_path: Path) -> None:
    # "red" and "yes" are wrong for two of the first image's and one of the second's.
    data = make_data(folder, (1, 4, 5, 7))
    text = evaluate_understanding(
        config(data, tmp_path / "out"), respondents(Scripted(NEW), Scripted(RIGHT))
    )
    assert "answers better than the commonest answer" in text and "says nothing" not in text


@pytest.mark.parametrize("stopped", ["ckpt", "baseline"])
def test_going_on_gives_what_an_uninterrupted_one_gives(
    data: Path, tmp_path: Path, stopped: str
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    evaluate_understanding(config(data, whole), respondents(Scripted(NEW), Scripted(OLD)))
    first = {"ckpt": Scripted(NEW), "baseline": Scripted(OLD)}
    first[stopped].stop_at = 4
    with pytest.raises(KeyboardInterrupt):
        evaluate_understanding(config(data, parts), respondents(first["ckpt"], first["baseline"]))
    assert not (parts / "scores.json").exists()
    # What a killed process left of its last line.
    with open(parts / "asked" / "answers.jsonl", "a") as file:
        file.write('{"key": "ab')
    second = {"ckpt": Scripted(NEW), "baseline": Scripted(OLD)}
    evaluate_understanding(config(data, parts), respondents(second["ckpt"], second["baseline"]))
    for name in ("scores.json", "scores.md", "answers.jsonl"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
    for name in first:
        assert sorted(first[name].asked + second[name].asked) == list(range(1, 9))
    # With everything there, nobody is even loaded.
    third = Scripted(NEW), Scripted(OLD)
    evaluate_understanding(config(data, parts), respondents(*third))
    assert [side.loaded for side in third] == [0, 0]


def test_a_changed_image_is_asked_about_anew(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate_understanding(config(data, out), respondents(Scripted(NEW), Scripted(OLD)))
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(data.parent / "two.png")
    again = Scripted(NEW)
    evaluate_understanding(config(data, out), respondents(again, Scripted(OLD)))
    assert again.asked == [3, 4, 7, 8]


@pytest.mark.parametrize(
    ("field", "value"),
    [("questions", 0), ("seed", -1), ("batch", 0), ("max_tokens", 0), ("max_bad", 1.5)],
)
def test_refused_settings(tmp_path: Path, field: str, value: float) -> None:
    with pytest.raises(InputError, match=field):
        UnderstandingConfig(out=tmp_path, ckpt="A", baseline="B", **{field: value})
