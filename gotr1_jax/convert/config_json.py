"""config.json of a checkpoint <-> JanusConfig, in the released format and the Hugging Face port's.

Released files leave out what equals a default: the 7B's `language_config` holds three numbers,
the rest is Llama's. Sizes of a VQ-16 or a SigLIP tower that no released model has are written under
additional keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gotr1_jax.convert.folders import refuse_quantized
from gotr1_jax.convert.json_fields import (
    MAX_LAYERS,
    MAX_SIZE,
    expect,
    optional_section,
    positive_number,
    refuse_unknown,
    section,
    sizes,
    whole_number,
    whole_numbers,
)
from gotr1_jax.convert.names import Format
from gotr1_jax.errors import InputError
from gotr1_jax.models.config import DecoderConfig, JanusConfig, SiglipConfig, VQConfig

IMAGE_SIZE = 384  # of generated images; released files do not state it

# Field of VQConfig -> (key in gen_vision_config.params, other keys that mean the same).
_VQ_KEYS: dict[str, tuple[str, ...]] = {
    "codebook_size": ("image_token_size", "codebook_size"),
    "code_dim": ("n_embed", "codebook_embed_dim"),
    "base_channels": ("ch",),
    "z_channels": ("z_channels",),
    "encoder_multipliers": ("encoder_ch_mult",),
    "decoder_multipliers": ("decoder_ch_mult",),
    "num_res_blocks": ("num_res_blocks",),
    "norm_groups": ("norm_groups",),
}
# Settings of the VQ's training only.
_VQ_IGNORED = {
    "codebook_l2_norm",
    "codebook_show_usage",
    "commit_loss_beta",
    "entropy_loss_ratio",
    "dropout_p",
    "image_size",
}
_HF_VQ_KEYS: dict[str, str] = {
    "codebook_size": "num_embeddings",
    "code_dim": "embed_dim",
    "base_channels": "base_channels",
    "z_channels": "latent_channels",
    "encoder_multipliers": "channel_multiplier",
    "decoder_multipliers": "channel_multiplier",
    "num_res_blocks": "num_res_blocks",
}
_SIGLIP_KEYS = {
    "width": "width",
    "mlp_size": "mlp_size",
    "num_layers": "layers",
    "num_heads": "heads",
    "patch_size": "patch_size",
    "image_size": "image_size",
}
# Keys of each section that are read or checked; others must be notes of tools.
_SECTIONS = {
    "aligner_config", "gen_aligner_config", "gen_head_config", "gen_vision_config",
    "language_config", "vision_config",
}  # fmt: skip
_LLAMA_KEYS = {
    "attention_bias", "head_dim", "hidden_act", "hidden_size", "intermediate_size", "mlp_bias",
    "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps",
    "rope_parameters", "rope_scaling", "rope_theta", "tie_word_embeddings", "vocab_size",
}  # fmt: skip
_HF_SIGLIP_KEYS = {
    "attention_bias", "depth", "hidden_act", "hidden_dropout_rate", "hidden_size", "image_size",
    "layer_norm_eps", "mlp_ratio", "num_attention_heads", "num_channels", "num_hidden_layers",
    "num_image_tokens", "patch_size", "projection_dim", "use_qk_norm",
}  # fmt: skip
_HF_VQ_OTHER_KEYS = {
    "attn_resolutions", "attn_type", "double_latent", "hidden_act", "image_token_embed_dim",
    "in_channels", "num_hidden_layers", "num_patches", "out_channels", "projection_dim",
    "resolution",
}  # fmt: skip
_SIGLIP_MODELS = {"siglip_large_patch16_384": SiglipConfig()}


def parse_config(data: Any, source: str) -> tuple[JanusConfig, Format]:
    """Sizes and naming scheme of a checkpoint from its parsed config.json.

    `source` names the file in error messages. Raises InputError for another kind of model, for
    values of the wrong type and for architectures that Janus-Pro does not have.
    """
    if not isinstance(data, dict):
        raise InputError(f"{source} does not hold a JSON object")
    model_type = data.get("model_type")
    reader = {"multi_modality": _parse_original, "janus": _parse_hf}.get(str(model_type))
    if reader is None:
        raise InputError(
            f"{source} describes a model of type {model_type!r}; a Janus-Pro checkpoint "
            "('multi_modality' or 'janus') is needed"
        )
    refuse_quantized(data, source)
    try:
        config = reader(data)
    except (TypeError, ValueError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise InputError(f"{source}: {error}") from error
    return config, "original" if model_type == "multi_modality" else "hf"


def config_to_json(config: JanusConfig, dtype: str) -> dict[str, Any]:
    """config.json of `config` in the released format; `dtype` is that of the stored weights."""
    decoder, D = config.decoder, config.decoder.hidden_size
    if decoder.qkv_bias or decoder.tie_embeddings:
        raise InputError("the released format has neither q, k, v biases nor tied embeddings")
    projector = {"depth": 2, "n_embed": D, "projector_type": "mlp_gelu"}
    siglip = config.siglip
    return {
        "model_type": "multi_modality",
        "architectures": ["MultiModalityCausalLM"],
        "torch_dtype": dtype,
        "aligner_config": {
            "cls": "MlpProjector",
            "model_type": "aligner",
            "params": {**projector, "input_dim": siglip.width},
        },
        "gen_aligner_config": {
            "cls": "MlpProjector",
            "model_type": "gen_aligner",
            "params": {**projector, "input_dim": config.vq.code_dim},
        },
        "gen_head_config": {
            "cls": "vision_head",
            "model_type": "gen_head",
            "params": {
                "image_token_embed": D,
                "image_token_size": config.image_vocab,
                "n_embed": D,
            },
        },
        "gen_vision_config": {
            "cls": "VQ-16",
            "model_type": "gen_vision",
            "params": vq_to_json(config.vq, config.image_size),
        },
        "vision_config": {
            "cls": "CLIPVisionTower",
            "model_type": "vision",
            "params": _siglip_to_json(siglip),
        },
        "language_config": {
            "model_type": "llama",
            "torch_dtype": dtype,
            "max_position_embeddings": 16384,
            **llama_to_json(decoder),
        },
    }


def llama_to_json(decoder: DecoderConfig) -> dict[str, Any]:
    """The decoder's sizes under the keys of a Llama configuration, which both formats use."""
    return {
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.mlp_size,
        "num_hidden_layers": decoder.num_layers,
        "num_attention_heads": decoder.num_heads,
        "num_key_value_heads": decoder.num_kv_heads,
        "head_dim": decoder.head_dim,
        "vocab_size": decoder.vocab_size,
        "rope_theta": decoder.rope_theta,
        "rms_norm_eps": decoder.norm_eps,
    }


