"""`gotr1 convert` on the judges' checkpoints."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_clip import write_tiny_clip
from tiny_qwen import write_tiny_qwen

from gotr1_jax import cli
from gotr1_jax.convert.clip import load_clip
from gotr1_jax.convert.qwen_vl import load_qwen

pytestmark = pytest.mark.usefixtures("devices_as_they_are")


def test_qwen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_tiny_qwen(tmp_path / "qwen")
    command = ["convert", "--from", str(source), "--to", str(tmp_path / "out")]
    assert cli.run([*command, "--shard-size", "20KB"]) == 0
    assert "Qwen2.5-VL in" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()
    jax.tree.map(
        np.testing.assert_array_equal, load_qwen(source).state, load_qwen(tmp_path / "out").state
    )


def test_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_tiny_clip(tmp_path / "clip")
    command = ["convert", "--from", str(source), "--to", str(tmp_path / "out")]
    assert cli.run([*command, "--dtype", "float32"]) == 0
    assert "transformers.CLIPModel" in capsys.readouterr().out
    jax.tree.map(
        np.testing.assert_array_equal, load_clip(source).state, load_clip(tmp_path / "out").state
    )


def test_a_pickle_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "HPS_v2.1_compressed.pt").write_bytes(b"nothing")
    command = ["convert", "--from", str(tmp_path / "HPS_v2.1_compressed.pt")]
    assert cli.run([*command, "--to", str(tmp_path / "out")]) == 2
    assert "truncated or corrupt" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
