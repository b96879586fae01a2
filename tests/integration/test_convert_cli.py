"""`gotr1 convert` and `gotr1 export` as commands: bad input, damage, full disks; one line each."""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_checkpoints import PORTABLE, write_tiny

from gotr1_jax.convert import command as convert_checkpoint
from gotr1_jax.convert import writer
from gotr1_jax.errors import GotR1Error, InputError, RunError
from gotr1_jax.grpo import export as export_checkpoint

Damage = Callable[[Path], Any]


def convert(source: Path | str, target: Path, *more: str) -> None:
    parser = argparse.ArgumentParser()
    convert_checkpoint.add_arguments(parser)
    convert_checkpoint.run(parser.parse_args(["--from", str(source), "--to", str(target), *more]))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "ckpt", PORTABLE)


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny, tmp_path / "in")
    return tmp_path / "in"


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def edit_tensors(path: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    stored = load_file(path / "model.safetensors")
    change(stored)
    save_file(stored, path / "model.safetensors")


def rename_token(path: Path) -> None:
    text = (path / "tokenizer.json").read_text()
    (path / "tokenizer.json").write_text(text.replace("<begin_of_image>", "<begin_of_picture>"))


def cut(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "config.json").unlink(), "holds no config.json"),
        (lambda p: shutil.rmtree(p), "there is no such directory"),
        (lambda p: edit_json(p / "config.json", lambda c: c.update(model_type="llama")), "of type 'llama'"),  # noqa: E501
        (rename_token, "lacks the special token <begin_of_image>"),
        (lambda p: (p / "tokenizer.json").unlink(), "tokenizer.json cannot be read"),
        (
            lambda p: (p / "generation_config.json").write_text('{"top_p": 2}'),
            "generation_config.json: top_p is 2.0",
        ),
        (cut, "model.safetensors is truncated"),
        (lambda p: (p / "model.safetensors").write_bytes(b"{"), "truncated or no safetensors"),
        (lambda p: (p / "model.safetensors").unlink(), "no weights in"),
        (
            lambda p: edit_tensors(p, lambda t: t.update(stray=np.zeros(2, np.float32))),
            r"1 unknown: stray \(in model.safetensors\)",
        ),
        (
            lambda p: edit_tensors(p, lambda t: t.pop("gen_embed.weight")),
            r"1 missing: gen_embed.weight \[64, 8\]",
        ),
        (
            lambda p: edit_tensors(p, lambda t: t.update({"gen_embed.weight": np.zeros((8, 64), np.float32)})),  # noqa: E501
            r"gen_embed.weight is \[8, 64\], expected \[64, 8\] \(in model.safetensors\)",
        ),
        (
            lambda p: edit_tensors(p, lambda t: t.update({"gen_embed.weight": np.zeros((64, 8), np.int32)})),  # noqa: E501
            "gen_embed.weight has dtype I32",
        ),
    ],
)  # fmt: skip
def test_bad_sources_are_one_line_and_leave_nothing(
    copy: Path, tmp_path: Path, damage: Damage, message: str
) -> None:
    damage(copy)
    with pytest.raises(InputError, match=message) as error:
        convert(copy, tmp_path / "out")
    assert "\n" not in str(error.value) and error.value.exit_code == 2
    assert {f.name for f in tmp_path.iterdir()} <= {"in"}


def test_bad_arguments(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--dtype int8 cannot be written; choose float32 or"):
        convert(tiny, tmp_path / "out", "--dtype", "int8")
    with pytest.raises(InputError, match="is not a size"):
        convert(tiny, tmp_path / "out", "--shard-size", "many")
    with pytest.raises(InputError, match="is the source itself"):
        convert(tiny, tiny)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no config.json"):
        convert(tiny, tmp_path / "work")
    with pytest.raises(InputError, match="is a file"):
        convert(tiny, tmp_path / "work" / "notes.txt")
    with pytest.raises(GotR1Error, match="cannot write .*notes.txt/out"):
        convert(tiny, tmp_path / "work" / "notes.txt" / "out")
    assert [f.name for f in (tmp_path / "work").iterdir()] == ["notes.txt"]


def test_a_part_that_is_not_there_is_named(copy: Path, tmp_path: Path) -> None:
    def drop(stored: dict[str, np.ndarray]) -> None:
        for name in [n for n in stored if n.startswith(("vision_model.", "aligner."))]:
            del stored[name]

    edit_tensors(copy, drop)
    convert(copy, tmp_path / "ours")
    parser = argparse.ArgumentParser()
    export_checkpoint.add_arguments(parser)
    words = ["--ckpt", str(copy), "--to", str(tmp_path / "hf"), "--format", "hf"]
    with pytest.raises(InputError, match="lacks the part understanding"):
        export_checkpoint.run(parser.parse_args(words))
    assert not (tmp_path / "hf").exists()


def test_a_disk_that_fills_half_way_leaves_nothing_and_a_rerun_works(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, count = writer._write_values, 0

    def failing(stream: Any, tensor: writer.OutTensor) -> None:
        nonlocal count
        count += 1
        if count == 30:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(stream, tensor)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "_write_values", failing)
        with pytest.raises(RunError, match="disk full: .*out was not written") as error:
            convert(tiny, tmp_path / "out")
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
    convert(tiny, tmp_path / "out")
    assert {f.name for f in tmp_path.iterdir()} == {"out"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written(tiny: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(RunError, match="cannot write .*locked/out: Permission denied"):
        convert(tiny, locked / "out")


def test_the_command_says_what_it_did(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "in")
    unused = "gen_vision_model.quantize.codebook_used"
    edit_tensors(tmp_path / "in", lambda t: t.update({unused: np.ones(4, np.float32)}))
    command = [sys.executable, "-m", "gotr1_jax.cli", "convert", "--from", str(tmp_path / "in")]
    done = subprocess.run(
        [*command, "--to", str(tmp_path / "out"), "--shard-size", "100KB"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.strip().splitlines()
    assert first == f"stored but used by nothing: {unused}"
    files = len(list((tmp_path / "out").glob("model-*.safetensors")))
    assert f"{tmp_path / 'out'}: " in last and f" MB in {files} files" in last and files > 1
    assert (
        unused
        in json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    )
