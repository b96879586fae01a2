"""What the scores of a Python function depend on, as far as its source shows it."""

from __future__ import annotations

import functools
import hashlib
import inspect
import secrets
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from gotr1_jax.io.reading import read_bytes

INSTALLED = ("site-packages", "dist-packages")


def source_digest(function: Callable[..., Any]) -> str:
    """16 hex digits of a function's source file and of the modules of its project that it imports.

    Its project is the top-level package that it is in, or the folder of its file; installed
    packages beside it and modules that are imported only while it runs are not read. Bound
    arguments (`functools.partial`) and an attribute `identity` of the function are part of it.
    Where there is no file at all it is random: nothing is known to be the same the next time.
    """
    digest = hashlib.sha256(str(getattr(function, "identity", "")).encode())
    while isinstance(function, functools.partial):
        digest.update(repr((function.args, sorted(function.keywords.items()))).encode())
        function = function.func
    target: Any = inspect.unwrap(function)
    if not (inspect.isroutine(target) or inspect.isclass(target)):
        target = type(target)  # an object that can be called
    module = sys.modules.get(getattr(target, "__module__", None) or "")
    first = None if module is None else _file_of(module)
    if module is None or first is None:
        return f"unknown-{secrets.token_hex(8)}"
    root = first.parents[module.__name__.count(".")] if "." in module.__name__ else first.parent
    for file in sorted(set(_project_files(module, first, root))):
        digest.update(f"\0{file.relative_to(root).as_posix()}\0".encode())
        digest.update(read_bytes(file))
    return digest.hexdigest()[:16]


def _project_files(module: ModuleType, first: Path, root: Path) -> Iterator[Path]:
    """The module's file, and those below `root` of all modules that it names, and that they do."""
    seen, waiting = {module.__name__}, [module]
    yield first
    while waiting:
        for value in list(vars(waiting.pop()).values()):
            named = value if isinstance(value, ModuleType) else sys.modules.get(_module_name(value))
            if named is None or named.__name__ in seen:
                continue
            seen.add(named.__name__)
            file = _file_of(named)
            if file is not None and _is_own(file, root):
                waiting.append(named)
                yield file


def _is_own(file: Path, root: Path) -> bool:
    if not file.is_relative_to(root) or file.is_relative_to(sysconfig.get_path("stdlib")):
        return False
    return not any(part in INSTALLED for part in file.relative_to(root).parts)


def _module_name(value: object) -> str:
    try:
        name = getattr(value, "__module__", "")
    except Exception:  # anything may stand in a module, also what raises when it is looked at
        return ""
    return name if isinstance(name, str) else ""


def _file_of(module: ModuleType) -> Path | None:
    name = getattr(module, "__file__", None)
    file = Path(name).resolve() if isinstance(name, str) else None
    return file if file is not None and file.is_file() else None
