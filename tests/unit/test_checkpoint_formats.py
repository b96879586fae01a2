"""Files and folders that are no checkpoint are named for what they are; headers are strict."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save

from gotr1_jax.convert.folders import describe_names, read_config
from gotr1_jax.convert.reader import STORED_DTYPES, open_tensors
from gotr1_jax.convert.torch_file import read_state
from gotr1_jax.errors import InputError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab" * 32 + "\nsize 417\n"


def packed(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(begin: Any = 0, end: Any = 8, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refused(file: Path) -> str:
    """The line with which a file is refused."""
    with pytest.raises(InputError) as error:
        open_tensors(file.parent)
    line = str(error.value)
    assert "\n" not in line and str(file.parent) in line
    return line


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry(), "b": entry(4, 12)}, 12, "overlaps"),
        ({"a": entry(), "b": entry(0, 8)}, 8, "overlaps"),
        ({"a": entry(), "b": entry(12, 20)}, 20, "gap"),
        ({"a": entry(4, 12)}, 12, "gap"),
        ({"a": entry()}, 12, "4 bytes belong to no tensor"),
        ({"a": entry()}, 4, "truncated"),
        ({"a": entry(shape=[2.0])}, 8, "bad entry"),
        ({"a": entry(shape=["2"])}, 8, "bad entry"),
        ({"a": entry(shape=[True, 2])}, 8, "bad entry"),
        ({"a": entry(shape=[-1, -2])}, 8, "bad entry"),
        ({"a": entry(shape="2")}, 8, "bad entry"),
        ({"a": entry(shape=[0, 10**30])}, 8, "impossible shape"),
        ({"a": entry(0.0, 8.0)}, 8, "bad entry"),
        ({"a": entry("0", "8")}, 8, "bad entry"),
        ({"a": entry(8, 0)}, 8, "bad extent"),
        ({"a": entry(dtype="F31")}, 8, "unknown to safetensors"),
        ({"a": entry(dtype=32)}, 8, "bad entry"),
        ({"a": 3}, 8, "bad entry"),
        ({"a\nb": entry()}, 8, "tensor name"),
        ({"a": entry(), "__metadata__": [1]}, 8, "__metadata__"),
        ({"a": entry(), "__metadata__": {"format": "mlx"}}, 8, "layout of MLX"),
        ([1, 2], 8, "not a JSON object"),
        (b'{"a": {"dtype": "F32", "shape": [NaN]}}', 8, "not JSON"),
        (b'{"a":' * 50_000, 8, "not JSON"),
        (b'{"a": 1' + b"0" * 9000 + b"}", 8, "not JSON"),
        (b'{"a": {}, "a": {}}', 8, "a is stored twice"),
        ("\ufeff{}".encode("utf-16"), 8, "not JSON"),
    ],
)
def test_headers_that_are_wrong(tmp_path: Path, header: Any, data: int, message: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(packed(header, bytes(data)))
    assert message in refused(file)


def test_what_is_read_is_what_the_reference_reads(tmp_path: Path) -> None:
    """Headers changed at random: whatever is accepted, the reference accepts with equal values."""
    rng = random.Random(0)
    arrays = {n: np.arange(s, dtype=k) for n, s, k in (("a", 6, "<f4"), ("b", 4, "<i2"))}
    arrays["c"] = np.zeros((0, 3), np.float32)
    whole, file, accepted = save(arrays), tmp_path / "model.safetensors", 0
    length = int.from_bytes(whole[:8], "little")
    for _ in range(1500):
        data = bytearray(whole)
        for _ in range(rng.choice((0, 1, 1, 2))):
            data[rng.randrange(8, 8 + length)] = rng.choice(b'0123456789[]{}:,". FIU-eE')
        file.write_bytes(data)
        try:
            tensors = open_tensors(tmp_path)
        except InputError as error:
            assert "\n" not in str(error)
            continue
        accepted += 1
        with safe_open(file, "numpy") as reference:
            assert set(reference.keys()) == set(tensors)
            for name, tensor in tensors.items():
                if tensor.dtype in STORED_DTYPES:
                    np.testing.assert_array_equal(tensor.read(), reference.get_tensor(name))
    assert accepted > 300


@pytest.mark.parametrize("name", ["../x.safetensors", "..", "/etc/passwd", "a/b.bin", "x" * 300])
def test_an_index_names_files_of_its_folder(tmp_path: Path, name: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    assert "not a readable index" in refused(index)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, "Git LFS"),
        ("<!DOCTYPE html><html>401</html>", "an HTML page"),
        ('<?xml version="1.0"?><Error>AccessDenied</Error>', "an XML message"),
        ("Entry not found", "text that begins with 'Entry not found'"),
        ("x" + "é" * 400, "text that begins with 'xéé"),
        ("", "is empty"),
        ("GGUF\x03\x00\x00\x00\x00\x00\x00\x00\x00", "GGUF"),
        ("\x00" * 600, "zero bytes|no safetensors"),
    ],
)
def test_files_that_are_no_weights(tmp_path: Path, name: str, content: str, message: str) -> None:
    pytest.importorskip("torch")
    (tmp_path / name).write_text(content)
    assert any(part in refused(tmp_path / name) for part in message.split("|"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adapter_model.safetensors", "an adapter of peft"),
        ("janus-q4_k_m.gguf", "llama.cpp"),
        ("quantize_config.json", "GPTQ"),
        ("quant_config.json", "AWQ"),
        ("zero_to_fp32.py", "DeepSpeed"),
        ("__0_0.distcp", "FSDP"),
        ("model_world_size_8_rank_0.pt", "verl"),
        ("_CHECKPOINT_METADATA", "Orbax"),
        ("model.onnx", "ONNX"),
        ("weights.npz", "MLX"),
        ("tf_model.h5", "TensorFlow"),
        ("consolidated.00.pth", "author's own names"),
        ("model_index.json", "diffusers"),
        ("model.safetensors.incomplete", "not finished"),
        ("snapshots", "hub's cache"),
        ("janus.safetensors", "rename it"),
    ],
)
def test_folders_of_other_tools(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"{}")
    for read in (read_config, open_tensors):
        with pytest.raises(InputError, match=message) as error:
            read(tmp_path)
        assert "\n" not in str(error.value)


def test_an_adapter_beside_weights_is_not_left_out(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(save({"a": np.zeros(2, np.float32)}))
    assert list(open_tensors(tmp_path)) == ["a"]
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    with pytest.raises(InputError, match="beside complete weights.*'org/base'"):
        open_tensors(tmp_path)


def test_a_checkpoint_one_level_below_is_named(tmp_path: Path) -> None:
    for step in (9, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="give .*checkpoint-100"):
        read_config(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        read_config(tmp_path / "checkpoint-9" / "config.json")


def test_names_of_tensors_tell_their_origin() -> None:
    for name, message in (
        ("base_model.model.x.lora_A.weight", "adapters of peft"),
        ("model.layers.0.q_proj.qweight", "GPTQ"),
        ("model.layers.0.q_proj.weight.absmax", "bitsandbytes"),
        ("model.layers.0.q_proj.weight_scale_inv", "FP8"),
        ("module.lm_head.weight", "DistributedDataParallel"),
        ("_orig_mod.lm_head.weight", "torch.compile"),
    ):
        assert message in str(describe_names([name]))
    assert describe_names(["lm_head.weight"]) is None


def test_files_of_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(2, dtype=torch.bfloat16)}
    file = tmp_path / "pytorch_model.bin"
    for zipped in (True, False):
        torch.save(state, file, _use_new_zipfile_serialization=zipped)
        tensors = open_tensors(tmp_path)
        np.testing.assert_array_equal(tensors["a"].read(), state["a"].numpy())
        assert tensors["b"].dtype == "BF16" and tensors["b"].read()[0] == 1

    class Code:
        def __reduce__(self) -> Any:
            return print, ("run",)

    for content, message in (
        ({"a": torch.zeros(2, device="meta")}, "is a meta tensor"),
        ({"a": torch.eye(3).to_sparse()}, "is sparse"),
        ({"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, "is quantised"),
        ({"state_dict": {"a": torch.zeros(2)}}, "under its key 'state_dict'"),
        ({"a": 3}, "a is a int"),
        ([torch.zeros(2)], "but a list"),
        ({"a": Code()}, "holds more than tensors"),
        (torch.nn.Linear(2, 2), "holds more than tensors"),
    ):
        torch.save(content, file)
        assert message in refused(file)
    torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.zeros(2)), str(file))
    assert "TorchScript" in refused(file)
    with pytest.raises(InputError, match="TorchScript"):
        read_state(file)
