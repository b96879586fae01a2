"""The one way of reading what a user names or a folder holds: every error is one line.

    open_file     a regular file for reading in pieces, or for a library that takes an open file
    read_bytes    read_text    read_lines    the content of a file, within a bound of its size
    read_start                               its first bytes, to see what it is
    read_json     read_json_object           the content of a JSON file
    parse_json    parse_json_object          text that came from elsewhere; YAML: io.strict_yaml
    list_folder   is_stray_file              the entries of a folder that can be data

A name may be that of a FIFO, which would wait for a writer forever, of a device that never ends,
of a folder, or of nothing at all; JSON may be nested until Python's stack ends, hold numbers
that are no numbers, or a key twice. All of that is an InputError that names the file.
Nothing else in the package opens files for reading (tests/unit/test_reading.py).
"""

from __future__ import annotations

import io
import json
import math
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from gotr1_jax.errors import InputError
from gotr1_jax.io.contents import START_BYTES, describe_text

MAX_BYTES = 2**28
"""Largest file that is read whole, and largest text that is parsed: 256 MiB. The longest
tokenizer and the longest index of a checkpoint have a tenth of that."""
MAX_LINE = 2**26
"""Longest line, in characters: a record with an image in base64 fits."""
MAX_DEPTH = 100
"""Deepest nesting of JSON; code that walks through values recurses that far safely."""
_MAX_DIGITS = 300  # of an integer, so that it is a finite float64

_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO (a named pipe)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# Files that operating systems, editors and archivers leave in folders; names in lower case.
_STRAY_NAMES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "$recycle.bin"}
_STRAY_ENDINGS = (".tmp", ".temp", ".bak", ".swp", ".part", ".partial", ".crdownload", "~")
_STRAY_STEMS = {"readme", "license", "licence", "changelog"}

Result = TypeVar("Result")


# Fetches what is missing of a file that is here in part (`io.storage`).
_complete: Callable[[str | os.PathLike[str]], None] | None = None


def before_opening(action: Callable[[str | os.PathLike[str]], None]) -> None:
    """What every `open_file` does first, with the path."""
    global _complete
    _complete = action


def open_file(
    path: str | os.PathLike[str], what: str = "", *, in_part: bool = False
) -> io.BufferedReader:
    """An open regular file, read-only and buffered; the caller closes it.

    in_part: of a file that is here in part nothing is fetched; the caller knows what it may read.

    InputError, which calls its content `what`, for a FIFO, device, socket or folder, for a name
    that no file can have, and for a file that is missing or may not be read.
    """

    if _complete is not None and not in_part:
        _complete(path)

    def open_regular() -> io.BufferedReader:
        _refuse_other_kinds(path, os.stat(path), what)
        # Without O_NONBLOCK, a FIFO that has just taken the file's place would wait for a writer.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        file = os.fdopen(os.open(path, flags), "rb")
        _refuse_other_kinds(path, os.fstat(file.fileno()), what)
        return file

    return _reading(path, what, open_regular)


def read_bytes(
    path: str | os.PathLike[str], what: str = "", *, max_bytes: int = MAX_BYTES
) -> bytes:
    """All bytes of a file; InputError as of `open_file`, and for more than `max_bytes`."""
    with open_file(path, what) as file:
        data = _reading(path, what, lambda: file.read(max_bytes + 1))
    if len(data) > max_bytes:
        _fail(path, what, f"it has more than {max_bytes} bytes; is it the right file?")
    return data


def read_start(path: str | os.PathLike[str]) -> bytes:
    """The first `START_BYTES` of a file; InputError as of `open_file`."""
    with open_file(path) as file:
        return _reading(path, "", lambda: file.read(START_BYTES))


def read_text(path: str | os.PathLike[str], what: str = "", *, max_bytes: int = MAX_BYTES) -> str:
    """The text of a UTF-8 file, without a byte order mark, newlines as they stand in it.

    InputError as of `read_bytes`, and for a file that is not UTF-8.
    """
    data = read_bytes(path, what, max_bytes=max_bytes)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{_subject(path, what)} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error


def read_lines(path: str | os.PathLike[str], what: str) -> Iterator[tuple[int, str]]:
    """(number from 1, stripped text) of the non-blank lines of a UTF-8 file, read one by one.

    InputError as of `open_file`, for text that is not UTF-8 and for a line over `MAX_LINE`.
    """
    number = 0
    try:
        # Not splitlines(): it also cuts at characters that may occur inside a caption.
        with io.TextIOWrapper(open_file(path, what), encoding="utf-8-sig") as stream:
            while line := _reading(path, what, lambda: stream.readline(MAX_LINE + 1)):
                number += 1
                if len(line) > MAX_LINE:
                    _fail(path, what, f"line {number} has more than {MAX_LINE} characters")
                if line.strip():
                    yield number, line.strip()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (after line {number}); save it as UTF-8"
        ) from error


def read_json(path: str | os.PathLike[str], what: str = "", *, allow_nan: bool = False) -> Any:
    """The content of a JSON file; InputError as of `read_bytes` and `parse_json`."""
    return parse_json(read_bytes(path, what), _subject(path, what), allow_nan=allow_nan)