def _parse_original(data: Mapping[str, Any]) -> JanusConfig:
    refuse_unknown(data, {*_SECTIONS, "tie_word_embeddings"}, "the file")
    expect(data, "tie_word_embeddings", False)
    for name, kind in (
        ("gen_vision_config", "VQ-16"), ("gen_head_config", "vision_head"),
        ("gen_aligner_config", "MlpProjector"), ("aligner_config", "MlpProjector"),
        ("vision_config", "CLIPVisionTower"),
    ):  # fmt: skip
        part = optional_section(data, name)
        refuse_unknown(part, ("cls", "params"), name)
        expect(part, "cls", kind, name)
    decoder = _llama(section(data, "language_config"))
    params = _params(data, "gen_vision_config")
    vq = vq_from_json(params)
    config = JanusConfig(
        decoder,
        vq,
        _siglip_from_json(_params(data, "vision_config")),
        whole_number(params, "image_size", "gen_vision_config", usual=IMAGE_SIZE),
    )
    D = decoder.hidden_size
    # Values that other sections repeat must agree, where they are given.
    for name, key, value in (
        ("gen_head_config", "image_token_size", vq.codebook_size),
        ("gen_head_config", "n_embed", D),
        ("gen_head_config", "image_token_embed", D),
        ("gen_aligner_config", "n_embed", D),
        ("gen_aligner_config", "input_dim", vq.code_dim),
        ("gen_aligner_config", "depth", 2),
        ("gen_aligner_config", "projector_type", "mlp_gelu"),
        ("aligner_config", "n_embed", D),
        ("aligner_config", "input_dim", config.siglip.width),
        ("aligner_config", "depth", 2),
        ("aligner_config", "projector_type", "mlp_gelu"),
    ):
        if name in data:
            expect(_params(data, name), key, value, name)
    return config


