"""The meaning, type, range and default of every field of a configuration, and where they show."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from gotr1_jax import cli
from gotr1_jax.config import CheckedConfig
from gotr1_jax.config_reference import (
    all_fields,
    field_help,
    fields_table,
    fields_text,
    kind_words,
    without_meaning,
)
from gotr1_jax.jobs import JOBS, PAGE, job_schema, reference_page, schemas
from gotr1_jax.limits import PromptTemplate, Range

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Inner(CheckedConfig):
    """A tree of things.

    Attributes:
      width, height: sides
        in pixels.
      dtype: dtype of sums.
    """

    width: int
    height: int = 3
    dtype: Literal["a", "b"] = "a"
    # Further ones.
    also: tuple[Inner, ...] = ()


@dataclass(frozen=True)
class Parent(CheckedConfig):
    """Not of the list."""

    # Number of them, in all
    # of the runs.
    count: Annotated[int, Range("[1, 8]", also=(-1,))] = 1
    silent: str = " x"


@dataclass(frozen=True)
class Outer(Parent):
    """All of it."""

    rate: float | None = 1e-5  # per second
    words: tuple[str, ...] = ("a", "b")
    one: Inner = field(default_factory=lambda: Inner(2))
    # By name; 50% | more.
    many: Mapping[str, Inner] = field(default_factory=dict)
    count: Annotated[int, Range("[1, 8]", also=(-1,))] = 2


def test_meanings_come_from_docstring_comment_or_line_end() -> None:
    found = {e.path: (e.meaning, e.terms) for e in all_fields(Outer)}
    assert found == {
        "count": ("Number of them, in all of the runs.", "integer in [1, 8], or -1, default 2"),
        "silent": ("", 'text, default " x"'),
        "rate": ("per second.", "number or null, default 1e-05"),
        "words": ("", "list of texts, default [a, b]"),
        "one": ("A tree of things.", "section"),
        "one.width": ("Sides in pixels.", "integer, required"),
        "one.height": ("Sides in pixels.", "integer, default 3"),
        "one.dtype": ("dtype of sums.", "one of a|b, default a"),
        "one.also": ("Further ones. A tree of things.", "list of sections, default []"),
        "many": ("By name; 50% | more. A tree of things.", "named sections, default []"),
        "many.NAME.width": ("Sides in pixels.", "integer, required"),
        "many.NAME.height": ("Sides in pixels.", "integer, default 3"),
        "many.NAME.dtype": ("dtype of sums.", "one of a|b, default a"),
        "many.NAME.also": ("Further ones. A tree of things.", "list of sections, default []"),
    }
    assert without_meaning(Outer) == ["silent", "words"]


@pytest.mark.parametrize(
    "kind, words",
    [
        (bool, "yes/no"),
        (PromptTemplate, "text with {caption} once"),
        (Annotated[float, Range("(0, inf)")] | None, "number above 0, and finite, or null"),
        (Annotated[float, Range("(-inf, inf)")], "number"),
        (str | tuple[str, ...], "text, or list of texts"),
        (tuple[Annotated[int, Range("[0, 9]")], ...], "list of integers in [0, 9]"),
        (tuple[Literal["q", "k"], ...], "list of q|k"),
        (Mapping[str, str], "named texts"),
        (Literal["main"] | None, "main or null"),
    ],
)
def test_types_in_words(kind: Any, words: str) -> None:
    assert kind_words(kind) == words


def test_forms_for_a_terminal_an_option_and_a_table() -> None:
    entries = [e for e in all_fields(Outer) if e.path in ("count", "one.also", "many")]
    assert fields_text(entries, 50) == (
        "  count  integer in [1, 8], or -1, default 2\n"
        "      Number of them, in all of the runs.\n"
        "\n"
        "  one.also  list of sections, default []\n"
        "      Further ones. A tree of things. Its fields\n"
        "      are those of one.\n"
        "\n"
        "  many  named sections, default []\n"
        "      By name; 50% | more. A tree of things."
    )
    # argparse formats an option's help with %.
    assert field_help(Outer)["many"].startswith("By name; 50%% | more.")
    assert fields_table(entries).splitlines()[2:] == [
        r"| `count` | integer in \[1, 8\], or -1 | `2` | Number of them, in all of the runs. |",
        "| `one.also` | list of sections | `[]` | Further ones. A tree of things. |",
        r"| `many` | named sections | `[]` | By name; 50% \| more. A tree of things. |",
    ]


def test_every_field_of_every_command_has_a_meaning() -> None:
    assert {name: without_meaning(schema) for name, schema in schemas().items()} == {
        name: [] for name in schemas()
    }


def test_the_page_is_what_the_code_makes() -> None:
    assert (ROOT / PAGE).read_text("utf-8") == reference_page(), (
        f"run: python -m gotr1_jax.jobs > {PAGE}"
    )


def test_schemas_are_those_of_the_jobs() -> None:
    for job, (module, schema, _) in JOBS.items():
        package = module.rpartition(".")[0]
        assert (job_schema(job).__name__, job_schema(job).__module__) == (
            schema, f"{package}.config"
        )  # fmt: skip


def help_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        cli.run([*words, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("job", JOBS)
def test_help_of_a_job_lists_its_fields(job, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = help_of(["train", job], capsys)
    assert text.startswith("usage: gotr1 train")
    assert max(map(len, text.splitlines())) <= 80
    for entry in all_fields(job_schema(job)):
        assert f"\n  {entry.path}  {entry.kind.split()[0]}" in text


def test_help_of_all_jobs_has_the_fields_of_each(capsys) -> None:
    text = help_of(["train"], capsys)
    assert text.count("\n  optimizer.beta1  ") == 1  # of all jobs alike
    assert text.count("\n  batch_size  ") == 3  # with a meaning for each
    for job in JOBS:
        assert all(f"\n  {entry.path}  " in text for entry in all_fields(job_schema(job)))


def test_help_does_not_wait_for_jax() -> None:
    code = (
        "import sys\nfrom gotr1_jax import cli\n"
        "for words in (['train', 'grpo'], ['train'], ['judge'], ['compile'], ['eval'], ['--x']):\n"
        "    try: cli.run([*words, '--help'])\n"
        "    except SystemExit: pass\n"
        "    assert 'jax' not in sys.modules, words\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
