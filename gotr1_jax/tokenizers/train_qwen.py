"""A small tokenizer for a new Qwen2.5-VL, in the file format of the released ones.

Ids: the 256 bytes, merges of frequent words and of the numbers up to 999, then whole phrases, then
the control tokens. A phrase is a text that many examples share to the letter, such as a judge's
instruction: as one token it costs a small model one position and not three hundred.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from gotr1_jax.tokenizers.qwen import SYSTEM

CONTROL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
# Of every chat.
CHAT_PHRASES = (f"system\n{SYSTEM}", "user\n", "assistant\n")
# Line ends; the comma between numbers; numbers; words with the blank in front; signs; blanks.
_WORDS = r"[^\S\r\n]*[\r\n]+|, (?=\p{N})|\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"
_NUMBERS = 1000
_FIXED = 16  # times that every number counts, so that none is left out for a rare word
_SHORTEST_PHRASE = 16  # characters
_MOST_PHRASES = 256


def shared_phrases(texts: Iterable[str], least: int) -> list[str]:
    """The texts, and else the lines, that stand in at least `least` of `texts`; longest first.

    The longest `_MOST_PHRASES`, of `_SHORTEST_PHRASE` characters or more. None looks like markup,
    <...> or [...]: tokenizers take such a token for a control token, which no text becomes.
    """
    whole: Counter[str] = Counter()
    lines: Counter[str] = Counter()
    for text in texts:
        whole[text] += 1
        lines.update(set(text.splitlines(keepends=True)))
    found = {text for text, count in whole.items() if count >= least}
    known = {line for text in found for line in text.splitlines(keepends=True)}
    found |= {line for line, count in lines.items() if count >= least} - known
    kept = [p for p in found if len(p) >= _SHORTEST_PHRASE and not _is_markup(p.strip())]
    return sorted(kept, key=lambda p: (-len(p), p))[:_MOST_PHRASES]


def _is_markup(text: str) -> bool:
    return (text[:1], text[-1:]) in {("<", ">"), ("[", "]")}


def train_qwen_tokenizer(
    texts: Sequence[str], phrases: Sequence[str], vocab_limit: int
) -> Tokenizer:
    """A byte-level BPE of at most `vocab_limit` tokens; any text comes back from it unchanged.

    Args:
      texts: a sample of what it will read and write.
      phrases: texts that become one token wherever they stand; the longest counts.
      vocab_limit: of all tokens; frequent words get what the others leave.
    """
    phrases = [*dict.fromkeys((*CHAT_PHRASES, *phrases))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_limit - len(phrases) - len(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    longest = sorted(phrases, key=len, reverse=True)
    corpus = [str(n) for n in range(_NUMBERS)] * _FIXED
    for text in texts:
        for phrase in longest:
            text = text.replace(phrase, "\0")
        corpus += filter(None, text.split("\0"))
    tokenizer.train_from_iterator(corpus, trainer)
    known = tokenizer.get_vocab()
    tokenizer.add_tokens(
        [AddedToken(p, special=False, normalized=False) for p in phrases if p not in known]
    )
    tokenizer.add_special_tokens([AddedToken(c, special=True, normalized=False) for c in CONTROL])
    return tokenizer
