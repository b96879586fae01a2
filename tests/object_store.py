"""An object store on loopback that speaks the protocol of S3, with one bucket."""

from __future__ import annotations

import logging
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

BUCKET = "bucket"


class Bucket:
    """Attributes: url; settings, the environment variables by which processes reach it."""

    url = f"s3://{BUCKET}"

    def __init__(self, port: int) -> None:
        self.settings = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "name",
            "AWS_SECRET_ACCESS_KEY": "word",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        os.environ.update(self.settings)
        self.files: Any = fsspec.filesystem("s3", skip_instance_cache=True)
        self.files.mkdir(BUCKET)

    def names(self, folder: str = "") -> list[str]:
        """Objects below a folder of the bucket, sorted."""
        self.files.invalidate_cache()
        start = f"{BUCKET}/{folder}".rstrip("/") + "/"
        return sorted(path.removeprefix(start) for path in self.files.find(start))

    def read(self, name: str) -> bytes:
        return self.files.cat_file(f"{BUCKET}/{name}")

    def write(self, name: str, content: bytes) -> None:
        self.files.pipe_file(f"{BUCKET}/{name}", content)

    def remove(self, name: str) -> None:
        self.files.rm_file(f"{BUCKET}/{name}")

    def download(self, folder: str, target: Path) -> Path:
        """A copy of all below a folder of the bucket."""
        for name in self.names(folder):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(self.read(f"{folder}/{name}"))
        return target


@contextmanager
def served_bucket() -> Iterator[Bucket]:
    """A new bucket, in the environment of this process and of those that it starts."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    before = dict(os.environ)
    server.start()
    try:
        port = server.get_host_and_port()[1]
        # Of an earlier server of this process the content and the connection are still there.
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        again = urllib.request.Request(f"http://127.0.0.1:{port}/moto-api/reset", method="POST")
        urllib.request.urlopen(again, timeout=60).close()
        yield Bucket(port)
    finally:
        server.stop()
        os.environ.clear()
        os.environ.update(before)
