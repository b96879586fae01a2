"""Noun phrases by rules, spaCy's place, and every prompt file read whole."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from gotr1_jax.data.captions import iter_captions
from gotr1_jax.errors import InputError
from gotr1_jax.evaluation import phrases
from gotr1_jax.evaluation.compbench_rules import phrase_questions, simple_objects, spatial_relation
from gotr1_jax.evaluation.phrases import RuleParser, Word, make_parser


@pytest.mark.parametrize(
    "caption, found",
    [
        ("a green bench and a blue bowl", ["a green bench", "a blue bowl"]),
        ("rubber sole shoes and fluffy clouds", ["rubber sole shoes", "fluffy clouds"]),
        ("The red hat was on top of the brown coat rack.",
         ["The red hat", "top", "the brown coat rack"]),
        ("a couch on the right of a chicken", ["a couch", "the right", "a chicken"]),
        ("The glossy, red apple, a pear and ripe plums lay on two oval plates.",
         ["The glossy, red apple", "a pear", "ripe plums", "two oval plates"]),
        ("The orange pyramid was nestled between the pink hemisphere and the cone.",
         ["The orange pyramid", "the pink hemisphere", "the cone"]),
        ("A woman is chatting with a friend, holding a cup.", ["A woman", "a friend", "a cup"]),
        ("A striped rug near the building", ["A striped rug", "the building"]),
        ("", []), ("...", []), ("the", []),
    ],
)  # fmt: skip
def test_rules_find_noun_phrases(caption: str, found: list[str]) -> None:
    assert list(RuleParser().parse(caption).phrases) == found


def test_rules_tell_nouns_from_adjectives() -> None:
    words = RuleParser().parse("The small red hat was near two cats").words
    assert words == tuple(
        Word(*w)
        for w in [("The", "DET"), ("small", "ADJ"), ("red", "ADJ"), ("hat", "NOUN"), ("was", "X"),
                  ("near", "X"), ("two", "DET"), ("cats", "NOUN")]
    )  # fmt: skip


def test_without_spacy_one_line_says_what_to_do() -> None:
    with pytest.raises(InputError, match="--phrases rules") as error:
        make_parser("spacy")
    assert "\n" not in str(error.value)


def test_spacy_is_asked_for_chunks_and_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in of spaCy's interface: its model cannot be had offline."""

    class Document(list):  # type: ignore[type-arg]
        noun_chunks = [SimpleNamespace(text="a red hat")]

    tokens = [SimpleNamespace(text=t, pos_=p) for t, p in (("a", "DET"), ("hat", "NOUN"))]
    module = ModuleType("spacy")
    module.load = lambda name: lambda caption: Document(tokens)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spacy", module)
    monkeypatch.setattr(phrases, "find_spec", lambda name: name)
    read = make_parser("spacy").parse("a red hat")
    assert read.phrases == ("a red hat",)
    assert read.words == (Word("a", "DET"), Word("hat", "NOUN"))


def test_every_prompt_file_is_read_whole(shared: Path) -> None:
    parser = RuleParser()
    files = sorted((shared / "prompts" / "t2i_compbench").glob("*.txt"))
    assert len(files) == 16
    for file in files:
        captions = [line.text for line in iter_captions(file)]
        assert len(captions) == (300 if file.stem.endswith("_val") else 700), file
        for caption in captions:
            read = parser.parse(caption)
            assert read.phrases and phrase_questions(read), (file, caption)
            if file.stem == "spatial_val":
                assert spatial_relation(caption) and simple_objects(read), caption
    for file in (shared / "prompts" / "reasongen_r1").glob("*.txt"):
        assert all(parser.parse(line.text).words for line in iter_captions(file))
