"""Checkpoints of Qwen3-VL: configuration, sizes, loading, conversion, chats, the engine's frame."""

from __future__ import annotations

import copy
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jinja2
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_qwen import TINY_QWEN3, check_refused_config, tiny_qwen_state, write_tiny_qwen
from tokenizers import Tokenizer

from gotr1_jax.convert.qwen_json import parse_qwen_config, qwen_config_to_json
from gotr1_jax.convert.qwen_vl import abstract_state, convert_qwen, is_qwen, load_qwen
from gotr1_jax.errors import ConfigError, InputError
from gotr1_jax.models.qwen_config import (
    QWEN3_VL_2B,
    QWEN3_VL_4B,
    QWEN3_VL_8B,
    QWEN3_VL_32B,
    QwenConfig,
)
from gotr1_jax.parallel.mesh import make_mesh
from gotr1_jax.parallel.sharding import state_shardings
from gotr1_jax.rewards.multimodal.words import yes_or_no
from gotr1_jax.tokenizers.qwen import ImageTokens
from gotr1_jax.vlm_engine.base import Question
from gotr1_jax.vlm_engine.config import QwenEngineConfig
from gotr1_jax.vlm_engine.engine import QwenEngine

# The released file of the 4B.
RELEASED_4B: dict[str, Any] = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "image_token_id": 151655,
    "model_type": "qwen3_vl",
    "text_config": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "dtype": "bfloat16",
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2560,
        "initializer_range": 0.02,
        "intermediate_size": 9728,
        "max_position_embeddings": 262144,
        "model_type": "qwen3_vl_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default",
        },
        "rope_theta": 5000000,
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": 151936,
    },
    "tie_word_embeddings": True,
    "transformers_version": "4.57.0.dev0",
    "video_token_id": 151656,
    "vision_config": {
        "deepstack_visual_indexes": [5, 11, 17],
        "depth": 24,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1024,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 4096,
        "model_type": "qwen3_vl",
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "out_hidden_size": 2560,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
    "vision_end_token_id": 151653,
    "vision_start_token_id": 151652,
}  # fmt: skip


