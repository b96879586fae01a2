"""The header of a safetensors file, checked as strictly as the format asks for.

Format (github.com/huggingface/safetensors): 8 bytes little-endian length of the header, the header
as a JSON object, then the data. The extents of the tensors lie side by side and fill the data:
none overlap, and no byte belongs to nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gotr1_jax.errors import InputError
from gotr1_jax.io.contents import describe_binary
from gotr1_jax.io.reading import open_file, read_start
from gotr1_jax.io.storage import partial_file

# Bits of an element, by the format's names of dtypes.
_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
_MAX_HEADER = 100_000_000  # bytes, the reference's own limit
_FIRST = 1 << 17  # bytes of a file in a bucket that are fetched at once: most headers
_MAX_AXES, _MAX_SIZE = 16, 1 << 40  # of a shape: far more than any weight has
# Layouts of other frameworks under the same file name.
_FOREIGN = {"mlx": "MLX", "flax": "Flax", "tf": "TensorFlow"}


@dataclass(frozen=True)
class Extent:
    """Where a tensor lies: bytes `begin` to `end`, counted from the beginning of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_extents(file: Path) -> tuple[int, list[Extent]]:
    """(byte at which the data begins, tensors in the order of their data).

    Raises InputError, in one line, for a file that is truncated, corrupt or something else.
    """
    try:
        size = file.stat().st_size
        part = partial_file(file)
        if part is not None:
            part.ensure(0, _FIRST)
            with open_file(file, in_part=True) as stream:
                length = int.from_bytes(stream.read(8), "little")
            part.ensure(0, 8 + min(length, _MAX_HEADER))
        with open_file(file, in_part=True) as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or not 2 <= length <= min(_MAX_HEADER, size - 8):
                if kind := describe_binary(read_start(file)):
                    raise InputError(f"{file} is truncated or no safetensors file: it is {kind}")
                raise InputError(f"{file} is truncated or no safetensors file: {size} bytes")
            text = stream.read(length)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    header = _parse_header(text, file)
    _check_metadata(header.pop("__metadata__", {}), file)
    extents = [_extent(name, entry, file) for name, entry in header.items()]
    extents.sort(key=lambda extent: (extent.begin, extent.end))
    _check_extents(extents, size - 8 - length, file)
    return 8 + length, extents


def _parse_header(text: bytes, file: Path) -> dict[str, Any]:
    try:
        header = json.loads(
            text.decode("utf-8"), object_pairs_hook=_no_doubles(file), parse_constant=_refuse
        )
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is corrupt: its header is not JSON") from error
    if not isinstance(header, dict):
        raise InputError(f"{file} is corrupt: its header is not a JSON object")
    return header


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _no_doubles(file: Path) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """A JSON object hook that refuses a key given twice."""

    def hook(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for name, value in pairs:
            if name in fields:
                raise InputError(f"tensor {_shown(name)} is stored twice in {file}")
            fields[name] = value
        return fields

    return hook


def _check_metadata(metadata: Any, file: Path) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise InputError(f"{file} is corrupt: its __metadata__ is not an object of texts")
    if (framework := _FOREIGN.get(metadata.get("format", ""))) is not None:
        raise InputError(
            f"{file} has the layout of {framework}; give the checkpoint in the layout of torch"
        )


def _extent(name: str, entry: Any, file: Path) -> Extent:
    """One entry of the header, its types and its size checked."""
    fault = f"{file} is corrupt: "
    if not name.isprintable():
        raise InputError(f"{fault}tensor name {_shown(name)}")
    if not isinstance(entry, dict):
        raise InputError(f"{fault}bad entry for tensor {_shown(name)}")
    dtype: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    ends: Any = entry.get("data_offsets")
    if not (isinstance(dtype, str) and _whole_numbers(shape) and _whole_numbers(ends)):
        raise InputError(f"{fault}bad entry for tensor {_shown(name)}")
    if dtype not in _BITS:
        raise InputError(
            f"{fault}tensor {_shown(name)} has dtype {_shown(dtype)}, unknown to safetensors"
        )
    if len(shape) > _MAX_AXES or max(shape, default=0) > _MAX_SIZE:
        raise InputError(f"{fault}impossible shape of tensor {_shown(name)}")
    bits = math.prod(shape) * _BITS[dtype]
    if len(ends) != 2 or ends[0] > ends[1] or bits != 8 * (ends[1] - ends[0]):
        raise InputError(f"{fault}bad extent of tensor {_shown(name)}")
    return Extent(name, dtype, tuple(shape), *ends)


def _whole_numbers(value: Any) -> bool:
    """Whether it is a list of ints of 0 or more."""
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _check_extents(extents: list[Extent], available: int, file: Path) -> None:
    """That the extents, in their order, fill `available` bytes one after the other."""
    end = 0
    for extent in extents:
        if extent.end > available:
            raise InputError(
                f"{file} is truncated: tensor {_shown(extent.name)} ends at byte {extent.end} of "
                f"{available} bytes of data"
            )
        if extent.begin != end:
            fault = "overlaps another" if extent.begin < end else "leaves a gap before it"
            raise InputError(
                f"{file} is corrupt: bad extent of tensor {_shown(extent.name)}, it {fault}"
            )
        end = extent.end
    if end != available:
        raise InputError(f"{file} is corrupt: {available - end} bytes belong to no tensor")


def _shown(text: str) -> str:
    """A name for a message: short, in one line, without what a terminal cannot show."""
    short = text if len(text) <= 100 else text[:100] + "…"
    return short if short.isprintable() else ascii(short)
