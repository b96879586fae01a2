"""The local copy of a folder of an object store: what is fetched and when, what is uploaded."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gotr1_jax.errors import InputError, RunError
from gotr1_jax.io.object_store import VARIABLE, ObjectStore, StoredObject
from gotr1_jax.io.partial_file import PartialFile
from gotr1_jax.io.reading import open_file
from gotr1_jax.io.write_errors import raise_write_errors

OWNER_NAME = ".owner"
_KEPT_BYTES = 2**20  # files that large are kept in `objects`
_SMALL_BYTES = 2**23  # files up to that size are uploaded from memory
_AT_ONCE = 8
_STEP_FILE = re.compile(r"(?:.*/)?checkpoints/step_\d+/(.+)")
_STEP_FOLDER = re.compile(r"(?:.*/)?checkpoints/step_\d+(?:\..*)?")
_MARKS = {"manifest.json": 2, "config.json": 1}


def storage_folder() -> Path:
    """Where local copies lie: $GOTR1_STORAGE, or gotr1_jax in the user's cache.

    InputError where neither is known.
    """
    named, cache = os.environ.get(VARIABLE), os.environ.get("XDG_CACHE_HOME")
    if named:
        return Path(named).absolute()
    try:
        return (Path(cache) if cache else Path.home() / ".cache") / "gotr1_jax"
    except RuntimeError as error:  # a user of a container who has no entry and no $HOME
        raise InputError(
            f"there is no home folder for copies of what is in buckets; set {VARIABLE} to a folder"
        ) from error


class _Stamp(NamedTuple):
    """What of a local file changes with its content."""

    size: int
    time: int
    inode: int


class LocalCopy:
    """The local copy of the object or folder `top` below a URL, and what lies beside it."""

    def __init__(
        self, url: str, work: Path, without: Sequence[str] = (), in_parts: bool = False
    ) -> None:
        """Fetches what there is, but the arrays of checkpoints and the folders `without`; with
        `in_parts` large files of weights are fetched range by range, when they are read."""
        parent, _, self.top = url.rpartition("/")
        self.store = ObjectStore(parent)
        self.root = work / secrets.token_hex(4)
        self.root.mkdir(parents=True)
        # Of every object: the state of the local file that equals it; None: there is no such file.
        self._known: dict[str, _Stamp | None] = {}
        self.partial: dict[Path, PartialFile] = {}
        self._in_parts = in_parts
        self._lock = threading.RLock()
        self.is_written = self.is_owner = False
        self.writers = 0  # blocks that are inside of `storage.writing`
        self._pieces: set[str] = set()
        self._left_out = tuple(f"{self.top}/{name}/" for name in without)
        self._begin(self.store.listing(self.top, patient=False))

    @property
    def path(self) -> Path:
        return self.root / self.top

    def holds(self, path: Path) -> bool:
        return path.is_relative_to(self.root)

    def fetch(self, path: Path, names: Collection[str] | None = None) -> None:
        """Downloads all below `path` that is not here, or only the files of these names."""
        top = path.relative_to(self.root).as_posix()
        chosen = None if names is None else {f"{top}/{name}" for name in names}
        self._fetch(self.store.listing(top), lambda name: chosen is None or name in chosen)

    def _begin(self, found: dict[str, StoredObject]) -> None:
        left_out = self._left_out
        self._fetch(found, lambda name: not _is_array(name) and not name.startswith(left_out))

    def complete(self) -> None:
        """Fetches the folders that were left out."""
        if self._left_out:
            self._left_out = ()
            self._begin(self.store.listing(self.top))

    def _fetch(self, found: dict[str, StoredObject], wanted: Callable[[str], bool]) -> None:
        with self._lock:
            names = []
            for name in found:
                if _is_hidden(name):
                    continue
                self._known.setdefault(name, None)
                if self._known[name] is None and wanted(name):
                    names.append(name)
            with raise_write_errors(self.root), ThreadPoolExecutor(_AT_ONCE) as pool:
                for name, stamp in zip(names, pool.map(lambda n: self._get(n, found[n]), names)):
                    self._known[name] = stamp

    def _get(self, name: str, stored: StoredObject) -> _Stamp | None:
        target = self.root / name
        if stored.size < _KEPT_BYTES or not stored.version or _is_array(name):
            there = self.store.get(name, target, stored)
            return _stamp(target) if there else None
        key = f"{self.store.url}/{name}\0{stored.version}\0{stored.size}"
        kept = storage_folder() / "objects" / hashlib.sha256(key.encode()).hexdigest()
        whole = kept.is_file() and kept.stat().st_size == stored.size
        if not whole and self._in_parts and name.endswith(".safetensors"):
            self.partial[target] = PartialFile(self.store, name, stored, target)
            return _stamp(target)
        if not whole and not self.store.get(name, kept, stored):
            return None
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(kept, target)
        except OSError:  # a file system without links
            shutil.copyfile(kept, target)
        return _stamp(target)

    def write(self, path: Path, is_owner: bool) -> None:
        """From now on what is written here is uploaded, by the owner also what is removed."""
        with self._lock:
            name = path.relative_to(self.root).parts[0]
            if name != self.top:  # what an earlier start has left of it
                self._begin(self.store.listing(name))
            self.is_owner |= is_owner
            if self.is_written:
                return
            self.store.check_writable(self.top)
            self.is_written = True
            if not self.path.is_dir():  # unfinished files of a single one
                for name in self.store.siblings(self.top):
                    self._begin({n: o for n, o in self.store.listing(name).items() if n == name})
            for name, stamp in self._known.items():
                file = self.root / name
                if stamp is not None and file.stat().st_nlink > 1:  # what is kept must not change
                    whole = file.with_name(f".{file.name}.tmp{secrets.randbelow(10**12)}")
                    shutil.copyfile(file, whole)
                    os.replace(whole, file)
                    self._known[name] = _stamp(file)

    def upload(self, pieces: Path | None = None) -> None:
        """Uploads what has changed and removes what is gone; `pieces`: a folder of a checkpoint
        that is uploaded although it has no manifest."""
        with self._lock:
            if pieces is not None:
                self._pieces.add(pieces.relative_to(self.root).as_posix())
            # What grows or is replaced from now on belongs to the next upload: of two looks the
            # first one counts, so that no file is newer than those that were written before it.
            first = self._look()
            now = self._look() | first
            changed = [name for name in now if self._known.get(name, ()) != now[name]]
            changed.sort(key=lambda name: (_rank(name), now[name].time))
            self.store.remove(name for name in changed if _rank(name) and name in self._known)
            missing: set[str] = set()
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                for batch in _batches(changed):
                    names = [n for n in batch if _rank(n) == 0 or _above(n) not in missing]
                    for name, done in zip(names, pool.map(lambda n: self._put(n, now[n]), names)):
                        if done:
                            self._known[name] = now[name]
                        else:
                            missing |= {parent.as_posix() for parent in Path(name).parents}
            if self.is_owner:
                gone = [name for name in self._known if name not in now and self._is_gone(name)]
                self.store.remove(sorted(gone, key=_rank, reverse=True))
                for name in gone:
                    del self._known[name]

    def _look(self) -> dict[str, _Stamp]:
        """The local files that count, by name."""
        if not (self.root.parent / OWNER_NAME).is_file():
            raise RunError(f"the working copy {self.root} of {self.store.url} was removed")
        found: dict[str, _Stamp] = {}

        def fail(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise error

        for place, folders, files in os.walk(self.root, onerror=fail):
            above = Path(place).relative_to(self.root)
            folders[:] = [name for name in folders if self._counts(above / name)]
            for name in files:
                if not _is_hidden((above / name).as_posix()):
                    with suppress(FileNotFoundError):
                        found[(above / name).as_posix()] = self._state(Path(place, name))
        return found

    def _state(self, file: Path) -> _Stamp:
        """The file's stamp; of one that is here in part as at first: its ranges are no change."""
        known = self._known.get(file.relative_to(self.root).as_posix())
        return _stamp(file) if known is None or self.part(file) is None else known

    def part(self, file: Path) -> PartialFile | None:
        """A file that is here in part; None for any other, and once it was replaced."""
        found = self.partial.get(file)
        return found if found is not None and found.is_current else None

    def _counts(self, folder: Path) -> bool:
        """Whether a folder's files are uploaded: of a checkpoint only once it is complete."""
        if folder.name.startswith("."):
            return False
        name = folder.as_posix()
        is_step = _STEP_FOLDER.fullmatch(name) is not None
        return not is_step or name in self._pieces or (self.root / name / "manifest.json").is_file()

    def _is_gone(self, name: str) -> bool:
        """Whether an object without a local file was removed here, and not only left out."""
        if self._known[name] is not None:
            return True
        inside = _STEP_FILE.fullmatch(name)
        return (
            inside is not None
            and not (self.root / name.removesuffix(inside[1]) / "manifest.json").is_file()
        )

    def _put(self, name: str, stamp: _Stamp) -> bool:
        """Uploads a file as it was seen; False if it was replaced meanwhile."""
        try:
            with open_file(self.root / name) as file:
                found = os.fstat(file.fileno())
                if found.st_ino != stamp.inode or found.st_size < stamp.size:
                    return False
                if stamp.size <= _SMALL_BYTES or found.st_size != stamp.size:
                    self.store.put(name, file.read(stamp.size))
                    return True
        except InputError:
            if (self.root / name).exists():
                raise
            return False
        self.store.put(name, self.root / name)
        return True

    def release(self, folder: Path, others: Iterable[str]) -> None:
        """Removes the local files of a checkpoint that was uploaded, but not its manifest."""
        with self._lock:
            start = folder.relative_to(self.root).as_posix() + "/"
            for name in others:
                self._known.setdefault(start + name, None)
            for name in [n for n in self._known if n.startswith(start) and _is_array(n)]:
                (self.root / name).unlink(missing_ok=True)
                self._known[name] = None
            self._pieces.discard(start[:-1])


