"""Objects of a bucket by their URLs: gs://, s3:// and whatever else fsspec has a package for.

One object is written whole or not at all; there is no renaming, and nothing of several objects at
once. Errors are one line: what is wrong with the name or with the rights to it is an InputError,
a store that does not answer an UnreachableError, once it was asked again for a while.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gotr1_jax.errors import GotR1Error, InputError, UnreachableError
from gotr1_jax.io.reading import open_file
from gotr1_jax.io.write_errors import FULL, find_disk_error, write_failure

VARIABLE = "GOTR1_STORAGE"  # names the folder of local copies
# Two letters or more: C:// is a drive of Windows.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]+)://")
_CUT_URL = re.compile(r"(gs|gcs|s3|s3a|az|abfs|abfss|hf):/?[^/]")
_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}
_PATIENCE = (1.0, 4.0, 15.0)  # seconds before another attempt
# What a version of an object is called by different stores.
_VERSIONS = ("ETag", "etag", "md5Hash", "generation", "LastModified", "last_modified", "mtime")
_REFUSED = re.compile(r"\b(401|403)\b|denied|forbidden|credential|anonymous|unauthori[sz]ed", re.I)
_GONE = re.compile(
    r"NoSuchBucket|bucket (does not exist|is not valid)|InvalidBucketName|^b/[^/]+/o$", re.I
)

Result = TypeVar("Result")


@dataclass(frozen=True)
class StoredObject:
    """Size in bytes, what changes with its content ("" if nothing does), MD5 in base64 if known."""

    size: int
    version: str
    md5: str


def is_url(name: str | os.PathLike[str]) -> bool:
    """Whether a name is a URL, and no path; `C:\\\\runs` and `a:b` are paths.

    InputError for a URL that lost one of its slashes, unless such a path exists.
    """
    text = os.fspath(name)
    if _URL.match(text):
        return True
    if _CUT_URL.match(text) and not os.path.lexists(text.split("/")[0]):
        scheme, _, rest = text.partition(":")
        raise InputError(f"{text} is neither a URL nor a path; write {scheme}://{rest.lstrip('/')}")
    return False


class ObjectStore:
    """The objects whose URLs begin with `url`/; names are what follows."""

    def __init__(self, url: str) -> None:
        """Asks nobody yet. InputError for an unknown scheme and for a package that is missing."""
        scheme = _scheme(url)
        self.url = url = scheme + url[len(scheme) :]  # S3:// is s3://
        import fsspec

        # Of each call it tells that it cannot ask what kind of bucket it is, where it may not; of
        # what fails it logs a traceback beside the error that it raises.
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
        try:
            # A bucket of its own: names change under a listing that is kept.
            kind = fsspec.get_filesystem_class(scheme)
            self._files: Any = kind(**kind._get_kwargs_from_urls(f"{url}/x"))
        except ImportError as error:
            extra = _EXTRAS.get(scheme)
            advice = f"pip install 'gotr1_jax[{extra}]'" if extra else " ".join(str(error).split())
            raise InputError(f"{url}: {scheme}:// needs another package: {advice}") from error
        except ValueError as error:
            if "not known" not in str(error):
                raise _failure(url, "used", error) from error
            raise InputError(
                f"{url}: the scheme {scheme}:// is not known; gs:// and s3:// are, as fsspec's are"
            ) from error
        except Exception as error:
            raise _failure(url, "used", error) from error

    def listing(self, top: str, patient: bool = True) -> dict[str, StoredObject]:
        """The object `top`, and all below `top`/, by name; empty if there are none.

        InputError if the bucket is not there or may not be listed.
        """

        def find() -> Mapping[str, Mapping[str, Any]]:
            self._files.invalidate_cache()
            try:
                return self._files.find(self._path(top), detail=True)
            except FileNotFoundError as error:
                if _GONE.search(str(error)):
                    raise
                return {}

        found = self._call("read", top, find, patient)
        start = len(self._path(top)) - len(top)
        return {
            path[start:]: _describe(info)
            for path, info in found.items()
            if info.get("type") != "directory" and not path.endswith("/")
        }

    def siblings(self, top: str) -> list[str]:
        """Names of objects and folders that begin with `top` and a dot."""
        start = len(self._path(top)) - len(top)
        found = self._call("read", top, lambda: self._files.glob(f"{self._path(top)}.*"))
        return [path[start:] for path in found]

    def reach(self, top: str) -> None:
        """Asks whether `top` is there, which it need not be; errors as of `listing`."""

        def ask() -> None:
            try:
                self._files.info(self._path(top))
            except FileNotFoundError as error:
                if _GONE.search(str(error)):
                    raise

        self._call("read", top, ask, False)

    def get(self, name: str, target: Path, stored: StoredObject) -> bool:
        """Downloads an object to a file, which appears when it is complete; False: it is gone.

        RunError for a full disk.
        """
        temporary = target.with_name(f".{target.name}.tmp{secrets.randbelow(10**12)}")
        target.parent.mkdir(parents=True, exist_ok=True)

        def download() -> bool:
            try:
                self._files.get_file(self._path(name), str(temporary))
            except FileNotFoundError:
                return False
            except Exception as error:
                full = find_disk_error(error)
                if full is None or full.errno not in FULL:
                    raise
                advice = f"free some space, or set {VARIABLE} to another folder"
                raise write_failure(f"a local copy of {self.url}/{name}", full, advice) from error
            if temporary.stat().st_size != stored.size or not _has_md5(temporary, stored.md5):
                raise OSError("what came is not what was listed; another process writes it, maybe")
            return True

        try:
            if not self._call("read", name, download):
                return False
            os.replace(temporary, target)
            return True
        finally:
            temporary.unlink(missing_ok=True)

    def get_range(self, name: str, begin: int, end: int) -> bytes:
        """Bytes `begin` to `end` of an object, of which there are so many."""

        def download() -> bytes:
            data: bytes = self._files.cat_file(self._path(name), start=begin, end=end)
            if len(data) != end - begin:
                raise OSError(f"{len(data)} bytes came in the place of {end - begin}")
            return data

        return self._call("read", name, download)

    def put(self, name: str, content: Path | bytes) -> None:
        """Uploads a file or bytes: an object of that name is replaced whole."""
        path = self._path(name)
        if isinstance(content, bytes):
            self._call("written", name, lambda: self._files.pipe_file(path, content))
        else:
            self._call("written", name, lambda: self._files.put_file(str(content), path))

    def remove(self, names: Iterable[str]) -> None:
        """Removes objects in this order; those that are not there are no error."""
        for name in names:

            def remove(path: str = self._path(name)) -> None:
                with suppress(FileNotFoundError):
                    self._files.rm_file(path)

            self._call("removed", name, remove)

    def check_writable(self, top: str) -> None:
        """Writes an object and removes it; InputError or UnreachableError where that fails."""
        name = f"{top}.probe{secrets.randbelow(10**12)}"
        path = self._path(name)
        self._call("written", top, lambda: self._files.pipe_file(path, b"probe"), False)
        self._call("written", top, lambda: self._files.rm_file(path), False)

    def _path(self, name: str) -> str:
        return self._files._strip_protocol(f"{self.url}/{name}")

    def _call(
        self, done: str, name: str, action: Callable[[], Result], patient: bool = True
    ) -> Result:
        """The result of an action; a store that does not answer is asked again."""
        for delay in (*_PATIENCE, None) if patient else (None,):
            try:
                return action()
            except GotR1Error:  # a stop signal comes as one, wherever the main thread is
                raise
            except Exception as error:
                failure = _failure(f"{self.url}/{name}", done, error)
                if delay is None or not isinstance(failure, UnreachableError):
                    raise failure from error
                time.sleep(delay)
        raise AssertionError


def _scheme(url: str) -> str:
    found = _URL.match(url + "/")
    if found is None:
        raise InputError(f"{url} is no URL")
    return found[1].lower()


def _describe(info: Mapping[str, Any]) -> StoredObject:
    version = next((str(info[key]) for key in _VERSIONS if info.get(key)), "")
    return StoredObject(int(info.get("size") or 0), version, str(info.get("md5Hash") or ""))


def _has_md5(path: Path, wanted: str) -> bool:
    if not wanted:
        return True
    with open_file(path) as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return base64.b64encode(digest.digest()).decode() == wanted


def _failure(url: str, done: str, error: Exception) -> GotR1Error:
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    if _GONE.search(text) or _GONE.search(str(error)):
        return InputError(f"{url} cannot be {done}: there is no such bucket")
    if isinstance(error, PermissionError) or _REFUSED.search(text):
        return InputError(
            f"{url} may not be {done}: {text}; check the credentials and their rights"
        )
    return UnreachableError(f"{url} cannot be {done}: {text}")
