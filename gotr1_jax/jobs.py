"""The jobs of `gotr1 train`, their configurations, and the list of all fields.

`python -m gotr1_jax.jobs > docs/config_reference.md` writes the page of the manual again.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from gotr1_jax.config_reference import (
    FieldEntry,
    all_fields,
    fields_table,
    fields_text,
    first_paragraph,
    own_fields,
)

# Job -> module, configuration class, function. The configuration classes stand in a module
# `config` beside it, which does not import jax: `--help` and bad input return at once.
JOBS = {
    "vq": ("gotr1_jax.vq.train", "VqTrainConfig", "train_vq"),
    "sft": ("gotr1_jax.sft.train", "SftConfig", "train_sft"),
    "grpo": ("gotr1_jax.grpo.train", "GrpoConfig", "train_grpo"),
    "judge": ("gotr1_jax.judge_sft.train", "JudgeSftConfig", "train_judge"),
}
# What other commands read: command -> module, configuration class.
OTHERS = {
    "gotr1 judge": ("gotr1_jax.rewards.command", "JudgeJob"),
    "gotr1 generate --search": ("gotr1_jax.generate.search.config", "SearchJob"),
    "gotr1 ablate": ("gotr1_jax.ablate.config", "AblationConfig"),
}
PAGE = "docs/config_reference.md"
_WIDEST = 100  # columns; longer lines are hard to read


def job_schema(job: str) -> Any:
    """The configuration class of a job, without importing jax."""
    module, schema, _ = JOBS[job]
    return getattr(importlib.import_module(module.rpartition(".")[0] + ".config"), schema)


def schemas() -> dict[str, type]:
    """The configuration class of every command that takes one."""
    trained = {f"gotr1 train {job}": job_schema(job) for job in JOBS}
    others = {
        command: getattr(importlib.import_module(module), schema)
        for command, (module, schema) in OTHERS.items()
    }
    return {**trained, **others}


class FieldsHelp(argparse.Action):
    """`--help` of `gotr1 train`: the usage, and every field of the job, or of all jobs."""

    def __init__(self, option_strings: Sequence[str], dest: str, **_: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, help="this, with all fields of JOB")

    def __call__(self, parser: argparse.ArgumentParser, options: Any, *_: Any) -> None:
        """Prints it and exits with 0."""
        job = getattr(options, "job", None)
        print(parser.format_help())
        print(fields_of_jobs(tuple(JOBS) if job is None else (job,)))
        parser.exit()


def fields_of_jobs(jobs: Sequence[str]) -> str:
    """All fields of some jobs, for a terminal; of several, those that all have come once."""
    width = min(_WIDEST, shutil.get_terminal_size().columns)
    fields = {job: list(all_fields(job_schema(job))) for job in jobs}
    parts = []
    shared = [e for e in fields[jobs[0]] if all(e in others for others in fields.values())]
    if len(jobs) > 1:
        parts.append(f"fields of all jobs (those of one alone: gotr1 train {jobs[-1]} --help):")
        parts.append(fields_text(shared, width))
        fields = {job: [e for e in own if e not in shared] for job, own in fields.items()}
    for job, own in fields.items():
        parts.append(f"fields of gotr1 train {job}, in FILE or as --NAME VALUE:")
        parts.append(fields_text(own, width))
    return "\n\n".join(parts)


def sections_of_jobs(jobs: Sequence[str]) -> str:
    """The first fields and sections of some jobs, for the end of another command's help."""
    width = min(_WIDEST, shutil.get_terminal_size().columns)
    entries: dict[str, FieldEntry] = {}
    for job in jobs:
        for entry in own_fields(job_schema(job)):
            entries.setdefault(entry.path, entry)
    where = " and ".join(f"gotr1 train {job} --help" for job in jobs)
    return (
        f"sections and fields of the configuration; {where} list what the sections hold, as does "
        f"{PAGE}:\n\n{fields_text(list(entries.values()), width)}"
    )


def reference_page() -> str:
    """The page of the manual: a table of each configuration class, with the places it stands."""
    parts = [
        "# All fields of the configurations",
        "Made from the code by `python -m gotr1_jax.jobs`; `gotr1 train JOB --help` prints the "
        "same on a terminal. How values are written is in [configuration](configuration.md). A section "
        "that several commands share is described once, with all its places: `NAME` is a name of "
        "your own, `[]` an item of a list.",
    ]
    places = _places()
    for command, schema in schemas().items():
        parts.append(f"## {command}")
        parts.append(f"{first_paragraph(schema)} Its sections are described below.")
        parts.append(fields_table(own_fields(schema)))
    parts.append("## Sections")
    for schema, found in sorted(places.items(), key=lambda item: next(iter(item[1]))):
        parts.append(f"### {next(iter(found))}")
        where = "; ".join(f"`{path}` of {', '.join(commands)}" for path, commands in found.items())
        parts.append(f"{first_paragraph(schema)} Stands at: {where}.")
        parts.append(fields_table(own_fields(schema)))
    return "\n\n".join(parts) + "\n"


def _places() -> dict[type, dict[str, list[str]]]:
    """Section class -> dotted path -> the commands in whose configuration it stands there."""
    places: dict[type, dict[str, list[str]]] = {}
    for command, schema in schemas().items():
        for entry in all_fields(schema):
            if entry.section is not None:
                commands = places.setdefault(entry.section, {}).setdefault(entry.path, [])
                commands.append(command.removeprefix("gotr1 "))
    return places


if __name__ == "__main__":
    sys.stdout.write(reference_page())
