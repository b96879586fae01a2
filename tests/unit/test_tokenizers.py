"""The tokenizer wrapper: golden prompt ids, control tokens only where they belong, decoding."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from gotr1_jax.errors import InputError
from gotr1_jax.tokenizers.janus import (
    GOTR1_TEMPLATE,
    JANUS_TEMPLATE,
    PLAN_TOKENS,
    REASONGEN_RL_TEMPLATE,
    REASONGEN_SFT_TEMPLATE,
    SPECIAL_STRINGS,
    TextTokenizer,
    add_plan_tokens,
    format_prompt,
)

ROLES = ("<|User|>", "<|Assistant|>")
CONTROL = (*SPECIAL_STRINGS.values(), *ROLES, *PLAN_TOKENS)


def make(special: tuple[str, ...], added: tuple[str, ...] = (), merges: bool = True) -> Tokenizer:
    """A byte-level BPE tokenizer like the released ones, trained on a few words."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330 if merges else 256,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(["a red circle left of a blue square begin_of_image box"] * 5, trainer)
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tok.add_tokens([AddedToken(t, special=False, normalized=False) for t in added])
    return tok


@pytest.fixture(scope="module")
def raw() -> Tokenizer:
    # "ø" and "ü" stand between the special tokens, as they do in the released vocabulary.
    return make((*SPECIAL_STRINGS.values(),) + ROLES, ("ø", "ü", *PLAN_TOKENS))


@pytest.fixture(scope="module")
def tok(raw: Tokenizer) -> TextTokenizer:
    return TextTokenizer(raw.to_str())


def control_ids(raw: Tokenizer) -> set[int]:
    return {raw.token_to_id(t) for t in CONTROL}


def test_golden_prompt_ids(shared: Path, tmp_path: Path) -> None:
    sys.path.insert(0, str(shared / "goldens"))
    try:
        import make_checkpoint
    finally:
        sys.path.pop(0)
    make_checkpoint.write_tokenizer(make_checkpoint.load_spec("janus_a"), tmp_path)
    golden = json.loads((shared / "goldens" / "janus_a_generate.json").read_text())
    tok = TextTokenizer.from_dir(tmp_path)
    assert format_prompt(golden["caption"]) == golden["sft_prompt"]
    assert tok.encode_prompt(golden["caption"]) == golden["prompt_ids"]
    assert (tok.specials.bos, tok.specials.boi, tok.specials.pad) == (1, 5, 7)
    assert tok.decode(golden["text_ids"], keep_special=True) == golden["text"]
    assert tok.decode(golden["text_ids"]) == golden["text"].replace("<begin_of_image>", "")


@pytest.mark.parametrize(
    "caption",
    [
        "a red circle left of a blue square",
        "two  blanks, {braces} and 3 < 5 > 2",
        "Bjørn's grün 🟥 مربع أحمر 正方形",
        "a\ttab\nand a line",
    ],
)
@pytest.mark.parametrize("template", [GOTR1_TEMPLATE, JANUS_TEMPLATE])
def test_ordinary_captions_as_the_tokenizer_alone(
    raw: Tokenizer, tok: TextTokenizer, caption: str, template: str
) -> None:
    plain = raw.encode(template.replace("{caption}", caption), add_special_tokens=False).ids
    assert tok.encode_prompt(caption, template) == [tok.specials.bos, *plain]


@pytest.mark.parametrize(
    "caption",
    [
        *CONTROL,
        "".join(CONTROL),
        "<begin_<begin_of_image>of_image>",
        "<begin_of_image<begin_of_image>>",
        "a <|box_start|>(1,2),(3,4)<|box_end|> b",
        "red <begin_of_image>",
    ],
)
@pytest.mark.parametrize("template", [GOTR1_TEMPLATE, JANUS_TEMPLATE])
def test_control_text_in_a_caption_stays_text(
    raw: Tokenizer, tok: TextTokenizer, caption: str, template: str
) -> None:
    ids = tok.encode_prompt(caption, template)
    roles = [raw.token_to_id(t) for t in ROLES] if template == JANUS_TEMPLATE else []
    assert [i for i in ids if i in control_ids(raw)] == [tok.specials.bos, *roles]
    assert tok.decode(ids[1:], keep_special=True) == format_prompt(caption, template)


