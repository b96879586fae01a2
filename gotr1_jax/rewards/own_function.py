"""Functions of one's own, named `file.py:function` or `module:function`: found and loaded."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import os
import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from gotr1_jax.errors import InputError, RunError, Stopped
from gotr1_jax.io.reading import read_bytes
from gotr1_jax.rewards.source_digest import INSTALLED

HOW_TO_NAME = "write it as file.py:function or module:function"


def is_function_name(name: str) -> bool:
    """Whether a text has the form of a function's name; nothing is looked for."""
    module_name, _, attribute = name.rpartition(":")
    return bool(module_name) and attribute.isidentifier()


def split_name(name: str) -> tuple[str, str]:
    """File or module, and function; InputError for any other text."""
    if not is_function_name(name):
        raise InputError(f"{name!r} names no function; {HOW_TO_NAME}")
    module_name, _, attribute = name.rpartition(":")
    return module_name, attribute


def find_file(name: str) -> Path | None:
    """The file of "file.py:function", whole; None for a module. InputError where it is not there.

    A relative path is looked for in the working directory; `~` is the home folder.
    """
    module_name, _ = split_name(name)
    if not module_name.endswith(".py"):
        return None
    file = Path(module_name).expanduser()
    if not file.is_file():
        where = "" if file.is_absolute() else f" in {os.getcwd()}"
        raise InputError(f"there is no file {module_name}{where}: it was to hold {name}")
    return file.resolve()


def check_function(name: str) -> None:
    """InputError for a file that is missing, is no Python or defines no such function.

    Nothing of it is run: it may load a model. A module is not looked for.
    """
    file, (module_name, attribute) = find_file(name), split_name(name)
    if file is None:
        return
    try:
        tree = ast.parse(read_bytes(file, "a function"), str(file))
    except (SyntaxError, ValueError) as error:
        raise _import_error(name, error) from error
    words = {word for node in ast.walk(tree) for word in _names(node)}
    if not words & {attribute, "*", "__getattr__", "globals"}:
        raise InputError(f"{module_name} has no function {attribute}")


def _names(node: ast.AST) -> list[str]:
    """What a statement may define; also other uses of a name, which are few."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.alias):
        return [node.asname or node.name]
    return [node.id] if isinstance(node, ast.Name) else []


def load_function(name: str) -> Callable[..., Any]:
    """The function that "file.py:function" or "module:function" names.

    Relative files and modules are looked for in the working directory; modules elsewhere too.
    """
    file, (module_name, attribute) = find_file(name), split_name(name)
    here = os.getcwd() if file is None else str(file.parent)
    if file is not None:
        _check_neighbours(file)
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name) if file is None else _import_file(file)
    except BaseException as error:
        if is_from_outside(error):
            raise
        raise _import_error(name, error) from error
    finally:
        if here in sys.path:
            sys.path.remove(here)
    function = getattr(module, attribute, None)
    if not callable(function):
        raise InputError(f"module {module_name} has no function {attribute}")
    if isinstance(function, type):
        raise InputError(
            f"{attribute} of {module_name} is a class; write mine = {attribute}() below it, and "
            f"name {module_name}:mine"
        )
    return function


def _import_error(name: str, error: BaseException) -> InputError:
    module_name, _ = split_name(name)
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return InputError(f"module {module_name} of {name} cannot be imported: {text}")


def _import_file(file: Path) -> ModuleType:
    """The module in a file, imported once; under another name where its own is taken."""
    name = file.stem
    for known in (name, f"{name}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"):
        module = sys.modules.get(known)
        path = getattr(module, "__file__", None)
        if module is not None and isinstance(path, str) and Path(path).resolve() == file:
            return module
        name = known
        if module is None and (known != file.stem or importlib.util.find_spec(known) is None):
            break
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _check_neighbours(file: Path) -> None:
    """InputError where a module beside the file has the name of one that is imported already.

    Python knows one module of a name: the file would get that of another project, unnoticed.
    """
    seen, waiting = {file}, [file]
    while waiting:
        for top in _imported(waiting.pop()):
            siblings = (file.parent / f"{top}.py", file.parent / top / "__init__.py")
            own = next((path for path in siblings if path.is_file()), None)
            if own is None or own in seen or top == __name__.partition(".")[0]:
                continue
            seen.add(own)
            waiting.append(own)
            known = getattr(sys.modules.get(top), "__file__", None)
            found = Path(known).resolve() if isinstance(known, str) else own
            if found != own.resolve() and not _is_installed(found):
                raise InputError(
                    f"{file} imports {top}, which is {found} by now, not {own}; give one of the "
                    "two another name"
                )


def _imported(file: Path) -> set[str]:
    """The top-level names that a file imports; none of a file that is no Python."""
    try:
        tree = ast.parse(read_bytes(file, "a function"), str(file))
    except (SyntaxError, ValueError):
        return set()
    names = {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    froms = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level == 0]
    names |= {n.module or "" for n in froms}
    return {name.partition(".")[0] for name in names}


def _is_installed(file: Path) -> bool:
    """Whether a module's file is of Python itself or of an installed package."""
    return file.is_relative_to(sysconfig.get_path("stdlib")) or any(
        part in INSTALLED for part in file.parts
    )


def is_from_outside(error: BaseException) -> bool:
    """Whether foreign code was left because of a signal, not by an error or an exit of its own."""
    is_interrupt = isinstance(error, KeyboardInterrupt)
    # Where a job has replaced Python's handler, Ctrl-C raises no KeyboardInterrupt.
    return isinstance(error, Stopped) or (
        is_interrupt and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )


@contextmanager
def failures_as_one_line(what: str) -> Iterator[None]:
    """What a function of one's own raises, as a RunError that begins with `what`.

    So too its `sys.exit`, which would end the job with an exit code of its choice. A process that
    it forked does not go on with the job, and the working directory, from which paths may be
    relative, is what it was.
    """
    process, directory = os.getpid(), os.getcwd()
    try:
        yield
    except BaseException as error:
        if isinstance(error, InputError) or is_from_outside(error):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise RunError(
            f"{what} raised {type(error).__name__}: {_text(error)} "
            f"({place.filename}, line {place.lineno})"
        ) from error
    finally:
        if os.getpid() != process:
            os._exit(1)
        os.chdir(directory)


def _text(error: BaseException) -> str:
    try:
        text = " ".join(str(error).split())
    except Exception:
        return "(no text)"
    if "thread" in text and threading.current_thread() is not threading.main_thread():
        text += "; needs_main_thread = True on the function calls it in the main thread"
    if isinstance(error, AttributeError) and "'list' object" in text:
        text += "; a function gets the list of all requests"
    return text
