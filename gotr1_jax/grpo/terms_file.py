"""terms.json of a run: name, meaning and settings of each reward term, for reports and tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gotr1_jax.config import to_plain
from gotr1_jax.errors import InputError
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.grpo.watched import WatchedJudge
from gotr1_jax.io.files import write_json_atomic
from gotr1_jax.io.reading import read_json_object
from gotr1_jax.parallel.processes import is_main_process, raise_on_all_processes
from gotr1_jax.rewards.base import Judge, term_meanings
from gotr1_jax.rewards.factory import check_functions
from gotr1_jax.rewards.terms import TermConfig
from gotr1_jax.trainer.run_dir import RunDir


def write_terms(
    run: RunDir, config: GrpoConfig, judge: Judge, watched: Sequence[WatchedJudge],
    note: Callable[[str], None],
) -> None:  # fmt: skip
    """Writes the file, and notes which terms of the configuration are only watched."""
    with raise_on_all_processes():
        if is_main_process():
            write_json_atomic(run.terms, describe_terms(config, judge, watched))
    for name in config.reward.watched:
        note(f"reward.terms: {name} is not in reward.total: it is watched, never trained on")


def check_run_functions(config: GrpoConfig, resumed: RunDir | None) -> None:
    """InputError for a function that is not there; it also names where `resumed` was started."""
    try:
        check_functions(config.judge, config.reward.terms, config.evaluation.judges)
    except InputError as error:
        before = None if resumed is None else _started_in(resumed)
        if before is None or Path(before) == Path.cwd():
            raise
        raise InputError(
            f"{error}; the run that is resumed was started in {before}: start it there"
        ) from error


def _started_in(run: RunDir) -> str | None:
    """The working directory of a run's last start; None where it is not known."""
    try:
        return str(read_json_object(run.terms)["started_in"])
    except (InputError, KeyError):  # of an earlier version, or damaged
        return None


def describe_terms(
    config: GrpoConfig, judge: Judge, watched: Sequence[WatchedJudge] = ()
) -> dict[str, Any]:
    """The total as given and as a formula, an entry for each term that the judge scores, and one
    for each term that evaluations watch."""
    reward, known, usual = config.reward, term_meanings(judge), TermConfig()
    entries = []
    for name in judge.terms:
        term = reward.terms.get(name, usual)
        entry = _entry(name, term, term.meaning or known[name])
        entries.append({**entry, "in_total": name in reward.expression.names})
    return {
        "total": reward.total, "formula": reward.expression.text, "terms": entries,
        "started_in": os.getcwd(),  # of which relative paths of functions are
        "watched": [_entry(one.name, one.term, one.meaning) for one in watched],
    }  # fmt: skip


def _entry(name: str, term: TermConfig, meaning: str) -> dict[str, Any]:
    settings = {key: to_plain(getattr(term, key)) for key in ("weight", "scale", "clip")}
    return {"name": name, "meaning": meaning, "source": term.source, **settings}