def read_json_object(
    path: str | os.PathLike[str], what: str = "", *, missing_ok: bool = False
) -> dict[str, Any]:
    """The object in a JSON file; InputError for anything else.

    With `missing_ok` a file that does not exist gives an empty object.
    """
    if missing_ok and not os.path.lexists(path):
        return {}
    return parse_json_object(read_bytes(path, what), _subject(path, what))


def parse_json(text: str | bytes, where: str, *, allow_nan: bool = False) -> Any:
    """The value of a JSON text in UTF-8.

    InputError, which begins with `where`, for what is not JSON or is nested deeper than
    `MAX_DEPTH`, for a key that stands twice in an object and for numbers out of a float64's range;
    with `allow_nan` NaN and infinities, which are no JSON, are read as Python writes them.
    """

    def number(digits: str) -> float:
        value = float(digits)
        if not allow_nan and not math.isfinite(value):
            raise InputError(f"{where} holds the number {digits[:20]}, which is not finite")
        return value

    def whole(digits: str) -> int:
        if len(digits) > _MAX_DIGITS:
            raise InputError(f"{where} holds a number of {len(digits)} digits")
        return int(digits)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            names = [key for key, _ in pairs]
            double = next(key for i, key in enumerate(names) if key in names[:i])
            raise InputError(f"{where} holds the key {double[:60]!r} twice in one object")
        return value

    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        value = json.loads(
            text.removeprefix("\ufeff"),
            parse_float=number,
            parse_int=whole,
            parse_constant=number,
            object_pairs_hook=unique,
        )
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not JSON in UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise _too_deep(where) from error
    except ValueError as error:
        kind = describe_text(text) if isinstance(text, str) and text.strip() else None
        raise InputError(f"{where} is not JSON: {f'it is {kind}' if kind else error}") from error
    _check_nesting(value, where)
    return value


def parse_json_object(text: str | bytes, where: str, *, allow_nan: bool = False) -> dict[str, Any]:
    """The object of a JSON text; InputError as of `parse_json`, and for another value."""
    value = parse_json(text, where, allow_nan=allow_nan)
    if not isinstance(value, dict):
        raise InputError(f"{where} is not a JSON object")
    return value


def is_stray_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file or folder is by its name no data, wherever it lies.

    Hidden ones (.DS_Store, ._image.png, .ipynb_checkpoints), Thumbs.db and its like, __MACOSX,
    unfinished and backup files (*.tmp, *~), and README or LICENSE files. One rule for all that
    look through folders and archives; a file that the user names is read whatever its name.
    """
    name = os.path.basename(os.fspath(path)).lower()
    return (
        name.startswith(".")
        or name in _STRAY_NAMES
        or name.endswith(_STRAY_ENDINGS)
        or (name.partition(".")[0] in _STRAY_STEMS and name.count(".") <= 1
            and name.endswith(("readme", "license", "licence", "changelog", ".md", ".txt", ".rst")))
    )  # fmt: skip


def list_folder(folder: str | os.PathLike[str], what: str = "") -> list[Path]:
    """The entries of a folder, sorted by name, without stray files.

    InputError, which calls its content `what`, if it is no folder or cannot be read.
    """
    names = _reading(folder, what, lambda: os.listdir(folder))
    return [Path(folder, name) for name in sorted(names) if not is_stray_file(name)]


def _reading(path: str | os.PathLike[str], what: str, read: Callable[[], Result]) -> Result:
    """The result of `read`, whose errors become an InputError about `path`."""
    try:
        return read()
    except OSError as error:
        raise _failure(path, what, error.strerror or str(error)) from error
    except UnicodeDecodeError:  # of the content
        raise
    except ValueError as error:  # a NUL in the name, or a name that cannot be encoded
        raise _failure(
            repr(os.fspath(path)), what, f"no file can have this name: {error}"
        ) from error


def _refuse_other_kinds(path: str | os.PathLike[str], found: os.stat_result, what: str) -> None:
    for is_kind, kind in _KINDS:
        if is_kind(found.st_mode):
            _fail(path, what, f"it is {kind}; give a regular file")


def _fail(path: str | os.PathLike[str], what: str, reason: str) -> NoReturn:
    raise _failure(path, what, reason)


def _failure(path: str | os.PathLike[str], what: str, reason: str) -> InputError:
    name = os.fspath(path)
    if len(name) > 400:
        name = f"{name[:200]}…{name[-100:]}"
    if what:
        return InputError(f"cannot read {what} from {name}: {reason}")
    return InputError(f"{name} cannot be read: {reason}")


def _subject(path: str | os.PathLike[str], what: str) -> str:
    return f"{what} {os.fspath(path)}" if what else os.fspath(path)


def _too_deep(where: str) -> InputError:
    return InputError(f"{where} is nested more than {MAX_DEPTH} levels deep")


def _check_nesting(value: Any, where: str) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
            elif isinstance(item, list | tuple | set):
                below += item
        if not below:
            return
        level = below
    raise _too_deep(where)
