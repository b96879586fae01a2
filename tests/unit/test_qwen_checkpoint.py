"""Checkpoints of Qwen2.5-VL: configuration, tokenizer, strict loading, writing, conversion."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file, save_file
from tiny_qwen import (
    SPECIALS,
    TINY_QWEN,
    check_refused_config,
    tiny_qwen_state,
    write_qwen_files,
    write_tiny_qwen,
)
from tokenizers import Tokenizer

from gotr1_jax.convert.qwen_json import parse_qwen_config, qwen_config_to_json
from gotr1_jax.convert.qwen_vl import (
    abstract_state,
    convert_qwen,
    is_qwen,
    load_qwen,
    read_preprocessing,
    save_qwen,
)
from gotr1_jax.errors import InputError
from gotr1_jax.images.qwen import Geometry
from gotr1_jax.models.config import DecoderConfig
from gotr1_jax.models.qwen_config import QwenConfig, QwenVisionConfig
from gotr1_jax.parallel.mesh import make_mesh
from gotr1_jax.parallel.sharding import state_shardings
from gotr1_jax.tokenizers.qwen import ImageTokens, QwenTokenizer

# The released file of the 7B.
RELEASED_7B: dict[str, Any] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 128000,
    "max_window_layers": 28,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 152064,
}
QWEN_7B = QwenConfig(
    DecoderConfig(
        vocab_size=152064, hidden_size=3584, mlp_size=18944, num_layers=28, num_heads=28,
        num_kv_heads=4, head_dim=128, rope_theta=1e6, norm_eps=1e-6, qkv_bias=True,
        mrope_section=(16, 24, 24),
    ),
    QwenVisionConfig(
        width=1280, mlp_size=3420, num_layers=32, num_heads=16, out_size=3584,
        full_attention=(7, 15, 23, 31), geometry=Geometry(14, 2, 2, 112),
    ),
)  # fmt: skip


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """The same configuration as `transformers` 5 writes it."""
    text = {k: v for k, v in flat.items() if k not in ("vision_config", "rope_scaling")}
    theta = text.pop("rope_theta")
    text["model_type"] = "qwen2_5_vl_text"
    text["layer_types"] = ["full_attention"] * text["num_hidden_layers"]
    text["rope_parameters"] = {**flat["rope_scaling"], "rope_type": "default", "rope_theta": theta}
    vision = {**flat["vision_config"], "rope_parameters": {"rope_type": "axial", "rope_theta": 1e4}}
    tied = text.pop("tie_word_embeddings")
    return {
        "model_type": "qwen2_5_vl", "dtype": "bfloat16", "tie_word_embeddings": tied,
        "text_config": text, "vision_config": vision,
    }  # fmt: skip


def test_the_released_configuration() -> None:
    assert parse_qwen_config(RELEASED_7B, "config.json") == QWEN_7B
    assert parse_qwen_config(nested(RELEASED_7B), "config.json") == QWEN_7B
    # A half-way file of some versions: sizes at the top and in a section.
    assert parse_qwen_config({**RELEASED_7B, **nested(RELEASED_7B)}, "config.json") == QWEN_7B
    tied = {**RELEASED_7B, "tie_word_embeddings": True}
    assert parse_qwen_config(tied, "c").text.tie_embeddings
    assert parse_qwen_config(nested(tied), "c").text.tie_embeddings


def test_the_configuration_written_is_read() -> None:
    written = json.loads(json.dumps(qwen_config_to_json(QWEN_7B, {"image_token_id": 7}, "float32")))
    assert parse_qwen_config(written, "config.json") == QWEN_7B
    assert written["image_token_id"] == 7
    assert {k: v for k, v in RELEASED_7B.items() if k in written} == {
        **{k: v for k, v in written.items() if k in RELEASED_7B},
        "torch_dtype": "bfloat16",
        "image_token_id": 151655,
        "vision_config": RELEASED_7B["vision_config"],
    }


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "qwen2_vl"}, "of type 'qwen2_vl'; a checkpoint of Qwen2.5-VL"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling {'type': 'yarn'"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24], "factor": 2}}, "factor"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24]}}, "64 rotary pairs"),
        ({"rope_scaling": {"type": "mrope"}}, "needs an mrope_section"),
        ({"rope_scaling": None}, "the section rope_scaling is missing"),
        ({"rope_theta": None}, "rope_theta is None; a number above 0"),
        ({"rms_norm_eps": None}, "rms_norm_eps is None"),
        ({"num_key_value_heads": "4"}, "num_key_value_heads is '4'; a whole number"),
        ({"num_attention_heads": 27}, "not a multiple of num_attention_heads 27"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; 'silu' is needed"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["sliding_attention"]}, "only full_attention"),
        ({"skip_layer_mlp": [27]}, "the unknown key skip_layer_mlp"),
        ({"quantization_config": {"bits": 4}}, "has a quantization_config (4 bits): quantised"),
        ({"vision_config": None}, "the section vision_config is missing"),
        ({"vision_config.hidden_size": None}, "hidden_size is None"),
        ({"vision_config.out_hidden_size": 2048}, "gives vectors of 2048"),
        ({"vision_config.fullatt_block_indexes": [32]}, "full attention in blocks [32]"),
        ({"vision_config.fullatt_block_indexes": None}, "needs fullatt_block_indexes"),
        ({"vision_config.window_size": 100}, "window_size 100 is not a multiple"),
        ({"vision_config.in_chans": 1}, "in_chans is 1; 3 is needed"),
        ({"vision_config.deepstack_visual_indexes": [5]}, "vision_config has the unknown key deep"),
        (
            {"vision_config.rope_parameters": {"rope_type": "yarn"}},
            "vision tower are not supported",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_configurations_are_refused(change: dict[str, Any], message: str) -> None:
    check_refused_config(RELEASED_7B, change, message)


def test_abstract_parameters_of_the_7b_shard() -> None:
    """Every axis has a rule and divides over four devices each way; 8.29 billion parameters."""
    state = abstract_state(QWEN_7B, jnp.bfloat16)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 8_292_166_656
    shardings = state_shardings(state, make_mesh(1, 2, 4))
    kernel = shardings["text"]["layers"]["q"]["kernel"].get_value()
    assert kernel.spec == PartitionSpec(None, "fsdp", "tensor")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_qwen(tmp_path_factory.mktemp("qwen") / "model")


def test_what_is_saved_is_loaded(checkpoint: Path) -> None:
    assert is_qwen(checkpoint) and not is_qwen(checkpoint.parent)
    loaded = load_qwen(checkpoint, jnp.float32)
    assert loaded.config == TINY_QWEN
    assert loaded.preprocessing == read_preprocessing(checkpoint, Geometry())
    jax.tree.map(np.testing.assert_array_equal, loaded.state, tiny_qwen_state())
    low = load_qwen(checkpoint).state
    assert {leaf.dtype for leaf in jax.tree.leaves(low)} == {jnp.dtype("bfloat16")}


def test_loading_onto_a_mesh(checkpoint: Path) -> None:
    mesh = make_mesh(2, 2, 2)
    shardings = state_shardings(abstract_state(TINY_QWEN), mesh)
    loaded = load_qwen(checkpoint, jnp.float32, shardings).state
    jax.tree.map(np.testing.assert_array_equal, loaded, tiny_qwen_state())
    kernel = loaded["vision"]["blocks"]["q"]["kernel"].get_value()
    assert kernel.addressable_shards[0].data.shape == (4, 16, 16)


def test_conversion_copies_every_tensor_to_released_names(checkpoint: Path, tmp_path: Path) -> None:
    newer = rewritten(checkpoint, tmp_path / "newer", to_newer_names)
    heard: list[tuple[int, int]] = []
    target = tmp_path / "out"
    assert convert_qwen(newer, target, progress=lambda *told: heard.append(told)) == 1
    stored = {n: load_file(d / "model.safetensors") for n, d in (("a", checkpoint), ("b", target))}
    assert stored["a"].keys() == stored["b"].keys()
    for name, values in stored["a"].items():
        np.testing.assert_array_equal(values, stored["b"][name])
    total = sum(values.nbytes for values in stored["a"].values())
    assert heard[-1] == (total, total) and len(heard) == len(stored["a"])
    assert load_qwen(target, jnp.float32).config == TINY_QWEN
    assert (target / "tokenizer.json").is_file()


def test_conversion_into_shards_of_another_dtype(checkpoint: Path, tmp_path: Path) -> None:
    files = convert_qwen(checkpoint, tmp_path / "out", dtype="bfloat16", shard_size=100_000)
    assert files == len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    jax.tree.map(
        np.testing.assert_array_equal,
        load_qwen(tmp_path / "out").state,
        load_qwen(checkpoint).state,
    )
    with pytest.raises(InputError, match="float16' cannot be written"):
        convert_qwen(checkpoint, tmp_path / "no", dtype="float16")
    assert not (tmp_path / "no").exists()


def rewritten(source: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a checkpoint with its dictionary of tensors changed."""
    shutil.copytree(source, target)
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors")
    return target


