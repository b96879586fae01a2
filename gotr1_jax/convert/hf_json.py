"""config.json and generation_config.json of the Hugging Face port, as `transformers` reads them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from gotr1_jax.convert.config_json import llama_to_json, parse_config
from gotr1_jax.errors import InputError
from gotr1_jax.models.config import JanusConfig, SiglipConfig, VQConfig
from gotr1_jax.tokenizers.janus import SpecialIds


def config_to_hf_json(
    config: JanusConfig, specials: SpecialIds, max_positions: int, dtype: str
) -> dict[str, Any]:
    """config.json of the port.

    Defaults of its class that would be wrong are stated: embeddings are not tied, and the
    placeholder's id is this vocabulary's. Raises InputError for sizes that it cannot express.
    """
    D = config.decoder.hidden_size
    data = {
        "architectures": ["JanusForConditionalGeneration"],
        "model_type": "janus",
        "dtype": dtype,
        "image_token_id": specials.image,
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "llama",
            "dtype": dtype,
            "hidden_act": "silu",
            **llama_to_json(config.decoder),
            "max_position_embeddings": max_positions,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "bos_token_id": specials.bos,
            "eos_token_id": specials.eos,
            "pad_token_id": specials.pad,
        },
        "vision_config": _vision_config(config.siglip, D),
        "vq_config": _vq_config(config.vq, config.grid, D),
    }
    _check_understood(config, data)
    return data


def _vision_config(siglip: SiglipConfig, D: int) -> dict[str, Any]:
    return {
        "model_type": "janus_vision_model",
        "hidden_size": siglip.width,
        "mlp_ratio": siglip.mlp_size / siglip.width,
        "num_hidden_layers": siglip.num_layers,
        "num_attention_heads": siglip.num_heads,
        "image_size": siglip.image_size,
        "patch_size": siglip.patch_size,
        "layer_norm_eps": siglip.norm_eps,
        "num_image_tokens": siglip.num_tokens,
        "hidden_act": "gelu",
        "attention_bias": True,
        "use_qk_norm": False,
        "projection_dim": D,
        "depth": 2,
    }


def _vq_config(vq: VQConfig, grid: int, D: int) -> dict[str, Any]:
    return {
        "model_type": "janus_vqgan",
        "num_embeddings": vq.codebook_size,
        "embed_dim": vq.code_dim,
        "base_channels": vq.base_channels,
        "latent_channels": vq.z_channels,
        "channel_multiplier": list(vq.encoder_multipliers),
        "num_res_blocks": vq.num_res_blocks,
        "double_latent": False,
        "num_patches": grid,
        "projection_dim": D,
        "image_token_embed_dim": D,
        "num_hidden_layers": 2,
    }


def generation_to_json(specials: SpecialIds) -> dict[str, Any]:
    """What generation_config.json of the port must hold: it finds the special ids there."""
    return {
        "bos_token_id": specials.bos,
        "eos_token_id": specials.eos,
        "pad_token_id": specials.pad,
        "generation_kwargs": {"boi_token_id": specials.boi},
    }


def _check_understood(config: JanusConfig, data: dict[str, Any]) -> None:
    """That reading `data` back gives the same sizes."""
    if config.decoder.qkv_bias or config.decoder.tie_embeddings:
        raise InputError("the Hugging Face port has neither q, k, v biases nor tied embeddings")
    try:
        read = asdict(parse_config(data, "config.json")[0])
    except InputError as error:
        raise InputError(
            f"the Hugging Face port cannot express this model ({error}); "
            "export it with --format original"
        ) from error
    given = asdict(config)
    faults = []
    for key, value in given.items():
        if not isinstance(value, dict):
            value, read[key] = {"": value}, {"": read[key]}
        faults += [
            f"{key}.{field}".rstrip(".") + f" {v} (it takes {read[key][field]})"
            for field, v in value.items()
            if read[key][field] != v
        ]
    if faults:
        raise InputError(
            f"the Hugging Face port cannot express this model's {', '.join(faults)}; "
            "export it with --format original"
        )