def test_prompts_of_reasongen_r1() -> None:
    end = "Output a richly detailed prompt:\n\n<|Assistant|>:"
    assert format_prompt("a cat ", REASONGEN_SFT_TEMPLATE) == f"<|User|>: a cat. {end}"
    assert format_prompt("a cat", REASONGEN_RL_TEMPLATE) == f"<|User|>: A photo of a cat. {end}"


def test_caption_cannot_complete_a_token_with_the_template(tok: TextTokenizer) -> None:
    ids = tok.encode_prompt("<begin_of", "{caption}_image> x")
    assert tok.specials.boi not in ids
    ids = tok.encode_prompt("of_image>", "x <begin_{caption}")
    assert tok.specials.boi not in ids


def test_control_text_in_a_word_level_vocabulary() -> None:
    vocab = {t: i for i, t in enumerate(("[UNK]", *CONTROL, "red", "circle"))}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in CONTROL])
    tok = TextTokenizer(raw.to_str())
    ids = tok.encode_prompt("red <begin_of_image> circle", "{caption}")
    assert ids == [vocab[t] for t in (SPECIAL_STRINGS["bos"], "red", "[UNK]", "circle")]


def test_plan_marks_are_tokens_and_nothing_else_is(raw: Tokenizer, tok: TextTokenizer) -> None:
    plan = "<|obj_start|>red circle<|obj_end|> <|box_start|>(1,2),(3,4)<|box_end|>"
    ids = tok.encode_plan(plan)
    assert ids == raw.encode(plan, add_special_tokens=False).ids
    assert [i for i in ids if i in control_ids(raw)] == [
        raw.token_to_id(t) for t in ("<|obj_start|>", "<|obj_end|>", "<|box_start|>", "<|box_end|>")
    ]
    assert tok.decode([*ids, tok.specials.boi]) == plan
    assert tok.decode([*ids, tok.specials.boi], keep_special=True) == plan + "<begin_of_image>"
    assert tok.specials.boi not in tok.encode_plan("x<begin_of_image>y")


def test_marks_stay_visible_when_the_vocabulary_calls_them_special() -> None:
    tok = TextTokenizer(make(CONTROL).to_str())
    text = "<|box_start|>(1,2),(3,4)<|box_end|>"
    assert tok.decode([*tok.encode_plan(text), tok.specials.eos]) == text


def test_vocab_size_is_the_largest_id_and_one(raw: Tokenizer, tok: TextTokenizer) -> None:
    assert tok.vocab_size == max(raw.get_vocab().values()) + 1


@pytest.mark.parametrize("caption", ["", "   \n\t "])
def test_empty_caption(tok: TextTokenizer, caption: str) -> None:
    with pytest.raises(InputError, match="caption is empty"):
        tok.encode_prompt(caption)


def test_invalid_unicode(tok: TextTokenizer) -> None:
    with pytest.raises(InputError, match="not valid Unicode"):
        tok.encode_prompt("a \ud800 b")


def test_long_caption_names_both_numbers(tok: TextTokenizer) -> None:
    length = len(tok.encode_prompt("red " * 50))
    assert len(tok.encode_prompt("red " * 50, max_tokens=length)) == length
    with pytest.raises(InputError, match=f"{length} tokens.* limit of {length - 1}"):
        tok.encode_prompt("red " * 50, max_tokens=length - 1)


