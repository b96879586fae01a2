"""CLIP's text: captions as 77 ids, by byte-level BPE in lower case.

The BPE is that of the `tokenizers` library. CLIP's vocabulary follows from its list of merges: 256
bytes, 256 bytes that end a word, one entry a merge, start, end. So only the merges are read, from
`merges.txt` or `tokenizer.json` of any CLIP checkpoint on Hugging Face (CLIP has one vocabulary),
or `bpe_simple_vocab_16e6.txt.gz` of OpenAI's CLIP and of open_clip, which lists more merges than
CLIP uses.
"""

from __future__ import annotations

import gzip
import html
import json
import unicodedata
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from gotr1_jax.errors import InputError
from gotr1_jax.io.contents import describe_text
from gotr1_jax.io.reading import read_bytes, read_json, read_json_object

VOCABULARY_FILES = (
    "merges.txt",
    "tokenizer.json",
    "bpe_simple_vocab_16e6.txt.gz",
    "bpe_simple_vocab_16e6.txt",
)
"""Names looked for in a directory, in this order."""

START, END = "<|startoftext|>", "<|endoftext|>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_WORD_END = "</w>"
# What ftfy, the reference's cleaner of captions, does to valid text: straight quotes, ordinary
# characters for ligatures and full-width ones, no control characters.
_COMPOSED = [
    *(0x132, 0x133, *range(0x1C4, 0x1CD), *range(0x1F1, 0x1F4), *range(0xFB00, 0xFB07), 0x3000),
    *range(0xFF01, 0xFFF0),
]
_PLAIN: dict[int, str | None] = {
    **dict.fromkeys([0x02BC, *range(0x2018, 0x201C)], "'"),
    **dict.fromkeys(range(0x201C, 0x2020), '"'),
    **{i: unicodedata.normalize("NFKC", chr(i)) for i in _COMPOSED},
    0xFB05: "ſt",
    **dict.fromkeys([*range(9), 0x0B, *range(0x0E, 0x20), 0x7F, 0xFEFF]),
}


class ClipTokenizer:
    """Captions -> ids.

    Attributes:
      vocab_size: number of ids; the last one is the end token, the one before it the start.
      context_length: ids of a caption, padding included.
    """

    def __init__(
        self,
        merges: Sequence[tuple[str, str]],
        context_length: int = 77,
        source: str = "the list of merges",
    ) -> None:
        """Raises InputError, with `source` in it, for merges that do not build on each other."""
        alphabet = byte_alphabet()
        names = [*alphabet, *(letter + _WORD_END for letter in alphabet)]
        names += [left + right for left, right in merges] + [START, END]
        self.vocabulary = {name: i for i, name in enumerate(names)}
        self.merges = tuple(merges)
        self.vocab_size = len(names)
        self.context_length = context_length
        try:
            bpe = models.BPE(
                vocab=self.vocabulary,
                merges=list(merges),
                continuing_subword_prefix="",
                end_of_word_suffix=_WORD_END,
            )
        except Exception as error:  # tokenizers raises bare Exception
            raise InputError(f"{source} is not a vocabulary of CLIP: {error}") from error
        if len(self.vocabulary) != len(names):
            raise InputError(f"{source} is not a vocabulary of CLIP: a token occurs twice")
        self._bpe = Tokenizer(bpe)
        self._bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    @classmethod
    def from_path(
        cls, path: str | Path, vocab_size: int = 49408, context_length: int = 77
    ) -> ClipTokenizer:
        """The tokenizer of a vocabulary file, or of a directory that holds one.

        Args:
          path: the file, or a directory with one of `VOCABULARY_FILES`.
          vocab_size: ids that the model knows; that many merges are used, more are ignored.
          context_length: positions of the model.

        Raises InputError in one line if there is none, or if it is not CLIP's.
        """
        file = find_vocabulary(path)
        count = vocab_size - 2 * len(byte_alphabet()) - 2
        merges = _read_tokenizer_json(file) if file.suffix == ".json" else _read_merges(file)
        if len(merges) < count:
            raise InputError(
                f"{file} holds {len(merges)} merges, but a vocabulary of {vocab_size} has {count}"
            )
        pairs = [_pair(merge, file) for merge in merges[:count]]
        tokenizer = cls(pairs, context_length, str(file))
        # Ids follow from the merges, so those that a file states have to be the same.
        stated = _stated_ids(file)
        for name, i in tokenizer.vocabulary.items():
            if stated.get(name, i) != i:
                raise InputError(
                    f"{file} is not a vocabulary of CLIP: {name!r} has the id {stated[name]!r}, "
                    f"not {i}"
                )
        return tokenizer

    def encode(self, captions: Sequence[str]) -> np.ndarray:
        """Ids int32 (B, context_length): start, caption, end, zeros.

        A longer caption is cut and its last id is the end, as open_clip does. Text that spells
        the start or end token is encoded as its characters.
        """
        ids = np.zeros((len(captions), self.context_length), np.int32)
        room = self.context_length - 2
        for row, caption in zip(ids, captions):
            words = self._bpe.encode(clean(caption)).ids[:room]
            row[: len(words) + 2] = [self.vocab_size - 2, *words, self.vocab_size - 1]
        return ids

    def save(self, directory: Path) -> None:
        """Writes vocab.json and merges.txt, as checkpoints on Hugging Face have them."""
        text = json.dumps(self.vocabulary, ensure_ascii=False)
        (directory / "vocab.json").write_text(text, encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in self.merges), ""]
        (directory / "merges.txt").write_text("\n".join(lines), encoding="utf-8")