def _parse_hf(data: Mapping[str, Any]) -> JanusConfig:
    sections = ("text_config", "vision_config", "vq_config", "tie_word_embeddings")
    refuse_unknown(data, sections, "the file")
    decoder = _llama(section(data, "text_config"), "text_config")
    siglip = _hf_siglip(optional_section(data, "vision_config"), decoder.hidden_size)
    port = optional_section(data, "vq_config")
    refuse_unknown(port, {*_HF_VQ_KEYS.values(), *_HF_VQ_OTHER_KEYS}, "vq_config")
    for key, value in (("double_latent", False), ("in_channels", 3), ("out_channels", 3)):
        expect(port, key, value, "vq_config")
    vq = VQConfig(**{field: _value(port, key) for field, key in _HF_VQ_KEYS.items() if key in port})
    # The port takes the number of image tokens a side from the understanding tower.
    image_size = siglip.image_size // siglip.patch_size * vq.downsampling
    return JanusConfig(decoder, vq, siglip, image_size)


def _hf_siglip(vision: Mapping[str, Any], width: int) -> SiglipConfig:
    where = "vision_config"
    refuse_unknown(vision, _HF_SIGLIP_KEYS, where)
    for key, value in (
        ("hidden_act", "gelu"), ("use_qk_norm", False), ("attention_bias", True),
        ("num_channels", 3), ("projection_dim", width), ("depth", 2),
    ):  # fmt: skip
        expect(vision, key, value, where)
    own = whole_number(vision, "hidden_size", where, usual=1024)
    return SiglipConfig(
        image_size=whole_number(vision, "image_size", where, usual=384),
        patch_size=whole_number(vision, "patch_size", where, usual=16),
        width=own,
        mlp_size=int(own * positive_number(vision, "mlp_ratio", where, usual=4.0)),
        num_layers=whole_number(vision, "num_hidden_layers", where, MAX_LAYERS, usual=24),
        num_heads=whole_number(vision, "num_attention_heads", where, usual=16),
        norm_eps=positive_number(vision, "layer_norm_eps", where, usual=1e-6),
    )


