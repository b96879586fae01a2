"""Completion in bash and zsh, by the scripts that `gotr1 --completion` prints."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from gotr1_jax import cli
from gotr1_jax.completion import completion_script
from gotr1_jax.config_reference import all_fields
from gotr1_jax.io.strict_yaml import SHIPPED
from gotr1_jax.jobs import job_schema


@pytest.fixture(scope="module")
def parser():
    return cli.build_parser()


@pytest.fixture(scope="module")
def bash(parser, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "gotr1.bash"
    path.write_text(completion_script(parser, "bash"))
    return path


def complete(script: Path, *words: str) -> list[str]:
    """What bash offers for the last of `words`, by the function that the script registers."""
    code = (
        'source "$0"; function=$(complete -p gotr1 | sed "s/.*-F \\([^ ]*\\).*/\\1/")\n'
        'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); $function; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", code, str(script), *words],
        capture_output=True, text=True, check=True, cwd=script.parent,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    "line, offered",
    [
        ("gotr1 t", ["train", "tokenize-images"]),
        ("gotr1 train gr", ["grpo"]),
        ("gotr1 eval given", ["given_plans"]),
        ("gotr1 train grpo --policy.d", ["--policy.dtype"]),
        ("gotr1 train grpo --policy.dtype ", ["float32", "bfloat16"]),
        ("gotr1 train grpo --checkpoint.keep_best = y", ["yes"]),
        ("gotr1 train sft --seed 3 --data.pl", ["--data.plans"]),
        ("gotr1 train sft --seed ", []),  # any value: no words
        ("gotr1 train grpo --config gotr1_7b_s", ["gotr1_7b_sft"]),
        ("gotr1 train grpo --config gotr1.b", ["gotr1.bash"]),  # a file
        ("gotr1 compile --json --policy-size ", ["1b", "7b"]),
        ("gotr1 compile --mesh.te", ["--mesh.tensor"]),
        ("gotr1 judge --judge.ki", ["--judge.kind"]),
        ("gotr1 judge --input train --judge.ki", ["--judge.kind"]),  # a file called train
        ("gotr1 --completion ", ["bash", "zsh"]),
        ("gotr1 --v", ["--version"]),
    ],
)
def test_bash_completes(bash, line, offered) -> None:
    assert complete(bash, *line.split(" ")) == offered


def test_bash_offers_every_field_and_every_shipped_configuration(bash) -> None:
    fields = {f"--{e.path}" for e in all_fields(job_schema("grpo")) if e.section is None}
    single = {field for field in fields if "NAME" not in field and "[]" not in field}
    assert single == set(complete(bash, "gotr1", "train", "grpo", "--")) - {"--help", "--config"}
    shipped = {file.stem for folder in SHIPPED for file in folder.glob("*.yaml")}
    assert shipped <= set(complete(bash, "gotr1", "ablate", "--config", ""))


def test_the_command_prints_it(bash, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run(["--completion", "bash"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == bash.read_text()


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_reads_the_script(parser, tmp_path) -> None:
    path = tmp_path / "gotr1.zsh"
    path.write_text(completion_script(parser, "zsh"))
    code = (
        "compdef() { }; _files() { print files }; compadd() { shift; print -l -- $@ }\n"
        'source $0; words=("$@"); CURRENT=$#; _gotr1'
    )
    for words, offered in [
        ("gotr1 eval g", "geneval"),
        ("gotr1 compile --policy-size ", "1b\n7b"),
        ("gotr1 judge --out ", "files"),
    ]:
        done = subprocess.run(
            ["zsh", "-f", "-c", code, str(path), *words.split(" ")],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert f"\n{offered}\n" in f"\n{done.stdout}"
