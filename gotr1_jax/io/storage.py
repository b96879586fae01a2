"""Folders and files of object stores, worked on as local copies.

    local_path    of a URL: the path of a copy that is fetched now; of a path: itself
    writing       what a block writes to a path is uploaded; whoever writes outputs enters it
    upload        uploads what has changed so far
    fetch         downloads what was left out: the arrays of checkpoints
    read_in_parts from now on large files of weights are fetched range by range (`partial_file`)
    session       of a command: at its end all is uploaded, messages name URLs

A bucket has no renaming, no appending and no locks. So a command works in a folder of its own, and
the bucket holds the truth: each start begins with a fresh copy, and what a killed process did not
upload is done again. Files are uploaded in the order in which they were written, each whole. A
`manifest.json` of a checkpoint and the `config.json` of a model come last and, when the files that
they vouch for are replaced, are removed first: what a kill leaves half uploaded does not count.

Copies lie in $GOTR1_STORAGE, by default gotr1_jax in the user's cache. Large files that were read
are kept there in `objects` by URL and version, and are not downloaded again.
"""

from __future__ import annotations

import atexit
import fcntl
import logging
import os
import re
import secrets
import shutil
import sys
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gotr1_jax.errors import GotR1Error, InputError, RunError
from gotr1_jax.io.local_copy import OWNER_NAME, LocalCopy, storage_folder
from gotr1_jax.io.object_store import VARIABLE, ObjectStore, is_url
from gotr1_jax.io.partial_file import PartialFile
from gotr1_jax.io.reading import before_opening
from gotr1_jax.io.write_errors import raise_write_errors

_EVERY = 60.0  # seconds between uploads of what has changed
_INSIDE_RUN = re.compile(r"(/checkpoints(/step_\d+)?)?$")
_UNSAVED = "unsaved"  # folder of copies that could not be uploaded
_ADDRESSES = ("url", "server")  # names of settings
_log = logging.getLogger(__name__)


