"""Answers kept on disk by the content of their questions, so that none is computed twice.

A cache is two files of JSON lines, `answers.jsonl` and, once that is full, `answers.old.jsonl`.
Lines are only added to the first; when it reaches its limit it replaces the second, whose answers
are dropped. An unfinished line of a killed process is skipped.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gotr1_jax.errors import InputError
from gotr1_jax.io.files import write_all
from gotr1_jax.io.reading import open_file, parse_json
from gotr1_jax.io.write_errors import raise_write_errors

FILE_NAME = "answers.jsonl"
OLD_NAME = "answers.old.jsonl"
MAX_BYTES = 64 * 2**20
_ADVICE = "free some space or choose another folder for the cache"


class AnswerCache:
    """Strings or numbers by key; safe to use from several threads.

    Disk and memory are bounded by twice `max_bytes`. Several processes may share a folder: each
    sees what was there when it opened the cache, and adds whole lines.
    """

    def __init__(self, folder: Path | str, max_bytes: int = MAX_BYTES) -> None:
        """Opens the cache in `folder`, which is made if missing; InputError where that fails."""
        self._folder, self._max_bytes = Path(folder), max_bytes
        self._lock = threading.Lock()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._old = _read(self._folder / OLD_NAME)
            self._new = _read(self._folder / FILE_NAME)
        except OSError as error:
            raise InputError(
                f"the cache of answers in {self._folder} cannot be opened: "
                f"{error.strerror or error}; choose another folder"
            ) from error

    def get(self, key: str) -> Any | None:
        """The value under `key`, else None."""
        with self._lock:
            return self._new.get(key, self._old.get(key))

    def add(self, values: Mapping[str, Any]) -> None:
        """Stores values, none of them None, by key, in one write; RunError where that fails."""
        if not values:
            return
        lines = (json.dumps({"key": k, "value": v}) + "\n" for k, v in values.items())
        with self._lock:
            self._new.update(values)
            with raise_write_errors(self._folder, _ADVICE):
                self._append("".join(lines).encode())

    def __len__(self) -> int:
        with self._lock:
            return len(self._old.keys() | self._new.keys())

    def _append(self, data: bytes) -> None:
        path = self._folder / FILE_NAME
        with open(path, "ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":  # a killed process's last line: close it off
                    data = b"\n" + data
            # One write in append mode: lines of two processes do not mix.
            write_all(file, data)
        if size + len(data) >= self._max_bytes:
            os.replace(path, self._folder / OLD_NAME)
            self._old, self._new = self._new, {}


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if not path.exists():
        return values
    with open_file(path, "answers") as file:
        for line in file:
            try:
                item = parse_json(line, "a line")
                key, value = item["key"], item["value"]
            except (InputError, KeyError, TypeError):
                continue
            if isinstance(key, str) and value is not None:
                values[key] = value
    return values
