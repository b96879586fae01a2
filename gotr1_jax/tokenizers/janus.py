"""Janus's tokenizer and chat formats: captions, questions and plans as token ids.

Every special id is looked up by its string, because the ids differ between released checkpoints.
`tokenizer.json` is loaded as it is: `transformers` rebuilds the class that the released
tokenizer_config.json names and loses this vocabulary's spaces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from gotr1_jax.errors import InputError
from gotr1_jax.io.reading import read_text
from gotr1_jax.plan import BOX_END, BOX_START, OBJ_END, OBJ_START
from gotr1_jax.tokenizers.plain_text import PlainTextTokenizer

GOTR1_TEMPLATE = (
    "User: Follow the caption to generate an image through a chain of thought process: "
    "{caption}\n\nAssistant:"
)
"""GoT-R1's prompt; its role words are ordinary text."""

JANUS_TEMPLATE = "<|User|>: {caption}\n\n<|Assistant|>:"
"""Janus-Pro's plain text-to-image prompt, without a plan; its role words are control tokens."""

REASONGEN_SFT_TEMPLATE = JANUS_TEMPLATE.replace(
    "{caption}", "{caption}. Output a richly detailed prompt:"
)
"""ReasonGen-R1's prompt for supervised training (its repository, examples/janus_sft.sh). The chat
format drops the blank at the end of a message."""

REASONGEN_RL_TEMPLATE = REASONGEN_SFT_TEMPLATE.replace("{caption}", "A photo of {caption}")
"""ReasonGen-R1's prompt for reinforcement learning and generation (examples/janus_rl.sh)."""

TEMPLATES = {
    "gotr1": GOTR1_TEMPLATE,
    "janus": JANUS_TEMPLATE,
    "reasongen_sft": REASONGEN_SFT_TEMPLATE,
    "reasongen_rl": REASONGEN_RL_TEMPLATE,
}
"""Names for the prompts of released models."""

MAX_PROMPT_TOKENS = 2048
"""Default limit of `TextTokenizer.encode_prompt`."""

_ROLES = ("<|User|>", "<|Assistant|>")

TOKENIZER_FILE = "tokenizer.json"
PLAN_TOKENS = (BOX_START, BOX_END, OBJ_START, OBJ_END)
"""Control tokens of a plan, in the order in which GoT-R1 added them to the vocabulary."""


@dataclass(frozen=True)
class SpecialIds:
    """Ids of Janus's special tokens in one vocabulary."""

    bos: int
    eos: int
    pad: int
    boi: int
    eoi: int
    image: int


SPECIAL_STRINGS = {
    "bos": "<｜begin▁of▁sentence｜>",
    "eos": "<｜end▁of▁sentence｜>",
    "pad": "<｜▁pad▁｜>",
    "boi": "<begin_of_image>",
    "eoi": "<end_of_image>",
    "image": "<image_placeholder>",
}