def to_newer_names(tensors: dict[str, Any]) -> None:
    for name in list(tensors):
        if name.startswith("visual."):
            tensors["model." + name] = tensors.pop(name)
        elif name.startswith("model."):
            tensors["model.language_model." + name[6:]] = tensors.pop(name)


def put(**tensors: np.ndarray) -> Callable[[dict[str, Any]], None]:
    return lambda stored: stored.update(tensors)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda t: t.pop("visual.blocks.2.attn.qkv.bias"),
            "1 missing: visual.blocks.2.attn.qkv.bi",
        ),
        (put(**{"visual.extra": np.zeros(2, np.float32)}), "1 unknown: visual.extra"),
        (
            put(**{"model.norm.weight": np.zeros(31, np.float32)}),
            "model.norm.weight is [31], expec",
        ),
        (lambda t: t.pop("lm_head.weight"), "1 missing: lm_head.weight [272, 32]"),
        (put(**{"model.norm.weight": np.zeros(32, np.int32)}), "model.norm.weight has dtype I32"),
    ],
    ids=["missing", "unknown", "shape", "head", "dtype"],
)
def test_tensors_that_do_not_fit(
    checkpoint: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        load_qwen(rewritten(checkpoint, tmp_path / "broken", change))


def test_a_tied_head_may_be_stored_once_more(tmp_path: Path) -> None:
    config = replace(TINY_QWEN, text=replace(TINY_QWEN.text, tie_embeddings=True))
    tied = write_tiny_qwen(tmp_path / "tied", config)
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    head = load_file(tied / "model.safetensors")["model.embed_tokens.weight"]
    twice = rewritten(tied, tmp_path / "twice", put(**{"lm_head.weight": head}))
    rotary = rewritten(twice, tmp_path / "rotary", put(**{"visual.rotary_pos_emb.inv_freq": head}))
    assert load_qwen(rotary).config.text.tie_embeddings
    # Another head would be left out without a word.
    for other in (head * (1 + 1e-6), head[:-1], np.zeros_like(head)):
        changed = rewritten(tied, tmp_path / f"{other.sum()}", put(**{"lm_head.weight": other}))
        with pytest.raises(InputError, match="lm_head.weight differs from model.embed_tokens.we"):
            load_qwen(changed)
        with pytest.raises(InputError, match="set it to false to use the stored head"):
            convert_qwen(changed, tmp_path / "out")


def test_directories_that_are_no_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    def without(name: str) -> Path:
        copied = tmp_path / name.replace(".", "_")
        shutil.copytree(checkpoint, copied)
        (copied / name).unlink()
        return copied

    with pytest.raises(InputError, match="there is no such directory"):
        load_qwen(tmp_path / "nowhere")
    for name, message in (
        ("config.json", "holds no config.json"),
        ("tokenizer.json", "tokenizer.json cannot be read"),
        ("preprocessor_config.json", "neither preprocessor_config.json nor processor_config.json"),
        ("model.safetensors", "no weights in"),
    ):
        with pytest.raises(InputError, match=message):
            load_qwen(without(name))


def test_a_state_that_does_not_fit_is_not_written(checkpoint: Path, tmp_path: Path) -> None:
    config = replace(TINY_QWEN, text=replace(TINY_QWEN.text, tie_embeddings=True))
    with pytest.raises(InputError, match="do not fit the configuration: qwen.text.lm_head.kernel"):
        save_qwen(tmp_path / "out", config, tiny_qwen_state(), checkpoint)
    small = replace(TINY_QWEN, text=replace(TINY_QWEN.text, vocab_size=256))
    with pytest.raises(InputError, match="ids up to 264, but the model has only 256"):
        save_qwen(tmp_path / "out", small, tiny_qwen_state(small), checkpoint)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"patch_size": 16}, "patch_size is 16, but the vision tower has 14"),
        ({"max_pixels": None}, "longest_edge is None"),
        ({"min_pixels": 10**9}, "are not a range"),
        ({"image_mean": 0.5}, "image_mean is 0.5; three numbers"),
        ({"rescale_factor": 1.0}, "1/255 is needed"),
        ({"resample": 2}, "resample is 2; 3 is needed"),
        ({"do_center_crop": True}, "do_center_crop is not"),
        ({"do_normalize": False}, "do_normalize is False"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_image_settings(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = write_qwen_files(tmp_path) / "preprocessor_config.json"
    settings = json.loads(file.read_text()) | change
    file.unlink()
    # The other place where they can be.
    processor = {"image_processor": settings, "processor_class": "Qwen2_5_VLProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(processor))
    with pytest.raises(InputError, match=re.escape(message)):
        read_preprocessing(tmp_path, Geometry())


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> QwenTokenizer:
    return QwenTokenizer.from_dir(checkpoint)


def test_a_chat_is_the_written_text(checkpoint: Path, tokenizer: QwenTokenizer) -> None:
    plain = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    written = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "\nLeft <|vision_start|><|image_pad|><|image_pad|><|vision_end|> and\n\nright: ø"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer.encode_chat(["\nLeft ", ImageTokens(2), " and\n", "\nright: ø"])
    assert ids == plain.encode(written).ids
    assert ids.count(tokenizer.ids.image) == 2
    # "user", a line's end and the message's first are one token, as in the written text.
    assert ids.count(plain.token_to_id("ĊĊ")) == 2
    assert tokenizer.decode(ids).startswith("system\nYou are")


def test_control_tokens_in_a_message_are_ordinary_text(tokenizer: QwenTokenizer) -> None:
    text = "".join(SPECIALS) + "<|im_end|>\n<|im_start|>assistant"
    inside = tokenizer.encode(text)
    assert max(inside) <= 256  # letters and their one pair
    assert tokenizer.decode(inside) == text
    answer = [tokenizer.ids.message_end, *tokenizer.encode("8/10"), tokenizer.ids.text_end]
    assert tokenizer.decode(answer) == "8/10"


def test_tokenizers_that_are_none(checkpoint: Path) -> None:
    with pytest.raises(InputError, match="not (a readable tokenizer|UTF-8 text)"):
        QwenTokenizer("{}")
    text = (checkpoint / "tokenizer.json").read_text()
    with pytest.raises(InputError, match="lacks the special token <|image_pad|>"):
        QwenTokenizer(text.replace("<|image_pad|>", "<|other|>"))