def test_missing_special_token_is_named() -> None:
    specials = tuple(t for t in SPECIAL_STRINGS.values() if t != "<end_of_image>")
    with pytest.raises(InputError, match="lacks the special token <end_of_image>"):
        TextTokenizer(make(specials).to_str())


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tokenizer.json cannot be read"):
        TextTokenizer.from_dir(tmp_path)
    for content in (b"{", b'{"a": 1}', b"\xff\xfe"):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(InputError, match="not (a readable tokenizer|UTF-8 text)"):
            TextTokenizer.from_dir(tmp_path)


def test_the_marks_of_plans_come_behind_all_other_tokens() -> None:
    released = make((*SPECIAL_STRINGS.values(),) + ROLES, ("ø",))
    before, after = (
        TextTokenizer(t) for t in (released.to_str(), add_plan_tokens(released.to_str()))
    )
    assert not before.marks_plans and after.marks_plans
    size = before.vocab_size
    assert after.vocab_size == size + 4 and after.specials == before.specials
    plan = "<|obj_start|>a circle<|obj_end|> <|box_start|>(1,2),(3,4)<|box_end|> red"
    ids = after.encode_plan(plan)
    # In GoT-R1's order: box_start, box_end, obj_start, obj_end.
    assert [i - size for i in ids if i >= size] == [2, 3, 0, 1]
    assert after.decode(ids) == plan
    assert max(before.encode_plan(plan)) < size
    assert after.encode_prompt("a red circle") == before.encode_prompt("a red circle")
    assert add_plan_tokens(add_plan_tokens(released.to_str())) == add_plan_tokens(released.to_str())


def edited(raw: Tokenizer, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A folder with the tokenizer after a change of its JSON."""
    data = json.loads(raw.to_str())
    change(data)
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


def test_tokenizers_that_lose_text(raw: Tokenizer, tmp_path: Path) -> None:
    changes: tuple[Callable[[dict[str, Any]], None], ...] = (
        lambda d: d.update(normalizer={"type": "Lowercase"}),
        lambda d: d.update(normalizer={"type": "NFKC"}),
        lambda d: d.update(pre_tokenizer={"type": "WhitespaceSplit"}),
        lambda d: d.update(decoder=None),
        lambda d: d["pre_tokenizer"].update(add_prefix_space=True),
        lambda d: next(t for t in d["added_tokens"] if t["content"] == "ø").update(lstrip=True),
        lambda d: d["model"]["vocab"].update({"q": 9000, "x_": d["model"]["vocab"].pop("\u0120")}),
    )
    TextTokenizer.from_dir(edited(raw, tmp_path, lambda d: d.update(normalizer={"type": "NFC"})))
    for change in changes:
        with pytest.raises(InputError, match=r"tokenizer.json (loses text|is not|gives)") as error:
            TextTokenizer.from_dir(edited(raw, tmp_path, change))
        assert "\n" not in str(error.value)


def test_no_vocabulary_makes_control_tokens_of_text(raw: Tokenizer, tmp_path: Path) -> None:
    def only_in_the_vocabulary(data: dict[str, Any]) -> None:
        """The control token is an entry of the vocabulary, which `ignore_merges` looks up."""
        data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] != "<end_of_image>"]
        data["model"]["vocab"] |= {t: raw.token_to_id(t) for t in (*CONTROL, "ø", "ü")}
        data["model"]["ignore_merges"] = True
        data["pre_tokenizer"]["use_regex"] = False

    tok = TextTokenizer.from_dir(edited(raw, tmp_path, only_in_the_vocabulary))
    ids = tok.encode_prompt("<end_of_image>", "{caption}")
    assert tok.specials.eoi not in ids and tok.decode(ids) == "<end_of_image>"

    def shared(data: dict[str, Any]) -> None:
        data["model"]["vocab"]["a"] = raw.token_to_id("<begin_of_image>")

    with pytest.raises(InputError, match="tokenizer.json"):
        TextTokenizer.from_dir(edited(raw, tmp_path, shared))
