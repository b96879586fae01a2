"""YAML without surprises: what words are, and what is refused with its line."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from gotr1_jax.errors import InputError
from gotr1_jax.io.strict_yaml import PlainScalar, parse_word, read_yaml, read_yaml_file


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("010", 10), ("0o10", 8), ("0x1F", 31), ("-3", -3), ("10_000", 10000), ("1e-5", 1e-5),
        ("1E5", 1e5), (".5", 0.5), ("1.", 1.0), ("-.inf", -math.inf), ("TRUE", True), ("~", None),
        ("NULL", None), ("1:30", "1:30"), ("on", "on"), ("yes", "yes"), ("tRUE", "tRUE"),
        ("2024-01-01", "2024-01-01"), ("1_0.5", "1_0.5"), ("0b1", "0b1"), ("--1", "--1"),
    ],
)  # fmt: skip
def test_words_of_the_core_schema(word: str, value: object) -> None:
    found = parse_word(word)
    assert found == value and type(found) is type(value)


def test_values_are_words_until_a_schema_reads_them() -> None:
    text = "a: 010\nb: [on, 'on', null, ~]\nc: &c {d: 1:30}\ne: {<<: *c, f: !!str 2}\n3: !!int 4\n"
    values = read_yaml(text, "file")
    assert values == {
        "a": "010", "b": ["on", "on", None, None], "c": {"d": "1:30"},
        "e": {"d": "1:30", "f": "2"}, "3": "4",
    }  # fmt: skip
    assert [type(item) for item in values["b"]] == [PlainScalar, str, type(None), type(None)]
    assert read_yaml("# nothing\n", "file") is None


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdef", "bcdefg")
)
MERGES = "a: &a {x: 1, y: 2}\n" + "".join(
    f"{b}: &{b} {{<<: [{','.join([f'*{a}'] * 10)}]}}\n" for a, b in zip("abcdef", "bcdefg")
)
CHAIN = "a0: &a0 [1]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}]\n" for i in range(3000))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' stands in line 1 already"),
        ("s:\n  x: 1\nt: 1\ns:\n  y: 1", "line 4: the key 's' stands in line 1 already"),
        ("s: {x: 1, 'x': 2}", "line 1: the key 'x' stands in line 1 already"),
        (BOMB, "over 100000 values"),
        (MERGES, "over 100000 values"),
        (CHAIN, "or 50 levels"),
        ("&a [*a]", "line 1: a value that contains itself"),
        ("[" * 5000, "line 1: more than 50 levels"),
        ("a:\n" + "".join(" " * i + "- \n" for i in range(200)), "not valid YAML"),
        ("a: !!python/object:os.system {}", "line 1: could not determine a constructor"),
        ("a: !!timestamp 2024-01-01", "line 1: could not determine a constructor"),
        ("a: !!int [1]", "line 1: expected a scalar node"),
        ("? {a: 1}\n: 2", "line 1: a key must be a word"),
        ("a: [1", "line 1: expected ',' or ']'"),
        ("a\nb: c", "line 2: mapping values are not allowed here"),
        ("a: 1\n---\nb: 2", "line 2: but found another document"),
        ("a: \x00", "unacceptable character"),
        ("a: *b", "line 1: found undefined alias 'b'"),
        ("a: " + "x" * 2_000_000, "2000003 characters"),
    ],
)
def test_refused_with_the_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match="^the file ") as caught:
        read_yaml(text, "the file")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_files_are_read_through_the_guard(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\n")
    assert read_yaml_file(tmp_path / "good.yaml") == {"a": "1"}
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "nothing", "a\0b"):
        with pytest.raises(InputError, match="cannot read configuration"):
            read_yaml_file(tmp_path / name)