class TextTokenizer:
    """A checkpoint's tokenizer, safe against control tokens written out in a caption.

    Attributes:
      specials: the ids of Janus's special tokens.
      vocab_size: rows that an embedding needs for it, the largest id + 1.
    """

    def __init__(self, data: str, source: str = TOKENIZER_FILE) -> None:
        """Reads the text of a tokenizer.json; `source` is its name in error messages.

        Raises InputError when the text is not a tokenizer or a special token is missing.
        """
        names = (*SPECIAL_STRINGS.values(), *PLAN_TOKENS, *_ROLES)
        self._text = PlainTextTokenizer(data, source, names)
        known = self._text.known
        missing = [text for text in SPECIAL_STRINGS.values() if text not in known]
        if missing:
            raise InputError(
                f"{source} lacks the special token {', '.join(missing)}; "
                "a Janus-Pro tokenizer is needed"
            )
        self.specials = SpecialIds(**{name: known[text] for name, text in SPECIAL_STRINGS.items()})
        self.vocab_size = max(known.values()) + 1
        self._control = self._text.control
        self._plan_tokens = {text: known[text] for text in PLAN_TOKENS if text in known}
        self._invisible = self._text.special - set(self._plan_tokens.values())

    @property
    def marks_plans(self) -> bool:
        """Whether it has all control tokens of a plan."""
        return len(self._plan_tokens) == len(PLAN_TOKENS)

    @property
    def number_ids(self) -> dict[int, int]:
        """Ids of the tokens that are a coordinate, "0" to "999" without leading zeros, by value."""
        return self._text.number_ids

    @classmethod
    def from_dir(cls, path: str | Path) -> TextTokenizer:
        """The tokenizer of a checkpoint directory.

        Raises InputError if it has none that fits, and for one that loses text.
        """
        file = Path(path) / TOKENIZER_FILE
        tokenizer = cls(read_text(file), str(file))
        tokenizer._text.check_round_trip()
        return tokenizer

    def encode_prompt(
        self,
        caption: str,
        template: str = GOTR1_TEMPLATE,
        max_tokens: int = MAX_PROMPT_TOKENS,
    ) -> list[int]:
        """Ids of a caption in a template, BOS in front.

        Control tokens come from the template alone. Text in the caption that spells one, alone,
        nested or together with the template, is encoded as ordinary characters; every other
        caption is encoded exactly as by the tokenizer itself.
        Raises InputError for a caption that is empty, not valid Unicode or too long.
        """
        format_prompt(caption, template)
        head, tail = template.split("{caption}")
        ids = self._encode_parts([(head, True), (caption.strip(), False), (tail, True)])
        if len(ids) > max_tokens:
            raise InputError(
                f"the prompt has {len(ids)} tokens, more than the limit of {max_tokens}; "
                f"shorten the caption {_short(caption)}"
            )
        return ids

    def encode_question(
        self,
        question: str,
        images: int,
        tokens_per_image: int,
        system: str = "",
        max_tokens: int = MAX_PROMPT_TOKENS,
    ) -> list[int]:
        """Ids of a question about images in Janus's chat format, BOS in front.

        The images stand in front of the question, each as BOI, `tokens_per_image` times the
        placeholder, EOI. `system` comes first, if it is not blank. Neither text can spell a
        control token (see `encode_prompt`). `max_tokens` counts text, an image as one token.
        Raises InputError for a question that is empty, not valid Unicode or too long.
        """
        short = self._encode_parts(chat_parts(question, images, system))
        if len(short) > max_tokens:
            raise InputError(
                f"the question has {len(short)} tokens, more than the limit of {max_tokens}; "
                f"shorten {_short(question)}"
            )
        s = self.specials
        embedding = [s.boi, *[s.image] * tokens_per_image, s.eoi]
        return [i for token in short for i in (embedding if token == s.image else [token])]

    def encode_plan(self, text: str) -> list[int]:
        """Ids of a plan's text: its box and object marks are control tokens, nothing else is.

        BOI is not appended. Raises InputError if the text is not valid Unicode.
        """
        _check_unicode(text, "plan")
        return self._encode_around(text, _find(text, self._plan_tokens), self._plan_tokens)

    def decode(self, ids: Iterable[int], keep_special: bool = False) -> str:
        """Text of token ids; ids without a string are dropped, bytes that are not UTF-8 give �.

        The marks of a plan are always kept; the other special tokens only if `keep_special`.
        """
        kept = [int(i) for i in ids]
        if not keep_special:
            kept = [i for i in kept if i not in self._invisible]
        return self._text.full.decode(kept, skip_special_tokens=False)

    def _encode_parts(self, parts: Sequence[tuple[str, bool]]) -> list[int]:
        """BOS and the ids of a text's parts (text, markup); control tokens come from markup only.

        What two parts spell together is never a control token.
        """
        spans: list[tuple[int, int]] = []
        at = 0
        for text, markup in parts:
            if markup:
                spans += [(at + a, at + b) for a, b in _find(text, self._control)]
            at += len(text)
        whole = "".join(text for text, _ in parts)
        return [self.specials.bos, *self._encode_around(whole, spans, self._control)]

    def _encode_around(
        self, text: str, spans: Sequence[tuple[int, int]], tokens: dict[str, int]
    ) -> list[int]:
        """Ids of `text`: `tokens` at `spans`, ascending, ordinary characters elsewhere."""
        ids: list[int] = []
        start = 0
        for a, b in [*spans, (len(text), len(text))]:
            if start < a:
                ids += self._text.encode(text[start:a])
            if a < b:
                ids.append(tokens[text[a:b]])
            start = b
        return ids


def add_plan_tokens(data: str) -> str:
    """The text of a tokenizer.json with the control tokens of a plan added after all others.

    It turns a Janus-Pro tokenizer into GoT-R1's; the new ids use spare rows of the embedding.
    """
    tokenizer = Tokenizer.from_str(data)
    # Not special to the tokenizer: decoded plans must show them.
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in PLAN_TOKENS])
    return tokenizer.to_str(pretty=True)


def format_prompt(caption: str, template: str = GOTR1_TEMPLATE) -> str:
    """The prompt's text without BOS; InputError for an empty or invalid caption.

    Blanks around the caption are dropped.
    """
    if template.count("{caption}") != 1:
        raise InputError(f"a prompt template needs {{caption}} exactly once: {template!r}")
    _check_unicode(caption, "caption")
    if not caption.strip():
        raise InputError("the caption is empty; give a few words")
    return template.replace("{caption}", caption.strip())


def chat_parts(question: str, images: int, system: str = "") -> list[tuple[str, bool]]:
    """Janus's chat text of one question about images, without BOS: (text, is markup) parts.

    Blanks around the texts are dropped. Raises InputError for an empty or invalid text.
    """
    for text, what in ((question, "question"), (system, "system line")):
        _check_unicode(text, what)
    if not question.strip():
        raise InputError("the question is empty; ask something about the image")
    head, tail = JANUS_TEMPLATE.split("{caption}")
    # Line ends as the Hugging Face port's chat template writes them.
    shown = "\n\n".join([SPECIAL_STRINGS["image"]] * images) + "\n" if images else ""
    first = [(f"{system.strip()}\n\n", False)] if system.strip() else []
    return [*first, (head + shown, True), (question.strip(), False), (tail, True)]


def without_boi(plan_text: str) -> str:
    """The text of a plan without the token that begins the image, with which sampled ones end."""
    return plan_text.rstrip().removesuffix(SPECIAL_STRINGS["boi"])


def _find(text: str, tokens: Iterable[str]) -> list[tuple[int, int]]:
    """Spans of `tokens` in `text`, leftmost first, the longest at each place."""
    ordered = sorted(tokens, key=len, reverse=True)
    if not ordered:
        return []
    return [m.span() for m in re.finditer("|".join(map(re.escape, ordered)), text)]


def _check_unicode(text: str, what: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"the {what} is not valid Unicode: {error.reason}") from error


def _short(text: str, length: int = 40) -> str:
    return repr(text if len(text) <= length else text[:length] + "…")
