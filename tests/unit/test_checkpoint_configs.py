"""config.json of Janus and CLIP: notes of tools are ignored, other arithmetic is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from gotr1_jax.convert.clip import clip_config_to_json, parse_clip_config
from gotr1_jax.convert.config_json import config_to_json, parse_config
from gotr1_jax.errors import InputError
from gotr1_jax.models.config import JANUS_PRO_1B, VIT_H_14

NOTES: dict[str, Any] = {
    "unsloth_version": "2025.5.1", "attn_implementation": "sdpa", "gradient_checkpointing": True,
    "tokenizer_class": None, "temperature": 0.7, "is_decoder": False, "use_cache": False,
    "freeze_vision_tower": True, "swift_version": "3.4", "sliding_window": None, "qk_norm": False,
}  # fmt: skip
REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"quantization_config": {"quant_method": "awq", "bits": 4}}, r"quantization_config \(awq, 4 "),
    ({"quantization": {"group_size": 64, "bits": 4}}, r"quantization \(4 bits\)"),
    ({"skip_layer_mlp": [1]}, "unknown key skip_layer_mlp"),
    ({"qk_norm": True}, "unknown key qk_norm"),
    ({"num_attention_heads": 16.0}, "num_attention_heads is 16.0"),
    ({"hidden_size": "2048"}, "hidden_size is '2048'"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; at most"),
)


@pytest.mark.parametrize("section", ["language_config", ""])
def test_janus(section: str) -> None:
    plain = config_to_json(JANUS_PRO_1B, "bfloat16")

    def changed(change: dict[str, Any]) -> dict[str, Any]:
        data = copy.deepcopy(plain)
        (data[section] if section else data).update(change)
        return data

    assert parse_config(changed(NOTES), "c")[0] == JANUS_PRO_1B
    more = (
        ({"rope_theta": float("inf")}, "rope_theta is inf"),
        ({"rope_theta": 10**400}, "rope_theta is a number of more than 30 digits"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rope_scaling": {"rope_type": "default", "factor": 2.0}}, "unknown key factor"),
    )
    for change, message in (*REFUSED, *more) if section else REFUSED[:4]:
        with pytest.raises(InputError, match=message) as error:
            parse_config(changed(change), "c/config.json")
        assert "c/config.json" in str(error.value) and "\n" not in str(error.value)


def test_the_tower_of_janus_gives_its_last_layer() -> None:
    data = config_to_json(JANUS_PRO_1B, "bfloat16")
    data["vision_config"]["params"]["select_layer"] = -2
    with pytest.raises(InputError, match="select_layer is -2; -1 is needed"):
        parse_config(data, "c")


def test_clip() -> None:
    plain = clip_config_to_json(VIT_H_14, "bfloat16")
    for section in ("text_config", "vision_config"):
        data = {**plain, **NOTES, section: {**plain[section], **NOTES}}
        data[f"{section}_dict"] = dict(plain[section])
        assert parse_clip_config(data, "c") == VIT_H_14
        for change, message in REFUSED:
            with pytest.raises(InputError, match=message):
                parse_clip_config({**plain, section: {**plain[section], **change}}, "c")
        data[f"{section}_dict"]["hidden_act"] = "quick_gelu"
        with pytest.raises(InputError, match="'quick_gelu' is needed"):
            parse_clip_config(data, "c")
