"""The same few records in every kind of file that SFT reads."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


@dataclass(frozen=True)
class Made:
    """A record before it is written: texts, and the bytes of a PNG."""

    caption: str
    plan: str
    png: bytes
    extra: dict[str, Any]


def image(index: int, width: int = 70, height: int = 64) -> bytes:
    """A PNG of large random squares; every index has its own."""
    blocks = np.random.default_rng(index).integers(0, 256, (4, 4, 3), np.uint8)
    pixels = np.kron(blocks, np.ones((height // 4 + 1, width // 4 + 1, 1), np.uint8))
    pixels = pixels[:height, :width]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def made(count: int) -> list[Made]:
    """`count` records; some texts are not ASCII."""
    return [
        Made(
            f"a red circle left of shape {i}" + (" \u05e9\u05dc" if i % 3 == 1 else ""),
            f"<|obj_start|>circle {i}<|obj_end|> <|box_start|>(1,2),(30,4{i % 10})<|box_end|>",
            image(i),
            {"tags": ["red", f"n{i}"], "other": {"deep": [f"x{i}", f"y{i}"]}},
        )
        for i in range(count)
    ]


def write_jsonl(folder: Path, records: Sequence[Made]) -> Path:
    """Images lie beside it; with a byte order mark, blank lines, and no last line end."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for i, record in enumerate(records):
        (folder / "images" / f"{i}.png").write_bytes(record.png)
        image = f"images/{i}.png"
        if i % 4 == 2:
            image = "data:image/png;base64," + base64.b64encode(record.png).decode()
        row = {"caption": record.caption, "plan": record.plan, "image": image, **record.extra}
        lines.append(json.dumps(row, ensure_ascii=False))
    path = folder / "records.jsonl"
    path.write_bytes(("\ufeff" + "\r\n\r\n".join(lines)).encode())
    return path


def write_parquet(folder: Path, records: Sequence[Made], group: int = 3) -> Path:
    """Images as the `datasets` library stores them; several row groups."""
    folder.mkdir(parents=True)
    table = pa.table(
        {
            "caption": [r.caption for r in records],
            "unread": [b"z" * 1000] * len(records),
            "plan": [r.plan for r in records],
            "image": [{"bytes": r.png, "path": "x.png"} for r in records],
            "tags": [r.extra["tags"] for r in records],
            "other": [json.dumps(r.extra["other"]) for r in records],
        }
    )
    pq.write_table(table, folder / "records.parquet", row_group_size=group)
    return folder / "records.parquet"


def write_tar(folder: Path, records: Sequence[Made]) -> Path:
    """A WebDataset shard: .json with the texts, and the image, in either order."""
    folder.mkdir(parents=True)
    path = folder / "records.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(directory())
        for i, record in enumerate(records):
            texts = {"caption": record.caption, "plan": record.plan, **record.extra}
            members = [("json", json.dumps(texts).encode()), ("png", record.png)]
            for ending, data in members if i % 2 else reversed(members):
                info = tarfile.TarInfo(f"part/{i:04d}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def directory() -> tarfile.TarInfo:
    """A folder as a member of a tar."""
    info = tarfile.TarInfo("part")
    info.type = tarfile.DIRTYPE
    return info


WRITERS: dict[str, Callable[[Path, Sequence[Made]], Path]] = {
    "jsonl": write_jsonl,
    "parquet": write_parquet,
    "tar": write_tar,
}