class _Copies:
    """The copies of this process, in a folder that no other process touches."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.copies: dict[str, LocalCopy] = {}
        self.names: list[tuple[str, str]] = []  # places of all copies so far, and their URLs
        self.in_parts = False
        self._lock = threading.RLock()
        self._held: Any = None
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    def open(self, url: str, without: Sequence[str]) -> LocalCopy:
        with self._lock:
            if url not in self.copies:
                if self.folder is None:
                    self._begin()
                assert self.folder is not None
                copy = LocalCopy(url, self.folder, without, self.in_parts)
                self.copies[url] = copy
                self.names.append((str(copy.root), copy.store.url))
            elif not without:
                self.copies[url].complete()
            return self.copies[url]

    def find(self, path: Path) -> LocalCopy | None:
        place = Path(os.path.abspath(path))
        return next((c for c in list(self.copies.values()) if c.holds(place)), None)

    def watch(self) -> None:
        """Uploads what has changed once in a while, from another thread."""
        if self._thread is None:
            self._ended.clear()
            self._thread = threading.Thread(target=self._watch, name="storage", daemon=True)
            self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(_EVERY):
            try:
                self.upload()
            except (GotR1Error, OSError) as error:
                _log.warning("%s; it is tried again", error)

    def upload(self) -> None:
        for copy in list(self.copies.values()):
            if copy.is_written:
                copy.upload()

    def end(self) -> None:
        """Uploads everything and removes the copies; RunError, which names them, if it fails."""
        self._ended.set()
        self.in_parts = False
        if self.folder is None:
            return
        try:
            self.upload()
            self.upload()  # what was replaced during the first one
        except BaseException as error:  # at the exit of Python nothing can be uploaded any more
            line = " ".join(str(error).split()) or type(error).__name__
            if self.folder.is_dir():
                kept = self.folder.parents[1] / _UNSAVED / self.folder.name
                self.folder.rename(kept)
                line += f"; what was not uploaded is in {kept}"
            if isinstance(error, Exception):
                raise RunError(line) from error
            _log.warning("%s", line)
            raise
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
        finally:
            self._held.close()
            self.folder, self.copies, self._thread = None, {}, None

    def _begin(self) -> None:
        """Makes the folder, and removes those of processes that were killed."""
        parent = storage_folder() / "work"
        named = f"{parent} (copies of what is in buckets; {VARIABLE} names another folder)"
        with raise_write_errors(named):
            parent.mkdir(parents=True, exist_ok=True)
            for other in parent.glob("[0-9a-f]*"):
                with suppress(OSError), open(other / OWNER_NAME, "ab") as held:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(other, ignore_errors=True)
            place = parent.resolve()
            place.with_name(_UNSAVED).mkdir(exist_ok=True)  # which a full disk would refuse later
            folder = place / secrets.token_hex(4)
            # It is named once it is held: no other process takes it for one that was left.
            begun = folder.with_name(f".{folder.name}")
            begun.mkdir()
            self._held = open(begun / OWNER_NAME, "ab")  # noqa: SIM115
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            begun.rename(folder)
        self.folder = folder
        atexit.register(self.end)


_work = _Copies()


def local_path(name: str | os.PathLike[str], without: Sequence[str] = ()) -> Path:
    """A path as it is; of a URL the path of its local copy, which is fetched at the first call.

    Of a run's directory the arrays of checkpoints are left out (`fetch`), and the folders `without`
    as long as no other call needs them. What is not there in the
    bucket is not there in the copy. Raises InputError for a scheme that is not known, a package
    that is missing, a bucket that is not there or refuses; UnreachableError; RunError for a full
    disk.
    """
    if not is_url(name):
        return Path(name)
    url = os.fspath(name).rstrip("/")
    scheme, _, rest = url.partition("://")
    if scheme.lower() == "file":
        return Path(rest)
    if not rest or any(part in ("", ".", "..") for part in rest.split("/")):
        raise InputError(f"{name} is no URL of a bucket: write {scheme.rstrip(':')}://BUCKET/NAME")
    above = next((known for known in _work.copies if url.startswith(f"{known}/")), None)
    inside = _INSIDE_RUN.search(url)
    begin = above or url[: inside.start() if inside else None]
    if any(part.startswith(".") for part in url[begin.rfind("/") + 1 :].split("/")):
        raise InputError(f"{name} has a name that begins with a dot, as only temporary files have")
    return _work.open(begin, without).path / url[len(begin) :].lstrip("/")


def read_in_parts() -> None:
    """From now on large files of weights are not fetched whole, but range by range.

    For jobs of several processes, of which each needs a part. Other readers of such a file get it
    whole (`reading.open_file`).
    """
    _work.in_parts = True


def partial_file(path: Path) -> PartialFile | None:
    """The file at `path` if it is here in part, else None."""
    copy = _work.find(path)
    return None if copy is None else copy.part(Path(os.path.abspath(path)))


def check_unchanged(folder: Path) -> None:
    """RunError if one of the files in a folder was replaced while it was fetched in parts."""
    copy = _work.find(folder)
    for path, part in copy.partial.items() if copy is not None else ():
        if path.is_relative_to(os.path.abspath(folder)):
            part.check_unchanged()


def _complete(path: str | os.PathLike[str]) -> None:
    part = partial_file(Path(path)) if _work.in_parts else None
    if part is not None and not part.is_whole:
        part.ensure()
        part.check_unchanged()


before_opening(_complete)


def is_copy(path: Path) -> bool:
    """Whether a path lies in a local copy of something remote."""
    return _work.find(path) is not None


def name_urls(text: str) -> str:
    """A text with the URLs of local copies in the place of their paths."""
    for place, url in _work.names:
        text = text.replace(place, url)
    return text


def identity(name: str | os.PathLike[str]) -> str:
    """What stays the same of a URL or path, wherever it is named from."""
    if is_url(name):
        return os.fspath(name).rstrip("/")
    return name_urls(str(Path(name).resolve()))


def check_urls(values: Any, written: Iterable[str] = ()) -> None:
    """Reaches for every bucket that a configuration names; errors as of `local_path`.

    Args:
      values: of a configuration, plain.
      written: those that a job will write: their buckets must take an object.

    Addresses of servers are left alone: what `url` and `server` name, and all of http.
    """
    if isinstance(values, dict):
        values = [value for key, value in values.items() if key not in _ADDRESSES]
    if isinstance(values, list | tuple):
        for value in values:
            check_urls(value, written)
    elif isinstance(values, str) and is_url(values) and not values.lower().startswith("http"):
        url = values.rstrip("/")
        if url.lower().startswith("file:"):
            return  # a path, which is looked at as any other
        store, top = ObjectStore(url.rpartition("/")[0]), url.rpartition("/")[2]
        if values in written:
            store.check_writable(top)
        else:
            store.reach(top)


@contextmanager
def writing(path: Path, is_owner: bool = True) -> Iterator[None]:
    """What the block writes to `path` is uploaded, once in a while and at its end.

    is_owner: whether what is removed here is removed there. No effect for a path of no copy.
    """
    copy = _work.find(path)
    if copy is None:
        yield
        return
    copy.write(Path(os.path.abspath(path)), is_owner)
    _work.watch()
    copy.writers += 1
    try:
        yield
    except BaseException:
        copy.writers -= 1
        with suppress(GotR1Error, OSError):  # the error of the block is the one to tell
            copy.upload()
        raise
    copy.writers -= 1
    if not copy.writers:
        copy.upload()


def upload(path: Path, pieces: Path | None = None) -> None:
    """Uploads what has changed in the copy that holds `path`.

    pieces: a checkpoint's folder, whose files are uploaded although this process writes no
    manifest of it. Raises InputError, UnreachableError or OSError; the next upload tries again.
    """
    copy = _work.find(path)
    if copy is not None:
        copy.upload(pieces)


def fetch(path: Path, names: Collection[str] | None = None) -> None:
    """Downloads all below `path` that is not in its copy yet; errors as of `local_path`.

    names: of files below `path`; only these are downloaded.
    """
    copy = _work.find(path)
    if copy is not None:
        copy.fetch(Path(os.path.abspath(path)), names)


def release(folder: Path, others: Iterable[str] = ()) -> None:
    """Frees the disk of a checkpoint's files, which were uploaded; `fetch` brings them back.

    others: names below `folder` of files that other processes have uploaded.
    """
    copy = _work.find(folder)
    if copy is not None:
        copy.release(folder, others)


@contextmanager
def session() -> Iterator[None]:
    """Of one command: its messages name URLs, not copies; at its end everything is uploaded."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _NamingStream(sys.stdout), _NamingStream(sys.stderr)
    try:
        yield
        _work.end()
    except BaseException:
        try:
            _work.end()
        except RunError as error:
            _log.warning("%s", error)
        raise
    finally:
        sys.stdout, sys.stderr = streams


class _NamingStream:
    """A stream whose text names URLs in the place of their copies."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(name_urls(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