def _is_array(name: str) -> bool:
    """Whether an object is a checkpoint's, and not its manifest."""
    inside = _STEP_FILE.fullmatch(name)
    return inside is not None and inside[1] != "manifest.json"


def _rank(name: str) -> int:
    """Files of a higher rank vouch for those of a lower one."""
    mark = _MARKS.get(name.rpartition("/")[2], 0)
    return 0 if mark == 2 and _STEP_FILE.fullmatch(name) is None else mark


def _is_hidden(name: str) -> bool:
    """Whether a file is a temporary one, or its folder is; not so the .zarray of an array."""
    parts = name.split("/")
    if parts[-1] == ".zarray" and _is_array(name):
        del parts[-1]
    return any(part.startswith(".") for part in parts)


def _batches(names: list[str]) -> Iterator[list[str]]:
    """Names of files that are uploaded at once: what JSON tells of was written before it."""
    batch: list[str] = []
    for name in names:
        if name.endswith((".json", ".jsonl")):
            yield batch
            yield [name]
            batch = []
        else:
            batch.append(name)
    yield batch


def _above(name: str) -> str:
    return name.rpartition("/")[0]


def _stamp(path: Path) -> _Stamp:
    found = path.stat()
    return _Stamp(found.st_size, found.st_mtime_ns, found.st_ino)