def clean(caption: str) -> str:
    """The caption in lower case, its blanks single, its HTML entities and odd quotes resolved.

    open_clip also repairs wrongly decoded text with ftfy; captions here are valid as they are.
    """
    text = unicodedata.normalize("NFC", caption.translate(_PLAIN))
    return " ".join(html.unescape(html.unescape(text)).split()).lower()


def byte_alphabet() -> list[str]:
    """The 256 letters that stand for bytes, in the order of their ids."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def find_vocabulary(path: str | Path) -> Path:
    """The vocabulary file that `path`, a file or a directory, stands for; InputError if none."""
    path = Path(path)
    if path.is_file():
        return path
    for name in VOCABULARY_FILES:
        if (path / name).is_file():
            return path / name
    where = f"in {path}" if path.is_dir() else f"at {path}"
    raise InputError(
        f"no CLIP vocabulary {where}: give or put there merges.txt or tokenizer.json of a CLIP "
        "checkpoint, or open_clip's bpe_simple_vocab_16e6.txt.gz"
    )


def _read_merges(file: Path) -> list[str]:
    """Merges of a text file, one a line, packed or not; a first line with its version is none."""
    try:
        data = read_bytes(file, "merges")
        text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{file} is truncated or not a gzip file: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not a list of merges: it is not UTF-8 text") from error
    if kind := describe_text(text):
        raise InputError(f"{file} is not a list of merges: it is {kind}")
    lines = text.split("\n")
    return lines[1 if "#version" in lines[0] else 0 : None if lines[-1] else -1]


def _read_tokenizer_json(file: Path) -> list[str] | list[list[str]]:
    """Merges of a tokenizer.json, as "left right" or as pairs."""
    try:
        merges = read_json(file)["model"]["merges"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{file} is not a tokenizer with merges: {error!r}") from error
    if not isinstance(merges, list):
        raise InputError(f"{file} is not a tokenizer with merges")
    return merges


def _stated_ids(file: Path) -> dict[str, Any]:
    """The ids in a tokenizer.json, or in the vocab.json beside a list of merges."""
    if file.suffix != ".json":
        return read_json_object(file.parent / "vocab.json", missing_ok=True)
    vocab = read_json_object(file)["model"].get("vocab")
    return vocab if isinstance(vocab, dict) else {}


def _pair(merge: Any, file: Path) -> tuple[str, str]:
    parts = merge.split() if isinstance(merge, str) else merge
    if not isinstance(parts, list) or [type(part) for part in parts] != [str, str]:
        raise InputError(f"{file} is not a vocabulary of CLIP: {merge!r} is not a merge of two")
    return parts[0], parts[1]
