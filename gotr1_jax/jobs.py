"""The jobs of `gotr1 train`, their configurations, and the list of all fields.

`python -m gotr1_jax.jobs > docs/config_reference.md` writes the page of the manual again.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gotr1_jax.config import field_kinds
from gotr1_jax.config_reference import (
    FieldEntry,
    all_fields,
    fields_table,
    fields_text,
    first_paragraph,
    own_fields,
)
from gotr1_jax.io.strict_yaml import read_yaml_file

# Job -> module, configuration class, function. The configuration classes stand in a module
# `config` beside it, which does not import jax: `--help` and bad input return at once.
JOBS = {
    "vq": ("gotr1_jax.vq.train", "VqTrainConfig", "train_vq"),
    "sft": ("gotr1_jax.sft.train", "SftConfig", "train_sft"),
    "grpo": ("gotr1_jax.grpo.train", "GrpoConfig", "train_grpo"),
    "judge": ("gotr1_jax.judge_sft.train", "JudgeSftConfig", "train_judge"),
}


class CommandSchema(NamedTuple):
    """The configuration of a command that trains nothing.

    Attributes:
      module, name: of its class.
      as_options: whether its fields are options of the command's parser, each with its help.
    """

    module: str
    name: str
    as_options: bool = False

    def load(self) -> type:
        """The class."""
        return getattr(importlib.import_module(self.module), self.name)


OTHERS = {
    "judge": CommandSchema("gotr1_jax.rewards.command", "JudgeJob", as_options=True),
    "generate --search": CommandSchema(
        "gotr1_jax.generate.search.config", "SearchJob", as_options=True
    ),
    "ablate": CommandSchema("gotr1_jax.ablate.config", "AblationConfig"),
    "eval search": CommandSchema("gotr1_jax.evaluation.search", "SearchEvaluationConfig"),
}
# Commands that read configurations of jobs.
JOBS_OF = {"compile": ("grpo", "sft"), "tokenize-images": ("sft",)}
PAGE = "docs/config_reference.md"
_WIDEST = 100  # columns; longer lines are hard to read


def job_schema(job: str) -> Any:
    """The configuration class of a job, without importing jax."""
    module, schema, _ = JOBS[job]
    return getattr(importlib.import_module(module.rpartition(".")[0] + ".config"), schema)


def jobs_of_file(path: Path) -> list[str]:
    """The jobs that know the most of a configuration's keys: one, unless it is hardly begun."""
    values = read_yaml_file(path)
    keys = set(values) if isinstance(values, dict) else set()
    known = {job: len(keys & set(field_kinds(job_schema(job)))) for job in JOBS}
    return [job for job, count in known.items() if count == max(known.values())]


def schemas() -> dict[str, type]:
    """The configuration class of every command that takes one."""
    trained = {f"gotr1 train {job}": job_schema(job) for job in JOBS}
    return trained | {f"gotr1 {command}": schema.load() for command, schema in OTHERS.items()}


class _FieldsHelp(argparse.Action):
    def __init__(
        self, option_strings: Sequence[str], dest: str, fields: Callable[[Any], str], **_: Any
    ) -> None:
        super().__init__(option_strings, dest, nargs=0, help="this, with the configuration")
        self._fields = fields

    def __call__(self, parser: argparse.ArgumentParser, options: Any, *_: Any) -> None:
        print(parser.format_help())
        print(self._fields(options))
        parser.exit()


def add_fields_help(parser: argparse.ArgumentParser, fields: Callable[[Any], str]) -> None:
    """Its `--help` prints `fields` of the options that stand before it too, and exits with 0."""
    parser._optionals.conflict_handler = "resolve"  # with the --help there is
    parser.add_argument("-h", "--help", action=_FieldsHelp, fields=fields)


def add_job_help(parser: argparse.ArgumentParser) -> None:
    """`--help` of `gotr1 train` prints all fields of its `job`, or of every one."""
    add_fields_help(parser, lambda options: fields_of_jobs([options.job] if options.job else JOBS))


def add_command_help(parser: argparse.ArgumentParser, command: str) -> None:
    """`--help` of a command that reads a configuration prints what it may hold."""
    if command in JOBS_OF:
        add_fields_help(parser, lambda _: sections_of_jobs(JOBS_OF[command]))
    elif command in OTHERS and not OTHERS[command].as_options:
        add_fields_help(parser, lambda _: fields_of_command(command))


def fields_of_command(command: str) -> str:
    """All fields of a command's own configuration, for a terminal."""
    entries = list(all_fields(OTHERS[command].load()))
    return f"fields of the configuration:\n\n{fields_text(entries, _width())}"


def fields_of_jobs(jobs: Collection[str]) -> str:
    """All fields of some jobs, for a terminal; of several, those that all have come once."""
    jobs, width = list(jobs), _width()
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
    entries: dict[str, FieldEntry] = {}
    for job in jobs:
        for entry in own_fields(job_schema(job)):
            entries.setdefault(entry.path, entry)
    where = ", ".join(f"gotr1 train {job} --help" for job in jobs)
    return (
        f"fields of the configuration (those of its sections: {where}, {PAGE}):\n\n"
        f"{fields_text(list(entries.values()), _width())}"
    )


def _width() -> int:
    return min(_WIDEST, shutil.get_terminal_size().columns)


def reference_page() -> str:
    """The page of the manual: a table of each configuration class, with the places it stands."""
    parts = [
        "# All fields of the configurations",
        "Made from the code by `python -m gotr1_jax.jobs`; `gotr1 train JOB --help` prints the "
        "same on a terminal. How values are written is in [configuration](configuration.md). A "
        "section that several commands share is described once, with all its places: `NAME` is a "
        "name of your own, `[]` an item of a list.",
    ]
    places = _places()
    for command, schema in schemas().items():
        parts.append(f"## {command}")
        parts.append(f"{first_paragraph(schema)} Its sections are described below.")
        parts.append(fields_table(own_fields(schema)))
    parts.append("## Sections")
    titles = [next(iter(found)) for found in places.values()]
    for schema, found in sorted(places.items(), key=lambda item: next(iter(item[1]))):
        title = next(iter(found))
        if titles.count(title) > 1:
            title += f" of {', '.join(found[title])}"
        parts.append(f"### {title}")
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