def _llama(c: Mapping[str, Any], where: str = "language_config") -> DecoderConfig:
    """A LlamaConfig's JSON; what is absent has the defaults of that class."""
    refuse_unknown(c, _LLAMA_KEYS, where)
    rope = optional_section(c, "rope_parameters") or optional_section(c, "rope_scaling")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"rotary embedding of type {kind!r} is not Janus-Pro's")
    refuse_unknown(rope, ("rope_type", "type", "rope_theta"), f"{where}'s rotary embedding")
    for key, value in (
        ("model_type", "llama"),
        ("hidden_act", "silu"),
        ("attention_bias", False),
        ("mlp_bias", False),
        ("tie_word_embeddings", False),
    ):
        expect(c, key, value, "language model")
    hidden = whole_number(c, "hidden_size", where, usual=4096)
    heads = whole_number(c, "num_attention_heads", where, usual=32)
    theta = positive_number(c, "rope_theta", where, usual=1e4)
    return DecoderConfig(
        vocab_size=whole_number(c, "vocab_size", where, usual=32000),
        hidden_size=hidden,
        mlp_size=whole_number(c, "intermediate_size", where, usual=11008),
        num_layers=whole_number(c, "num_hidden_layers", where, MAX_LAYERS, usual=32),
        num_heads=heads,
        num_kv_heads=whole_number(c, "num_key_value_heads", where, usual=heads),
        head_dim=whole_number(c, "head_dim", where, usual=hidden // heads),
        rope_theta=positive_number(rope, "rope_theta", where, usual=theta),
        norm_eps=positive_number(c, "rms_norm_eps", where, usual=1e-6),
    )


def vq_from_json(params: Mapping[str, Any]) -> VQConfig:
    """Sizes from gen_vision_config.params; ValueError for what does not fit."""
    known = {key for keys in _VQ_KEYS.values() for key in keys} | _VQ_IGNORED
    if unknown := sorted(set(params) - known):
        raise ValueError(f"gen_vision_config has the unknown key {', '.join(unknown)}")
    expect(params, "codebook_l2_norm", True, "gen_vision_config")
    values = {}
    for field, keys in _VQ_KEYS.items():
        given = {key: _value(params, key) for key in keys if key in params}
        if len(set(given.values())) > 1:
            raise ValueError(f"gen_vision_config contradicts itself: {given}")
        if given:
            values[field] = next(iter(given.values()))
    return VQConfig(**values)


def vq_to_json(vq: VQConfig, image_size: int) -> dict[str, Any]:
    """gen_vision_config.params; a VQ-16's values are left out but for the two in released files."""
    usual = VQConfig()
    params = {
        keys[0]: value
        for field, keys in _VQ_KEYS.items()
        if (value := getattr(vq, field)) != getattr(usual, field)
        or field in ("codebook_size", "code_dim")
    }
    if image_size != IMAGE_SIZE:
        params["image_size"] = image_size
    return params


def _siglip_from_json(params: Mapping[str, Any]) -> SiglipConfig:
    where = "vision_config"
    refuse_unknown(
        params, {*_SIGLIP_KEYS.values(), "model_name", "select_feature", "select_layer"}, where
    )
    expect(params, "select_feature", "same", where)
    expect(params, "select_layer", -1, where)
    present = {field: key for field, key in _SIGLIP_KEYS.items() if key in params}
    given = sizes(params, present, where)
    name = params.get("model_name")
    if name is None:
        return SiglipConfig(**given)
    if name not in _SIGLIP_MODELS:
        known = ", ".join(_SIGLIP_MODELS)
        raise ValueError(f"vision tower {name!r} is unknown; known are {known}")
    for field, value in given.items():
        expected = getattr(_SIGLIP_MODELS[name], field)
        if value != expected:
            raise ValueError(f"vision_config says {field} {value}, but {name} has {expected}")
    return _SIGLIP_MODELS[name]


def _siglip_to_json(siglip: SiglipConfig) -> dict[str, Any]:
    name = next((n for n, known in _SIGLIP_MODELS.items() if known == siglip), None)
    if name is not None:
        return {
            "image_size": siglip.image_size,
            "model_name": name,
            "select_feature": "same",
            "select_layer": -1,
        }
    return {key: getattr(siglip, field) for field, key in _SIGLIP_KEYS.items()}


def _params(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    params = section(data, key).get("params", {})
    if not isinstance(params, dict):
        raise ValueError(f"{key}.params is not a JSON object")
    return params


def _value(data: Mapping[str, Any], key: str) -> Any:
    """A number of 1 or more under `key`, or a list of them as a tuple."""
    lists = ("encoder_ch_mult", "decoder_ch_mult", "channel_multiplier")
    if key not in lists:
        return whole_number(data, key, most=MAX_LAYERS if key == "num_res_blocks" else MAX_SIZE)
    values = whole_numbers(data, key, most=1 << 10, length=16)
    if not values or min(values) < 1:
        raise ValueError(f"{key} is {list(values)}; whole numbers of 1 or more are needed")
    return values
