"""Tensors of a file that torch saved: a zip archive since torch 1.6, a pickle before.

Only state dictionaries are read, with torch's `weights_only` loading: no code of the file runs.
"""

from __future__ import annotations

import re
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gotr1_jax.errors import InputError
from gotr1_jax.io.contents import describe_binary
from gotr1_jax.io.reading import open_file, read_start

_AGAIN = "save model.state_dict() alone with torch.save, or as safetensors"
_UNSUPPORTED = re.compile(r"GLOBAL ([\w.]+)|[Uu]nsupported (?:global|class|operand)[: ]+([\w.]+)")


def read_state(file: Path, section: str | None = None) -> dict[str, Any]:
    """The torch tensors of a state dictionary, that under the key `section` if one is given.

    Tensors of the zip format are views of the file; the older format is read into memory.
    Raises InputError, in one line, for what is missing, truncated, corrupt or something else, and
    for tensors without plain values: meta, sparse, quantised or distributed ones.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"reading {file.name} needs torch: pip install 'gotr1_jax[convert]'"
        ) from error
    archive = _is_archive(file)
    try:
        state = torch.load(file, map_location="cpu", mmap=archive, weights_only=True)
    except Exception as error:  # zip, pickle and torch errors share no base class
        raise InputError(_why(file, error)) from error
    if section is not None:
        if not isinstance(state, dict) or section not in state:
            raise InputError(f"{file} is another kind of file: it holds no {section}")
        state = state[section]
    _check_state(state, file)
    return dict(state)


def _is_archive(file: Path) -> bool:
    """Whether a file is torch's zip archive (else its older pickle); InputError for neither."""
    try:
        start = read_start(file)
        if not start.startswith(b"PK"):
            return _refuse_others(file, start)
        with open_file(file) as stream, zipfile.ZipFile(stream) as archive:
            names = archive.namelist()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise InputError(f"{file} is truncated or corrupt: {error}") from error
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise InputError(
            f"{file} is a TorchScript archive, which is a program: load it with torch.jit.load "
            "and save its state_dict() with torch.save"
        )
    if not any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        what = "arrays of numpy" if names and all(n.endswith(".npy") for n in names) else "other"
        raise InputError(
            f"{file} is a zip archive of {what} files, not one that torch.save wrote; "
            "unpack it, or give a checkpoint for torch"
        )
    return True


def _refuse_others(file: Path, start: bytes) -> bool:
    """False for a pickle, as torch.save wrote it before 1.6; InputError for anything else."""
    if start.startswith(b"\x80"):
        return False
    if start.strip(b"\0") and tarfile.is_tarfile(file):
        with tarfile.open(file) as archive:
            old = {"pickle", "storages", "tensors"} <= set(archive.getnames())
        what = "a tar file of torch before 0.1.10: load it there and" if old else "a tar archive:"
        raise InputError(f"{file} is {what} {_AGAIN}")
    kind = describe_binary(start) or "nothing that torch.save wrote"
    raise InputError(f"{file} is truncated or corrupt, or no file of torch: it is {kind}")


def _why(file: Path, error: Exception) -> str:
    """The line about a file that torch refuses."""
    text = str(error)
    if (match := _UNSUPPORTED.search(text)) and "weights" in text.lower():
        name = match[1] or match[2]
        if "distributed" in name or "DTensor" in name:
            return f"{file} is a shard of a model that was split over devices ({name}): {_AGAIN}"
        return (
            f"{file} holds more than tensors ({name}), which only running its code would give: "
            f"{_AGAIN}"
        )
    reason = text.splitlines()[0] if text.strip() else type(error).__name__
    if "magic number" in reason.lower():
        return f"{file} is a pickle that torch.save did not write: {_AGAIN}"
    return f"{file} is truncated or corrupt: {reason}"


def _check_state(state: Any, file: Path) -> None:
    """That it is a dictionary of plain tensors by name."""
    import torch

    if not isinstance(state, Mapping):
        raise InputError(
            f"{file} holds no state dictionary of tensors but a {type(state).__name__}: {_AGAIN}"
        )
    for name, value in state.items():
        if isinstance(value, Mapping) and any(isinstance(v, torch.Tensor) for v in value.values()):
            raise InputError(
                f"{file} holds no state dictionary of tensors itself but one under its key "
                f"{name!r}: save that part alone with torch.save"
            )
    for name, value in state.items():
        if not isinstance(name, str) or not name.isprintable() or not name.isascii():
            raise InputError(f"{file} holds no state dictionary of tensors: key {ascii(name)}")
        if not isinstance(value, torch.Tensor):
            raise InputError(
                f"{file} holds no state dictionary of tensors: {name} is a {type(value).__name__}"
            )
        if fault := _fault(value):
            raise InputError(f"{file}: tensor {name} {fault}")


def _fault(tensor: Any) -> str | None:
    """Why a tensor has no plain values, with what to do."""
    import torch

    if tensor.is_meta:
        return (
            "is a meta tensor, its values were never saved: save the model after its weights are "
            "loaded, not on the device 'meta'"
        )
    if tensor.layout != torch.strided or tensor.is_nested:
        layout = str(tensor.layout).removeprefix("torch.")
        return f"is sparse or nested ({layout}): save tensor.to_dense()"
    if tensor.is_quantized:
        return f"is quantised ({tensor.dtype}): save tensor.dequantize()"
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return f"is a {type(tensor).__name__}: save a plain tensor"
    return None