def test_the_released_configuration() -> None:
    assert parse_qwen_config(RELEASED_4B, "config.json") == QWEN3_VL_4B
    newer = copy.deepcopy(RELEASED_4B)
    text = newer["text_config"]
    text["rope_parameters"] = {**text.pop("rope_scaling"), "rope_theta": text.pop("rope_theta")}
    newer["vision_config"]["rope_parameters"] = {"rope_type": "axial", "rope_theta": 1e4}
    assert parse_qwen_config(newer, "config.json") == QWEN3_VL_4B
    for config in (QWEN3_VL_2B, QWEN3_VL_32B, TINY_QWEN3):
        written = json.loads(json.dumps(qwen_config_to_json(config, {"bos_token_id": 7}, "f")))
        assert parse_qwen_config(written, "config.json") == config
        assert written["text_config"]["bos_token_id"] == 7


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "qwen3_vl_moe"}, "of type 'qwen3_vl_moe'; a checkpoint of Qwen2.5-VL ('qw"),
        ({"model_type": "qwen3"}, "or Qwen3-VL ('qwen3_vl'), without experts, is needed"),
        ({"model_type": ["qwen3_vl"]}, "of type ['qwen3_vl']"),
        ({"text_config.num_experts": 128}, "the unknown key num_experts"),
        ({"text_config.head_dim": None}, "head_dim is None; a whole number"),
        ({"text_config.attention_bias": True}, "attention_bias is True; False is needed"),
        ({"text_config.rope_scaling": {"rope_type": "yarn"}}, "rope_scaling {'rope_type': 'yarn'}"),
        (
            {
                "text_config.rope_scaling": {
                    "mrope_interleaved": False, "mrope_section": [24, 20, 20],
                }
            },
            "rope_scaling.mrope_interleaved is False; True is needed",
        ),
        (
            {"text_config.rope_scaling": {"mrope_section": [20, 22, 22]}},
            "[20, 22, 22] cannot be interleaved",
        ),
        ({"vision_config.hidden_act": "gelu"}, "hidden_act is 'gelu'; 'gelu_pytorch_tanh' is"),
        ({"vision_config.num_position_embeddings": 2300}, "2300, which is no square"),
        ({"vision_config.deepstack_visual_indexes": None}, "needs deepstack_visual_indexes"),
        ({"vision_config.deepstack_visual_indexes": [5, 24]}, "DeepStack in blocks [5, 24], but"),
        ({"vision_config.deepstack_visual_indexes": [11, 5]}, "which do not ascend"),
        ({"vision_config.fullatt_block_indexes": [5]}, "the unknown key fullatt_block_indexes"),
        ({"vision_config.window_size": 112}, "the unknown key window_size"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_other_configurations_are_refused(change: dict[str, Any], message: str) -> None:
    check_refused_config(RELEASED_4B, change, message)


def test_deepstack_needs_layers() -> None:
    text = replace(TINY_QWEN3.text, num_layers=1)
    with pytest.raises(ConfigError, match="the first 2 layers of the text model, which has 1"):
        replace(TINY_QWEN3, text=text)


@pytest.mark.parametrize(
    "config, parameters",
    [
        (QWEN3_VL_2B, 2_127_532_032),
        (QWEN3_VL_4B, 4_437_815_808),
        (QWEN3_VL_8B, 8_767_123_696),
        (QWEN3_VL_32B, 33_357_390_064),
    ],
    ids=["2b", "4b", "8b", "32b"],
)
def test_parameters_of_the_released_sizes(config: QwenConfig, parameters: int) -> None:
    """As many as the model of `transformers` has; every axis has a rule and divides."""
    state = abstract_state(config, jnp.bfloat16)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == parameters
    state_shardings(state, make_mesh(1, 2, 4))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_qwen(tmp_path_factory.mktemp("qwen3") / "model", TINY_QWEN3)


def test_what_is_saved_is_loaded_and_converted(checkpoint: Path, tmp_path: Path) -> None:
    assert is_qwen(checkpoint)
    loaded = load_qwen(checkpoint, jnp.float32)
    assert loaded.config == TINY_QWEN3
    jax.tree.map(np.testing.assert_array_equal, loaded.state, tiny_qwen_state(TINY_QWEN3))
    stored = load_file(checkpoint / "model.safetensors")
    assert {name.split(".")[1] for name in stored if name.startswith("model.")} == {
        "visual", "language_model",
    }  # fmt: skip
    # From flat names to the released ones, in shards of another dtype.
    flat = tmp_path / "flat"
    shutil.copytree(checkpoint, flat)
    prefixes = (r"^model\.visual\.", "visual."), (r"^model\.language_model\.", "model.")
    for prefix, plain in prefixes:
        stored = {re.sub(prefix, plain, name): values for name, values in stored.items()}
    save_file(stored, flat / "model.safetensors")
    mesh = make_mesh(2, 2, 2)
    shardings = state_shardings(abstract_state(TINY_QWEN3), mesh)
    jax.tree.map(
        np.testing.assert_array_equal, load_qwen(flat, jnp.float32, shardings).state, loaded.state
    )
    assert convert_qwen(flat, tmp_path / "out", dtype="bfloat16", shard_size=100_000) > 1
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert "model.visual.deepstack_merger_list.1.norm.weight" in index["weight_map"]
    jax.tree.map(
        np.testing.assert_array_equal, load_qwen(tmp_path / "out").state, load_qwen(flat).state
    )


def test_tensors_that_do_not_fit(checkpoint: Path, tmp_path: Path) -> None:
    name = "model.visual.deepstack_merger_list.1.linear_fc1.bias"
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    stored = load_file(checkpoint / "model.safetensors")
    del stored[name]
    stored["model.language_model.layers.0.self_attn.q_proj.bias"] = np.zeros(64, np.float32)
    save_file(stored, broken / "model.safetensors")
    message = f"1 unknown: model.language_model.layers.0.self_attn.q_proj.bias.*1 missing: {name}"
    with pytest.raises(InputError, match=message):
        load_qwen(broken)


def test_a_chat_has_no_system_message_of_its_own(checkpoint: Path) -> None:
    plain = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer = load_qwen(checkpoint).tokenizer
    user = (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|vision_end|>What?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert tokenizer.encode_chat([ImageTokens(2), "What?"]) == plain.encode(user).ids
    system = "<|im_start|>system\nBe brief.<|im_end|>\n"
    ids = tokenizer.encode_chat([ImageTokens(2), "What?"], "Be brief.")
    assert ids == plain.encode(system + user).ids


@pytest.fixture
def thinking(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint whose chats open with a thought; the end of its template as released."""
    folder = tmp_path / "thinking"
    shutil.copytree(checkpoint, folder)
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    prompt = "    {{- '<|im_start|>assistant\\n<think>\\n' }}\n"
    template = "{%- if add_generation_prompt %}\n" + prompt + "{%- endif %}\n"
    (folder / "chat_template.jinja").write_text(template)
    return folder


def test_a_model_that_thinks_first(thinking: Path) -> None:
    """Its answers go on with an open thought, as its template has it; a distribution is read behind
    an empty one."""
    tokenizer = load_qwen(thinking).tokenizer
    plain = Tokenizer.from_file(str(thinking / "tokenizer.json"))
    template = jinja2.Template((thinking / "chat_template.jinja").read_text())
    opened = "<|im_start|>user\nWhat?<|im_end|>\n" + template.render(add_generation_prompt=True)
    assert opened.endswith("assistant\n<think>\n") and tokenizer.thinks
    assert tokenizer.encode_chat(["What?"]) == plain.encode(opened).ids
    skipped = tokenizer.encode_chat(["What?"], skip_thought=True)
    assert skipped == plain.encode(f"{opened}\n</think>\n\n").ids
    # Spelled out in a message they are plain text.
    inside = tokenizer.encode_chat(["</think>"])
    assert inside.count(plain.token_to_id("</think>")) == 0
    (thinking / "chat_template.jinja").write_text("{{- '<|im_start|>assistant\\n' }}")
    assert not load_qwen(thinking).tokenizer.thinks


def test_a_thinking_judge_is_asked_so(thinking: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"max_pixels": 64 * 28 * 28, "patches": 256, "image_tokens": 128}
    config = QwenEngineConfig(str(thinking), "float32", rows=4, tokens=4096, **sizes)
    engine, asked = QwenEngine.from_config(config), []
    tokenizer = engine._tokenizer
    encode = tokenizer.encode_chat
    monkeypatch.setattr(
        tokenizer, "encode_chat",
        lambda *a, **k: asked.append(encode(*a, **k)) or asked[-1],
    )  # fmt: skip
    question = Question("word", (), "", "Is it?", 4, words=yes_or_no("Yes"))
    (answer,), (chance,) = engine.answer([question]), engine.expected_scores([question])
    texts = [tokenizer.decode(ids) for ids in asked]
    assert texts[0].endswith("assistant\n<think>\n")
    assert texts[1].endswith("assistant\n<think>\n\n</think>\n\n")
    assert answer.tokens_out and 0 <= chance <= 1 and engine.identity.endswith(" thinks")


def test_a_thinking_model_without_its_tokens_is_told(checkpoint: Path, thinking: Path) -> None:
    shutil.copy(checkpoint / "tokenizer.json", thinking)
    with pytest.raises(InputError, match="lacks the special token <think>, </think>"):
        load_qwen(thinking)


def test_boxes_are_in_thousandths(checkpoint: Path) -> None:
    sizes = {"max_pixels": 64 * 28 * 28, "patches": 256, "image_tokens": 128}
    config = QwenEngineConfig(str(checkpoint), "float32", rows=4, tokens=4096, **sizes)
    engine = QwenEngine.from_config(config)
    assert engine.image_size(300, 200) == (1000, 1000)
    assert engine.identity.startswith("qwen3_vl ")
