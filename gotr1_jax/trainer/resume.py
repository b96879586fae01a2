"""Resuming: from which checkpoint, under which settings, on which data.

A run goes on under the settings that it was trained under. What changed is listed with both values
and refused, unless `allow_changes` is set. A setting that only affects how a job runs may change
freely: its dataclass names it in `may_change`. Of files that a run reads, the content counts.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from gotr1_jax.config import load_config, to_plain
from gotr1_jax.errors import InputError
from gotr1_jax.io.files import write_json_atomic
from gotr1_jax.io.reading import read_json_object
from gotr1_jax.io.storage import identity, local_path
from gotr1_jax.trainer.checkpoint import Checkpoints, Restored
from gotr1_jax.trainer.manifest import MANIFEST_NAME
from gotr1_jax.trainer.run_dir import CHECKPOINTS_NAME, RunDir, step_number

_SHOWN = 80  # characters of a value in a message
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SettingChange:
    """A setting whose value is not that of the run which is resumed."""

    name: str
    old: str
    new: str
    is_free: bool

    def __str__(self) -> str:
        return f"{self.name} {self.old} -> {self.new}"


def setting_changes(old: Any, new: Any) -> list[SettingChange]:
    """All differences between two configurations of one class, by dotted name."""
    return list(_changes(old, new, "", False))


def _changes(old: Any, new: Any, name: str, is_free: bool) -> Iterator[SettingChange]:
    if is_dataclass(new) and type(old) is type(new):
        free = _may_change(type(new))
        for field in fields(new):
            inside = f"{name}.{field.name}" if name else field.name
            values = getattr(old, field.name), getattr(new, field.name)
            yield from _changes(*values, inside, is_free or field.name in free)
    elif isinstance(new, tuple) and any(map(is_dataclass, new)) and len(old or ()) == len(new):
        for i, (a, b) in enumerate(zip(old, new)):
            yield from _changes(a, b, f"{name}[{i}]", is_free)
    elif isinstance(new, Mapping) and isinstance(old, Mapping):
        for key in dict.fromkeys((*old, *new)):
            yield from _changes(old.get(key), new.get(key), f"{name}.{key}", is_free)
    elif old != new:
        yield SettingChange(name, _show(old), _show(new), is_free)


def _may_change(schema: type) -> set[str]:
    """The settings of a dataclass, inherited ones too, that a resumed run may change."""
    return {name for base in schema.__mro__ for name in vars(base).get("may_change", ())}


def _show(value: Any) -> str:
    text = json.dumps(to_plain(value), ensure_ascii=False)
    if len(text) <= _SHOWN:
        return text
    return f"{text[:_SHOWN]}... (SHA-256 {hashlib.sha256(text.encode()).hexdigest()[:8]})"


def check_settings(source: RunDir, config: Any, has_checkpoint: bool = True) -> list[SettingChange]:
    """The changes since the run at `source`; InputError if one of them is not allowed.

    With a checkpoint none is that decides which arrays it holds (`JobConfig.array_choices`).
    """
    if not source.config.is_file():
        _log.warning("%s is missing: settings cannot be compared with it", source.config)
        return []
    try:
        stored = load_config(type(config), source.config)
    except InputError as error:
        if config.allow_changes:
            _log.warning("settings cannot be compared: %s", error)
            return []
        raise InputError(
            f"the settings of the run in {source.root} cannot be compared with those given now: "
            f"{error}; begin in another run_dir, or go on with --allow-changes"
        ) from error
    changes = setting_changes(stored, config)
    if has_checkpoint:
        _refuse_other_arrays(source, changes, stored.array_choices, config.array_choices)
    _refuse(source, [change for change in changes if not change.is_free], config.allow_changes)
    return changes


def _refuse_other_arrays(
    source: RunDir,
    changes: Iterable[SettingChange],
    old: Mapping[str, Any],
    new: Mapping[str, Any],
) -> None:
    sections = [name for name in old if old[name] != new[name]]
    wrong = [
        str(change)
        for change in changes
        for name in sections
        if change.name == name or change.name.startswith(f"{name}.")
    ]
    if wrong:
        raise InputError(
            f"the checkpoints of {source.root} hold other arrays than these settings need: "
            f"{'; '.join(wrong)}; give the former ones, or begin in another run_dir"
        )


def resumed_settings(config: Any) -> Any | None:
    """The settings of the run that a job of `config` would go on with, as they are stored.

    None of a new run, and where they cannot be read: `check_settings` tells. InputError as of
    `resolve_resume`.
    """
    path = resolve_resume(config.resume, config.run_dir, tell=False)
    if path is None or not (file := run_of(path).config).is_file():
        return None
    try:
        return load_config(type(config), file)
    except InputError:
        return None


def check_inputs(source: RunDir, inputs: Mapping[str, str], allow: bool) -> list[SettingChange]:
    """As `check_settings`, of the files' content: what `inputs` says by the setting's name."""
    if not source.inputs.is_file():  # of a run of an earlier version
        return []
    try:
        stored = read_json_object(source.inputs)
    except InputError as error:
        _log.warning("the content of files cannot be compared: %s", error)
        return []
    changes = [
        SettingChange(name, str(stored[name]), text, False)
        for name, text in inputs.items()
        if stored.get(name, text) != text
    ]
    _refuse(source, changes, allow)
    return changes


def _refuse(source: RunDir, changes: Iterable[SettingChange], allow: bool) -> None:
    if changes and not allow:
        raise InputError(
            f"the run in {source.root} was trained under other settings: "
            f"{'; '.join(map(str, changes))}; give the former ones, begin in another run_dir, or "
            "accept the changes with --allow-changes"
        )


def describe_texts(texts: Iterable[str], what: str) -> str:
    """Number and digest of texts, to store and compare: "8 captions, SHA-256 0123456789abcdef"."""
    digest, count = hashlib.sha256(), 0
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
        count += 1
    return f"{count} {what}, SHA-256 {digest.hexdigest()[:16]}"


def resolve_resume(mode: str, run_dir: Path | str, *, tell: bool = True) -> Path | None:
    """The folder to resume from, for `restore_path`; None for a new run.

    Args:
        mode: `never`; `auto`: this run's own checkpoints, if there are any; or the path of a run
            directory, its `checkpoints`, or one step's folder. Only the first start reads it: the
            same command, started again, goes on with the checkpoints that were saved since. With a
            path of another run, this run's own checkpoints are used once there are any.
        run_dir: the run's directory.
        tell: log what is found where that is not what one may expect.

    Raises:
        InputError: the path holds no checkpoint.
    """
    if mode == "never":
        return None
    run = RunDir(local_path(run_dir))
    own = Checkpoints(run.checkpoints)
    if mode == "auto":
        if own.steps():
            return own.directory
        if tell:
            own.warn_unfinished()
        return None
    path, followed = local_path(mode), run.followed
    if own.steps() and _followed(followed) == identity(mode):
        _log.log(
            logging.INFO if tell else logging.DEBUG,
            "--resume %s was followed before: the run goes on from its newest checkpoint (remove "
            "%s to return to it)", mode, followed,
        )  # fmt: skip
        return own.directory
    for folder in (path / CHECKPOINTS_NAME, path):
        if Checkpoints(folder).steps() or (folder / MANIFEST_NAME).is_file():
            inside = own.directory.resolve() in (folder.resolve(), folder.resolve().parent)
            if inside or not own.steps():
                return folder
            _log.log(
                logging.WARNING if tell else logging.DEBUG,
                "%s has checkpoints of its own and goes on from them: --resume %s is not used",
                run_dir, mode,
            )  # fmt: skip
            return own.directory
    what = "holds no checkpoint" if path.exists() else "does not exist"
    raise InputError(
        f"--resume {mode} {what}; give auto, never, a run directory or one of its checkpoints"
    )


def restore_path(path: Path, target: Any, frozen: Any = None) -> Restored:
    """Restores from a path of `resolve_resume`: its newest good step, or the step that it names."""
    if (path / MANIFEST_NAME).is_file():
        step = step_number(path.name)
        if step is None:
            raise InputError(f"--resume {path}: a checkpoint's folder is named step_000010 or so")
        return Checkpoints(path.parent, frozen=frozen).restore(target, step)
    return Checkpoints(path, frozen=frozen).restore(target)


def run_of(path: Path) -> RunDir:
    """The run whose checkpoints a path of `resolve_resume` names."""
    folder = path.parent if (path / MANIFEST_NAME).is_file() else path
    return RunDir(folder.parent if folder.name == CHECKPOINTS_NAME else folder)


def mark_followed(run: RunDir, mode: str, step: int) -> None:
    """Notes that the run has resumed from the path `mode`; forgets it where it is no path."""
    if mode in ("auto", "never"):
        run.followed.unlink(missing_ok=True)
    else:
        write_json_atomic(run.followed, {"resume": identity(mode), "step": step})


def _followed(path: Path) -> str | None:
    try:
        return read_json_object(path).get("resume") if path.is_file() else None
    except InputError as error:
        _log.warning("%s; --resume is followed again", error)
        return None
