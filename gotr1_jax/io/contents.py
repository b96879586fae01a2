"""What a file holds by its first bytes, where that is not what its name promises."""

from __future__ import annotations

import codecs
import re

START_BYTES = 512
"""How much of a file's beginning is looked at."""

_AGAIN = "download it again"
# (pattern at the beginning of a file, what it is and what to do).
_KINDS: tuple[tuple[bytes, str], ...] = (
    (
        rb"version https://git-lfs",
        "a Git LFS pointer, not the file itself: run `git lfs pull` in its repository, or "
        f"{_AGAIN}",
    ),
    (
        rb"(?i)(\xef\xbb\xbf)?\s*(<!--.*?-->\s*)?<(!doctype html|html|head|body)",
        f"an HTML page, as a failed download leaves it: {_AGAIN}",
    ),
    (rb"(\xef\xbb\xbf)?\s*<\?xml", f"an XML message, as a failed download leaves it: {_AGAIN}"),
    (rb"GGUF|ggjt|tjgg|lmgg", "a GGUF file of llama.cpp: give the checkpoint that it was made of"),
    (rb"\x89HDF", "an HDF5 file of Keras: give the checkpoint for torch"),
    (rb"\x93NUMPY", "an array of numpy, not a checkpoint"),
    (rb"\x1f\x8b|\xfd7zXZ|BZh|\x28\xb5\x2f\xfd|7z\xbc\xaf", "compressed: unpack it first"),
    (rb"Rar!|.{257}ustar", "an archive: unpack it and give the folder"),
    (rb"\x00{64}", f"zero bytes, as an interrupted download leaves it: {_AGAIN}"),
)  # fmt: skip


def describe_content(start: bytes) -> str | None:
    """What a file that begins with `start` is, with what to do; None if it is nothing known."""
    if not start:
        return f"empty: {_AGAIN}"
    return next((kind for pattern, kind in _KINDS if re.match(pattern, start, re.DOTALL)), None)


def describe_text(text: str) -> str | None:
    """`describe_content` of a file that was read as text."""
    return describe_content(text[:START_BYTES].encode("utf-8", "replace"))


def describe_binary(start: bytes) -> str | None:
    """As `describe_content`, for a file that should not be text."""
    if kind := describe_content(start):
        return kind
    try:
        # A start may end within a letter.
        text, _ = codecs.utf_8_decode(start, "strict", len(start) < START_BYTES)
    except UnicodeDecodeError:
        return None
    if not all(letter.isprintable() or letter in "\r\n\t" for letter in text):
        return None
    first = " ".join(text.split())
    shown = first if len(first) <= 60 else first[:60] + "…"
    return f"text that begins with {shown!r}: {_AGAIN}"
