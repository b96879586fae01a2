"""The JSON record of a checkpoint: shapes and dtypes of its arrays by path, and its meta."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from gotr1_jax.errors import InputError


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves by their paths, `params/decoder/embed`, in the order of the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    flat = {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}
    if len(flat) != len(leaves):
        raise ValueError("two leaves of the tree have the same path")
    for path, leaf in flat.items():
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise ValueError(f"{path} is a {type(leaf).__name__}, not an array; put it into meta")
    return flat


def specs(tree: Any) -> dict[str, Any]:
    """`{path: [shape, dtype]}` of a tree's leaves."""
    return {path: [list(leaf.shape), str(leaf.dtype)] for path, leaf in flatten(tree).items()}


def compare(saved: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    """Raise InputError unless both `specs` are equal; it names the first difference."""

    def show(spec: Any) -> str:
        return "absent" if spec is None else f"{spec[1]} {tuple(spec[0])}"

    paths = [*wanted, *(path for path in saved if path not in wanted)]
    wrong = [path for path in paths if saved.get(path) != wanted.get(path)]
    if wrong:
        path = wrong[0]
        more = f" (and {len(wrong) - 1} more differ)" if len(wrong) > 1 else ""
        raise InputError(
            f"checkpoint {folder} does not fit this configuration: {path} is"
            f" {show(saved.get(path))} in the checkpoint but {show(wanted.get(path))} here{more};"
            " use the configuration that wrote it, or begin in another run directory"
        )


def encode(value: Any) -> Any:
    """JSON values; bytes become {"__bytes__": base64}."""
    if isinstance(value, bytes):
        return {"__bytes__": base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    return value


def decode(value: Any) -> Any:
    """Inverse of `encode`."""
    if isinstance(value, dict):
        if set(value) == {"__bytes__"}:
            return base64.b64decode(value["__bytes__"])
        return {key: decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decode(item) for item in value]
    return value
