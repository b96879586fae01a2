"""`gotr1 train grpo --reward my_rewards.py:score`: a term of one's own without editing a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gotr1_jax.config import load_config, parse_overrides
from gotr1_jax.errors import ConfigError, InputError
from gotr1_jax.rewards.terms import check_names

_NAMED = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_TOTAL = ("reward.total", "reward.rule")


def expand_rewards(schema: Any, path: Path, overrides: Sequence[str]) -> list[str]:
    """The overrides with each `--reward [NAME=]FUNCTION` written as keys of the configuration.

    Each adds a term, named after the function where no name is given, and the total becomes
    (the total of before) * NAME, unless --reward.total is given too.

    Args:
        schema: the configuration's class, `GrpoConfig`.
        path: of the YAML file that the overrides belong to.
        overrides: of the command line.
    """
    pairs = parse_overrides(overrides)
    functions = [text for key, text in pairs if key == "reward" and not text.startswith("{")]
    if not functions:
        return list(overrides)
    rest = [pair for pair in pairs if pair[0] != "reward" or pair[1].startswith("{")]
    terms = _name_terms(functions)
    mine = tuple(f"reward.terms.{name}." for name in terms)
    before = [p for p in rest if p[0] not in _TOTAL and not p[0].startswith(mine)]
    reward = load_config(schema, path, _words(before)).reward
    for name in terms:
        if name in reward.terms or name in reward.expression.names:
            raise InputError(
                f"--reward {terms[name]}: the configuration has a term {name} already; give it "
                f"another name, --reward NAME={terms[name]}"
            )
    added = [(f"reward.terms.{name}.python", function) for name, function in terms.items()]
    if not any(key in _TOTAL for key, _ in rest):
        total = " * ".join([f"({reward.expression.text})", *terms])
        added.append(("reward.total", total))
    return _words([*rest, *added])


def _name_terms(functions: Sequence[str]) -> dict[str, str]:
    terms: dict[str, str] = {}
    for text in functions:
        match = _NAMED.fullmatch(text)
        name, function = match.groups() if match else (text.rpartition(":")[2], text)
        try:
            check_names([name])
        except ConfigError as error:
            raise InputError(
                f"--reward {text} gives a term called {error}; write it as "
                "NAME=file.py:function or NAME=module:function"
            ) from error
        if name in terms:
            raise InputError(
                f"--reward {text} gives a second term {name}; name one, --reward NAME={function}"
            )
        terms[name] = function
    return terms


def _words(pairs: Sequence[tuple[str, str]]) -> list[str]:
    return [f"--{key}={text}" for key, text in pairs]
