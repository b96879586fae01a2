"""A local file of which only those ranges are there that were asked for; the rest is in a bucket.

It has the object's full size, so that it can be mapped into memory; what was not fetched is a hole.
`reading.open_file` fetches the rest first, so that nobody reads a hole who does not know of it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gotr1_jax.errors import RunError
from gotr1_jax.io.object_store import ObjectStore, StoredObject
from gotr1_jax.io.write_errors import raise_write_errors

_PIECE = 2**25  # bytes of one request
_AT_ONCE = 8
_Range = tuple[int, int]


class PartialFile:
    """The object `name`, as it was listed in `stored`, in the file `target`."""

    def __init__(self, store: ObjectStore, name: str, stored: StoredObject, target: Path) -> None:
        self.stored = stored
        self._store, self._name, self._target = store, name, target
        self._changed = threading.Condition()
        self._there: list[_Range] = []  # ascending, apart from each other
        self._coming: list[_Range] = []  # what threads fetch just now
        target.parent.mkdir(parents=True, exist_ok=True)
        with raise_write_errors(target), open(target, "wb") as file:
            file.truncate(stored.size)
            self._inode = os.fstat(file.fileno()).st_ino

    @property
    def version(self) -> str:
        """What changes with the object's content, where the store tells it."""
        return self.stored.md5 or self.stored.version

    @property
    def is_current(self) -> bool:
        """Whether the file was not removed or replaced by another one."""
        try:
            return self._target.stat().st_ino == self._inode
        except OSError:
            return False

    @property
    def is_whole(self) -> bool:
        """Whether all of it was fetched."""
        return self._there == [(0, self.stored.size)]

    def ensure(self, begin: int = 0, end: int | None = None) -> None:
        """Fetches what is missing of bytes `begin` to `end`; None: to the end of the file.

        Raises UnreachableError, InputError, RunError for a full disk.
        """
        end = self.stored.size if end is None else min(end, self.stored.size)
        while True:
            with self._changed:
                # Threads that read different tensors do not wait for each other.
                mine = list(_gaps(_joined([*self._there, *self._coming]), begin, end))
                if not mine:
                    if not any(_gaps(self._there, begin, end)):
                        return
                    self._changed.wait()  # until another thread has it, or has failed
                    continue
                self._coming += mine
            done: list[_Range] = []
            try:
                self._fetch_all(mine)
                done = mine
            finally:
                with self._changed:
                    self._coming = [other for other in self._coming if other not in mine]
                    self._there = _joined([*self._there, *done])
                    self._changed.notify_all()

    def check_unchanged(self) -> None:
        """RunError if the object was replaced since it was listed: one would read of both."""
        now = self._store.listing(self._name).get(self._name)
        if now is None or (now.size, now.version) != (self.stored.size, self.stored.version):
            raise RunError(
                f"{self._store.url}/{self._name} was replaced while it was read; start again"
            )

    def _fetch_all(self, ranges: Sequence[_Range]) -> None:
        pieces = [
            (start, min(start + _PIECE, stop))
            for first, stop in ranges
            for start in range(first, stop, _PIECE)
        ]
        if len(pieces) == 1:
            return self._fetch(pieces[0])
        with ThreadPoolExecutor(min(_AT_ONCE, len(pieces))) as pool:
            list(pool.map(self._fetch, pieces))

    def _fetch(self, piece: _Range) -> None:
        begin, end = piece
        data = self._store.get_range(self._name, begin, end)
        with raise_write_errors(self._target):
            file = os.open(self._target, os.O_WRONLY | os.O_CLOEXEC)
            try:
                view = memoryview(data)
                while view:
                    written = os.pwrite(file, view, begin)
                    view, begin = view[written:], begin + written
            finally:
                os.close(file)


def _gaps(known: Sequence[_Range], begin: int, end: int) -> Iterator[_Range]:
    """What is not `known` of bytes `begin` to `end`; the known ranges are ascending and apart."""
    for first, stop in known:
        if stop <= begin:
            continue
        if first >= end:
            break
        if first > begin:
            yield begin, first
        begin = stop
    if begin < end:
        yield begin, end


def _joined(ranges: Sequence[_Range]) -> list[_Range]:
    """The same bytes as ascending ranges that are apart from each other."""
    joined: list[_Range] = []
    for first, stop in sorted(ranges):
        if joined and first <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(stop, joined[-1][1])
        else:
            joined.append((first, stop))
    return joined
