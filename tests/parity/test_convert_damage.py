"""Damaged and foreign checkpoints: each is refused with one line that names the fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny import assert_equal_trees
from tiny_checkpoints import TINY

from gotr1_jax.convert.checkpoint import load_checkpoint
from gotr1_jax.errors import InputError


def edit_tensors(path: Path, change: Any) -> None:
    stored = load_file(path / "model.safetensors")
    change(stored)
    save_file(stored, path / "model.safetensors")


def test_unknown_missing_and_misshapen_tensors_are_named(copy: Path) -> None:
    def change(stored: dict[str, np.ndarray]) -> None:
        stored["language_model.extra"] = np.zeros(3, np.float32)
        del stored["gen_embed.weight"]
        stored["language_model.model.norm.weight"] = np.zeros(31, np.float32)

    edit_tensors(copy, change)
    with pytest.raises(InputError) as error:
        load_checkpoint(copy)
    line = str(error.value)
    assert "\n" not in line
    assert "1 unknown: language_model.extra (in model.safetensors)" in line
    assert "1 missing: gen_embed.weight [64, 8]" in line
    assert "language_model.model.norm.weight is [31], expected [32] (in model.safetensors)" in line


def test_known_unused_tensors_are_skipped(copy: Path) -> None:
    names = (
        "gen_vision_model.quantize.codebook_used",
        "vision_model.vision_tower.attn_pool.q.bias",
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
    )
    edit_tensors(copy, lambda stored: stored.update({n: np.zeros(2, np.float32) for n in names}))
    assert load_checkpoint(copy).skipped == tuple(sorted(names))


def shard(path: Path, second: list[str]) -> None:
    """Splits model.safetensors in two, `second` in the second, with an index."""
    stored = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    files = {n: f"model-0000{1 + (n in second)}-of-00002.safetensors" for n in stored}
    for file in set(files.values()):
        save_file({n: stored[n] for n in stored if files[n] == file}, path / file)
    index = {"metadata": {}, "weight_map": files}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_and_their_faults(copy: Path, tiny: Path) -> None:
    shard(copy, ["gen_embed.weight"])
    assert_equal_trees(load_checkpoint(copy).policy, load_checkpoint(tiny).policy)
    second = copy / "model-00002-of-00002.safetensors"
    whole = second.read_bytes()
    doubled = {n: np.zeros((64, 8), np.float32) for n in ("gen_embed.weight",)}
    doubled["language_model.model.norm.weight"] = np.zeros(32, np.float32)
    save_file(doubled, second)
    with pytest.raises(InputError, match="language_model.model.norm.weight is stored twice"):
        load_checkpoint(copy)
    second.write_bytes(whole[:-7])
    with pytest.raises(InputError, match="model-00002-of-00002.safetensors is truncated"):
        load_checkpoint(copy)
    second.unlink()
    with pytest.raises(InputError, match="missing: model-00002-of-00002.safetensors"):
        load_checkpoint(copy)


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 64, b"\x08" + bytes(7) + b"{[[[[[[["])
def test_corrupt_safetensors(copy: Path, content: bytes) -> None:
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="model.safetensors is (truncated|corrupt)"):
        load_checkpoint(copy)


def test_truncated_pickle(copy: Path) -> None:
    torch = pytest.importorskip("torch")
    state = {n: torch.from_numpy(a) for n, a in load_file(copy / "model.safetensors").items()}
    (copy / "model.safetensors").unlink()
    file = copy / "pytorch_model.bin"
    torch.save(state, file)
    assert load_checkpoint(copy).config == TINY
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(InputError, match="pytorch_model.bin is truncated or corrupt") as error:
        load_checkpoint(copy)
    assert "\n" not in str(error.value)


def test_integer_weights_are_refused(copy: Path) -> None:
    def change(stored: dict[str, np.ndarray]) -> None:
        stored["gen_embed.weight"] = stored["gen_embed.weight"].astype(np.int8)

    edit_tensors(copy, change)
    with pytest.raises(InputError, match="gen_embed.weight has dtype I8"):
        load_checkpoint(copy)


def edit_config(path: Path, change: Any) -> None:
    data = json.loads((path / "config.json").read_text())
    change(data)
    (path / "config.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(model_type="qwen2"), "model of type 'qwen2'"),
        (lambda c: c.pop("language_config"), "section language_config is missing"),
        (lambda c: c["language_config"].update(hidden_size="x"), "config.json: "),
        (lambda c: c["language_config"].update(hidden_act="gelu"), "hidden_act is 'gelu'"),
        (
            lambda c: c["language_config"].update(rope_scaling={"type": "linear"}),
            "rotary embedding of type 'linear'",
        ),
        (lambda c: c["gen_vision_config"]["params"].update(q=1), "unknown key q"),
        (lambda c: c["gen_head_config"]["params"].update(n_embed=5), "n_embed is 5; 32 is needed"),
        (lambda c: c["language_config"].update(vocab_size=300), "300 embedding rows"),
    ],
)
def test_config_of_another_model(copy: Path, change: Any, message: str) -> None:
    edit_config(copy, change)
    with pytest.raises(InputError, match=message):
        load_checkpoint(copy)


def test_no_checkpoint_at_all(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        load_checkpoint(tmp_path / "nothing")
    with pytest.raises(InputError, match="holds no config.json"):
        load_checkpoint(tmp_path)
    (copy / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no weights in"):
        load_checkpoint(copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json is not JSON"):
        load_checkpoint(copy)
