"""Completion of `gotr1` in a shell: a script made from the parser and the configurations' schemas.

The script holds all words itself, so that pressing Tab starts no Python.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gotr1_jax.config_reference import FieldEntry, all_fields
from gotr1_jax.io.strict_yaml import SHIPPED
from gotr1_jax.jobs import JOBS, JOBS_OF, job_schema

# Of both shells. A place is the commands so far, each with a blank before it: " train grpo".
_TABLES = """\
_gotr1_words() {{  # PLACE: what may follow
  case "$1" in
{words}
  esac
}}
_gotr1_values() {{  # OPTION: values to choose from
  case "$1" in
{values}
  esac
}}
_gotr1_takes() {{  # OPTION: whether a value follows
  case "$1" in
    {flags}) return 1;;
    --*) return 0;;
  esac
  return 1
}}
_gotr1_place() {{  # WORDS: the commands among them
  local place= word
  for word in "$@"; do
    [ -n "$(_gotr1_words "$place $word")" ] && place="$place $word"
  done
  printf %s "$place"
}}
"""
_SHELLS = {
    "bash": """\
_gotr1() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} found
  [ "$prev" = = ] && prev=${COMP_WORDS[COMP_CWORD-2]}  # --key=value is three words
  [ "$cur" = = ] && cur=
  found=$(_gotr1_values "$prev")
  if [ -z "$found" ] && ! _gotr1_takes "$prev"; then
    found=$(_gotr1_words "$(_gotr1_place "${COMP_WORDS[@]:1:COMP_CWORD-1}")")
  fi
  COMPREPLY=($(compgen -W "$found" -- "$cur"))
  [ "$prev" = --config ] && COMPREPLY+=($(compgen -f -- "$cur"))
}
complete -o default -F _gotr1 gotr1
""",
    "zsh": """\
_gotr1() {
  local prev=${words[CURRENT-1]} found
  found=$(_gotr1_values "$prev")
  if [ -z "$found" ] && ! _gotr1_takes "$prev"; then
    found=$(_gotr1_words "$(_gotr1_place "${(@)words[2,CURRENT-1]}")")
  fi
  [ -n "$found" ] && compadd -- ${=found}
  if [ -z "$found" ] || [ "$prev" = --config ]; then _files; fi
}
compdef _gotr1 gotr1
""",
}


class CompletionAction(argparse.Action):
    """Prints the script for a shell, and exits; `make_parser` gives the parser of all commands."""

    def __init__(
        self,
        option_strings: list[str],
        dest: str,
        make_parser: Callable[[], argparse.ArgumentParser],
        **_: Any,
    ) -> None:
        super().__init__(
            option_strings, dest, choices=tuple(_SHELLS),
            help="print a script that completes commands, options and names of configurations",
        )  # fmt: skip
        self._make_parser = make_parser

    def __call__(self, parser: argparse.ArgumentParser, options: Any, shell: Any, *_: Any) -> None:
        """Prints it."""
        print(completion_script(self._make_parser(), shell), end="")
        parser.exit()


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for bash or zsh, to be evaluated by the shell when it starts."""
    places = dict(_places(parser, ""))
    shipped = sorted(file.stem for folder in SHIPPED for file in folder.glob("*.yaml"))
    values: dict[str, list[str]] = {"--config": list(dict.fromkeys(shipped))}
    flags: list[str] = []
    words = []
    for place, (follows, options) in places.items():
        for names, choices in options:
            if choices is None:
                flags += names
            for name in names if choices else ():
                known = values.setdefault(name, [])
                known += [choice for choice in choices or () if choice not in known]
        every = [*follows, *(name for names, _ in options for name in names if name[:2] == "--")]
        words.append(_case([place], every))
    return _TABLES.format(
        words="\n".join(words),
        values="\n".join(_case([name], chosen) for name, chosen in values.items()),
        flags="|".join(dict.fromkeys(flags)),
    ) + _SHELLS[shell]  # fmt: skip


# The names of an option, and its values: () any, None: it takes none.
_Option = tuple[list[str], tuple[str, ...] | None]


def _places(
    parser: argparse.ArgumentParser, place: str
) -> Iterator[tuple[str, tuple[list[str], list[_Option]]]]:
    """What may follow a place and all those below it: commands, options."""
    follows: list[str] = []
    below: list[tuple[str, tuple[list[str], list[_Option]]]] = []
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    options = [_option(action) for action in shown if action.option_strings]
    options += _field_options(JOBS_OF.get(place.strip(), ()))
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            follows += action.choices
            for name, inner in action.choices.items():
                below += _places(inner, f"{place} {name}")
        elif not action.option_strings and action.choices:
            follows += map(str, action.choices)
    if place == " train":
        below += [(f"{place} {job}", ([], [*options, *_field_options([job])])) for job in JOBS]
    yield place, (follows, options)
    yield from below


def _option(action: argparse.Action) -> _Option:
    if action.nargs == 0:
        return list(action.option_strings), None
    return list(action.option_strings), tuple(map(str, action.choices or ()))


def _field_options(jobs: Iterable[str]) -> list[_Option]:
    """The fields of jobs that can be given as an option of one's own."""
    entries: dict[str, FieldEntry] = {}
    for job in jobs:
        entries.update((entry.path, entry) for entry in all_fields(job_schema(job)))
    return [
        ([f"--{path}"], entry.choices)
        for path, entry in entries.items()
        if entry.section is None and "NAME" not in path and "[]" not in path
    ]


def _case(patterns: list[str], words: Iterable[str]) -> str:
    pattern = "|".join(map(shlex.quote, patterns))
    return f"    {pattern}) echo {shlex.quote(' '.join(dict.fromkeys(words)))};;"
