"""A tokenizer.json as it is, and a copy of it that knows no control token, for text of users.

A vocabulary that loses text or lets text become a control token gives wrong samples and rewards
without any error, so both are tried when a tokenizer is loaded.
"""

from __future__ import annotations

import json
import secrets
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from tokenizers import Tokenizer

from gotr1_jax.errors import InputError
from gotr1_jax.io.contents import describe_text
from gotr1_jax.io.reading import parse_json

# Texts that have to come back from their ids.
_PROBES = (
    "a red circle left of a blue square",
    "Two  blanks,   three\tand a tab\n\na line\r\n  indented \n",
    " blank in front and behind ",
    "0 1 12 345 6789 1234567890 3.14 -7 50% (36,66),(907,694) {braces} [x] <y> \"z\" 'it''s'",
    "\n".join(str(n) for n in range(0, 1000, 37)),
    "Ünïcödé ø Straße Ελληνικά Русский עברית مربع أحمر हिन्दी ไทย 正方形 ひらがな 한국어 ＡＢＣ",
    "🟥 👩‍👩‍👧 🇩🇪 👍🏽 ∑ ≤ → © ½ – “quotes” …",
)


class PlainTextTokenizer:
    """A tokenizer in two copies: `full` decodes, `encode` takes text that holds no markup.

    Attributes:
      full: the tokenizer as the file has it, without truncation and padding.
      known: ids by their strings.
      control: those of control tokens; `encode` gives none of them.
      special: ids of tokens that the file calls special.
    """

    def __init__(self, data: str, source: str, names: Iterable[str]) -> None:
        """Reads the text of a tokenizer.json; `source` is its name in error messages.

        `names` are control tokens besides those that the file adds to its vocabulary. Raises
        InputError when the text is not a tokenizer, or if text could become a control token.
        """
        self.source = source
        try:
            self.full = Tokenizer.from_str(data)
            spec = parse_json(data, source)
            self.known: dict[str, int] = self.full.get_vocab(with_added_tokens=True)
            added = spec["added_tokens"]
            control = [token["content"] for token in added if _is_control(token)]
            control += [name for name in names if name in self.known]
            self._plain = Tokenizer.from_str(json.dumps(_without(spec, dict.fromkeys(control))))
            self.control = {text: self.known[text] for text in control}
            self.special = {self.known[t["content"]] for t in added if t["special"]}
            self._letters = [t["content"] for t in added if t["content"] not in self.control]
            unknown = spec["model"].get("unk_token")
        except Exception as error:  # tokenizers raises bare Exception
            kind = describe_text(data)
            raise InputError(
                f"{source} is not a readable tokenizer: {f'it is {kind}' if kind else error}"
            ) from error
        self.full.no_truncation()
        self.full.no_padding()
        self._check_ids(added)
        # What stands for unknown characters loses text, but commands nothing.
        self._forbidden = {i for text, i in self.control.items() if text != unknown}
        self._forbidden |= {self.known[name] for name in names if name in self.known}
        for text in self.control:
            self.encode(f"{text} x{text}{text}\n{text.upper()}")

    def encode(self, text: str) -> list[int]:
        """Ids of text; control tokens spelled out in it are encoded as ordinary characters."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        if not self._forbidden.isdisjoint(ids):
            raise InputError(
                f"{self.source} turns the text {_short(text)} into a control token; use the "
                "tokenizer.json of the released checkpoint"
            )
        return ids

    @property
    def number_ids(self) -> dict[int, int]:
        """Ids of the tokens "0" to "999" without leading zeros, by their values."""
        return {value: self.known[str(value)] for value in range(1000) if str(value) in self.known}

    def check_round_trip(self) -> None:
        """InputError if a text does not come back from its ids."""
        for text in (*_PROBES, _every_byte(), *self.control):
            # Released vocabularies add letters (ø) that their own decoder does not give back.
            for letter in self._letters:
                text = text.replace(letter, "")
            if _composed(text) == text:
                self._check_back(text, text)
        for letter in self._letters:
            # But with options of its own such a letter would take the blanks around it.
            if _composed(letter) == letter:
                shown = self.full.decode([self.known[letter]], skip_special_tokens=False)
                self._check_back(f"a {letter} b", f"a {shown} b")

    def _check_back(self, text: str, expected: str) -> None:
        back = self.full.decode(self.encode(text), skip_special_tokens=False)
        if back != expected:
            raise InputError(
                f"{self.source} loses text: {_short(text)} comes back as {_short(back)}; use "
                "the tokenizer.json of the released checkpoint"
            )

    def _check_ids(self, added: Sequence[Mapping[str, Any]]) -> None:
        """That ids are as the file says, and that no control token shares its id."""
        for token in added:
            if self.known[token["content"]] != token["id"]:
                raise InputError(
                    f"{self.source} contradicts itself: the id of {token['content']!r} is "
                    f"{token['id']} and {self.known[token['content']]}"
                )
        by_id: dict[int, str] = {}
        for text, i in self.known.items():
            other = by_id.setdefault(i, text)
            if other != text and not self.control.keys().isdisjoint((text, other)):
                raise InputError(f"{self.source}: {text!r} shares its id with {other!r}")
        same = self._plain.get_vocab(with_added_tokens=True)
        if any(same.get(text, i) != i for text, i in self.known.items()):
            raise InputError(f"{self.source} gives its tokens other ids when it is read again")


def _is_control(token: Mapping[str, Any]) -> bool:
    """Whether an added token is markup. Released vocabularies also add plain letters (ø, ü),
    which captions must keep."""
    text = token["content"].strip()
    return bool(token["special"]) or (text[:1], text[-1:]) in {("<", ">"), ("[", "]")}


def _without(spec: Mapping[str, Any], control: Iterable[str]) -> dict[str, Any]:
    """The tokenizer `spec` with its control tokens under names that no text can hold.

    Renaming keeps all ids, which removing them would not. The model's vocabulary may hold them
    too, and merges may lead to them.
    """
    nonce = secrets.token_hex(16)
    renamed = {text: f"\x00{nonce}:{i}\x00" for i, text in enumerate(control)}
    added = [
        {**t, "content": renamed.get(t["content"], t["content"])} for t in spec["added_tokens"]
    ]
    model = dict(spec["model"])
    if "dropout" in model:  # of merges, at random, for training a vocabulary
        model["dropout"] = None
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {renamed.get(text, text): i for text, i in vocab.items()}
    else:
        model["vocab"] = [[renamed.get(text, text), score] for text, score in vocab]
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
    if model.get("merges"):
        skipped = len(model.get("continuing_subword_prefix") or "")
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [
            [left, right]
            for left, right in pairs
            if renamed.keys().isdisjoint((left, right, left + right, left + right[skipped:]))
        ]
    plain = {"post_processor": None, "truncation": None, "padding": None}
    return {**spec, **plain, "added_tokens": added, "model": model}


@cache
def _every_byte() -> str:
    """Text whose UTF-8 has every byte that can occur, of characters that do not compose."""
    codes = [*range(1, 0x800), *range(0x800, 0xD800, 0x400), *range(0xE000, 0x10000, 0x400)]
    codes += range(0x10000, 0x110000, 0x4000)
    letters = (chr(code) for code in codes if not unicodedata.combining(chr(code)))
    return "".join(letter for letter in letters if _composed(letter) == letter)


def _composed(text: str) -> str:
    """In the normal form of Unicode that some vocabularies bring all text to."""
    return unicodedata.normalize("NFC", text)


def _short(text: str) -> str:
    return ascii(text if len(text) <= 40 else text[:40] + "…")
