"""config.json and preprocessor_config.json of Qwen2.5-VL and Qwen3-VL <-> configuration classes.

The released config.json of Qwen2.5-VL is flat, with a `vision_config`; `transformers` 5 adds a
`text_config`, which Qwen3-VL's has always had. Defaults of that library's classes differ from the
released models, so a missing value is never filled in, and an unknown key that is no note of a tool
is refused: it may ask for arithmetic that is not implemented.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gotr1_jax.convert.folders import refuse_quantized
from gotr1_jax.convert.json_fields import (
    MAX_LAYERS,
    expect,
    flag,
    optional_section,
    positive_number,
    refuse_unknown,
    section,
    sizes,
    whole_number,
    whole_numbers,
)
from gotr1_jax.errors import InputError
from gotr1_jax.images.qwen import Geometry, Preprocessing
from gotr1_jax.models.config import DecoderConfig
from gotr1_jax.models.qwen_config import (
    Qwen3VisionConfig,
    QwenConfig,
    QwenVisionConfig,
    VisionConfig,
)

QWEN2_5, QWEN3 = "qwen2_5_vl", "qwen3_vl"
MODEL_TYPES = {QWEN2_5: "Qwen2.5-VL", QWEN3: "Qwen3-VL"}
"""Values of model_type, and what these models are called."""
_TEXT_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "mlp_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
}
_VISION_SIZES = {
    "width": "hidden_size",
    "mlp_size": "intermediate_size",
    "num_layers": "depth",
    "num_heads": "num_heads",
    "out_size": "out_hidden_size",
}
_GEOMETRY_SIZES = {
    "patch_size": "patch_size",
    "merge_size": "spatial_merge_size",
    "temporal_patch_size": "temporal_patch_size",
}
_ROPE_KEYS = {"type", "rope_type", "mrope_section", "mrope_interleaved", "rope_theta"}
_OTHER_TEXT_KEYS = {
    "attention_bias", "head_dim", "hidden_act", "layer_types", "rms_norm_eps", "rope_parameters",
    "rope_scaling", "rope_theta", "tie_word_embeddings", "use_sliding_window",
}  # fmt: skip
_VISION_KEYS = {
    *_VISION_SIZES.values(), *_GEOMETRY_SIZES.values(), "hidden_act", "in_channels",
    "rope_parameters",
}  # fmt: skip
_OWN_VISION_KEYS = {
    QWEN2_5: {"fullatt_block_indexes", "in_chans", "spatial_patch_size", "window_size"},
    QWEN3: {"deepstack_visual_indexes", "num_position_embeddings"},
}
_PIXEL_FLAGS = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")
_BICUBIC, _MAX_PIXELS = 3, 1 << 40


def parse_qwen_config(data: Any, source: str) -> QwenConfig:
    """Sizes from a parsed config.json; `source` names the file in error messages.

    Raises InputError for another kind of model, for a missing value or one of the wrong type, and
    for a key or value that such a model does not have.
    """
    kind = data.get("model_type") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(kind, str) or kind not in MODEL_TYPES:
        names = " or ".join(f"{name} ({key!r})" for key, name in MODEL_TYPES.items())
        raise InputError(
            f"{source} describes a model of type {kind!r}; a checkpoint of {names}, without "
            "experts, is needed"
        )
    refuse_quantized(data, source)
    try:
        text = optional_section(data, "text_config") or data
        sections = {"text_config", "vision_config"}
        known = {*_TEXT_SIZES.values(), *_OTHER_TEXT_KEYS, *sections}
        for fields, where in ((data, "the file"), (text, "text_config")):
            refuse_unknown(fields, known, where)
        for key in (*_TEXT_SIZES.values(), "rms_norm_eps", "head_dim", "hidden_act"):
            if text.get(key) is not None:
                expect(data, key, text[key])
        tied = bool(flag(data, "tie_word_embeddings") or flag(text, "tie_word_embeddings"))
        vision = _parse_vision(section(data, "vision_config"), kind)
        return QwenConfig(_parse_text(text, tied, kind), vision)
    except (TypeError, ValueError) as error:
        raise InputError(f"{source}: {error}") from error


def qwen_config_to_json(config: QwenConfig, ids: Mapping[str, int], dtype: str) -> dict[str, Any]:
    """config.json in the released form.

    `ids` are the tokenizer's, by the name of their key ("image_token_id", ...); `dtype` is that
    of the stored weights.
    """
    vision, geometry = config.vision, config.vision.geometry
    tower = {
        **{key: getattr(vision, field) for field, key in _VISION_SIZES.items()},
        **{key: getattr(geometry, field) for field, key in _GEOMETRY_SIZES.items()},
    }
    if isinstance(vision, Qwen3VisionConfig):
        ends = {key: ids[key] for key in ("bos_token_id", "eos_token_id") if key in ids}
        return {
            "model_type": QWEN3,
            "architectures": ["Qwen3VLForConditionalGeneration"],
            **{key: value for key, value in ids.items() if key not in ends},
            "text_config": {
                "model_type": "qwen3_vl_text", "dtype": dtype, **_text_to_json(config.text), **ends,
            },
            "tie_word_embeddings": config.text.tie_embeddings,
            "vision_config": {
                "model_type": QWEN3, **tower, "hidden_act": "gelu_pytorch_tanh", "in_channels": 3,
                "deepstack_visual_indexes": list(vision.deepstack),
                "num_position_embeddings": vision.position_side**2,
            },
        }  # fmt: skip
    assert isinstance(vision, QwenVisionConfig)
    return {
        "model_type": QWEN2_5,
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "torch_dtype": dtype,
        **_text_to_json(config.text),
        **ids,
        "vision_config": {
            **tower,
            "window_size": geometry.window_size,
            "fullatt_block_indexes": list(vision.full_attention),
            "hidden_act": "silu",
            "in_chans": 3,
            "spatial_patch_size": geometry.patch_size,
        },
    }


def _text_to_json(text: DecoderConfig) -> dict[str, Any]:
    turns = list(text.mrope_section)
    shared = {
        **{key: getattr(text, field) for field, key in _TEXT_SIZES.items()},
        "hidden_act": "silu",
        "rms_norm_eps": text.norm_eps,
        "rope_theta": text.rope_theta,
        "tie_word_embeddings": text.tie_embeddings,
    }
    if not text.mrope_interleaved:
        rope: dict[str, Any] = {"type": "mrope", "mrope_section": turns}
        return {**shared, "rope_scaling": rope, "use_sliding_window": False}
    rope = {"mrope_interleaved": True, "mrope_section": turns, "rope_type": "default"}
    return {**shared, "attention_bias": False, "head_dim": text.head_dim, "rope_scaling": rope}


def parse_preprocessing(data: Any, geometry: Geometry, source: str) -> Preprocessing:
    """Settings from a parsed preprocessor_config.json (or the `image_processor` part of a
    processor_config.json); InputError if they are missing or do not fit the vision tower.
    """
    try:
        if not isinstance(data, dict):
            raise ValueError("it holds no settings of an image processor")
        for key in _PIXEL_FLAGS:
            expect(data, key, True)
        for key in ("do_center_crop", "do_pad"):
            if data.get(key):
                raise ValueError(f"{key} is not a Qwen-VL's")
        expect(data, "resample", _BICUBIC)
        kind = data.get("image_processor_type")
        if kind is not None and not (isinstance(kind, str) and kind.startswith("Qwen2")):
            raise ValueError(f"image_processor_type {kind!r} is not a Qwen-VL's")
        factor = positive_number(data, "rescale_factor", usual=1 / 255)
        if not math.isclose(factor, 1 / 255, rel_tol=1e-6):
            raise ValueError(f"rescale_factor is {factor}; 1/255 is needed")
        for field in ("patch_size", "merge_size", "temporal_patch_size"):
            if whole_number(data, field) != getattr(geometry, field):
                raise ValueError(
                    f"{field} is {data[field]}, but the vision tower has {getattr(geometry, field)}"
                )
        low = _bound(data, "min_pixels", "shortest_edge")
        high = _bound(data, "max_pixels", "longest_edge")
        mean, std = (_three(data, key) for key in ("image_mean", "image_std"))
        if min(std) <= 0:
            raise ValueError(f"image_std is {list(std)}; numbers above 0 are needed")
        return Preprocessing(geometry, low, high, mean, std)
    except (TypeError, ValueError) as error:
        raise InputError(f"{source}: {error}") from error


def preprocessing_to_json(settings: Preprocessing) -> dict[str, Any]:
    """preprocessor_config.json as released."""
    geometry = settings.geometry
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor" if geometry.window_size else "Qwen3VLProcessor",
        "min_pixels": settings.min_pixels,
        "max_pixels": settings.max_pixels,
        "patch_size": geometry.patch_size,
        "merge_size": geometry.merge_size,
        "temporal_patch_size": geometry.temporal_patch_size,
        "image_mean": list(settings.mean),
        "image_std": list(settings.std),
    }


def _parse_text(text: Mapping[str, Any], tied: bool, kind: str) -> DecoderConfig:
    expect(text, "hidden_act", "silu")
    expect(text, "attention_bias", kind == QWEN2_5)
    expect(text, "use_sliding_window", False)
    if any(kind != "full_attention" for kind in text.get("layer_types") or ()):
        raise ValueError("layer_types: only full_attention is known")
    mrope, theta = _parse_rope(text, kind)
    given = sizes(text, _TEXT_SIZES)
    if kind == QWEN3:
        head_dim = whole_number(text, "head_dim")
    elif given["hidden_size"] % given["num_heads"]:
        raise ValueError(
            f"hidden_size {given['hidden_size']} is not a multiple of num_attention_heads "
            f"{given['num_heads']}"
        )
    else:
        head_dim = given["hidden_size"] // given["num_heads"]
        expect(text, "head_dim", head_dim)
    return DecoderConfig(
        **given,
        head_dim=head_dim,
        rope_theta=theta,
        norm_eps=positive_number(text, "rms_norm_eps"),
        qkv_bias=kind == QWEN2_5,
        tie_embeddings=tied,
        mrope_section=mrope,
        mrope_interleaved=kind == QWEN3,
        qk_norm=kind == QWEN3,
    )


def _parse_rope(text: Mapping[str, Any], kind: str) -> tuple[tuple[int, ...], float]:
    """(mrope_section, theta) of the text model."""
    where = "rope_parameters" if text.get("rope_parameters") else "rope_scaling"
    rope = section(text, where)
    kinds = {rope[key] for key in ("type", "rope_type") if key in rope}
    if kinds - {"mrope", "default"} or set(rope) - _ROPE_KEYS:
        raise ValueError(f"{where} {dict(rope)} is not supported; a Qwen-VL's is 'mrope' alone")
    expect(rope, "mrope_interleaved", kind == QWEN3, where)
    if rope.get("mrope_section") is None:
        raise ValueError(f"{where} needs an mrope_section of three whole numbers")
    if rope.get("rope_theta") is not None:
        expect(text, "rope_theta", rope["rope_theta"])
        text = rope
    return whole_numbers(rope, "mrope_section", 1 << 16), positive_number(text, "rope_theta")


def _parse_vision(vision: Mapping[str, Any], kind: str) -> VisionConfig:
    refuse_unknown(vision, _VISION_KEYS | _OWN_VISION_KEYS[kind], "vision_config")
    expect(vision, "hidden_act", "silu" if kind == QWEN2_5 else "gelu_pytorch_tanh")
    for key in ("in_chans", "in_channels"):
        expect(vision, key, 3)
    rope = optional_section(vision, "rope_parameters")
    if set(rope) - {"rope_type", "rope_theta"} or rope.get("rope_type", "axial") != "axial":
        raise ValueError(f"rope_parameters {rope} of the vision tower are not supported")
    theta = VisionConfig.rope_theta
    if "rope_theta" in rope:
        theta = positive_number(rope, "rope_theta")
    tower, patches = sizes(vision, _VISION_SIZES), sizes(vision, _GEOMETRY_SIZES)
    if kind == QWEN3:
        blocks = _block_numbers(vision, "deepstack_visual_indexes")
        places = whole_number(vision, "num_position_embeddings")
        if math.isqrt(places) ** 2 != places:
            raise ValueError(f"num_position_embeddings is {places}, which is no square")
        return Qwen3VisionConfig(
            **tower, position_side=math.isqrt(places), deepstack=blocks,
            geometry=Geometry(**patches, window_size=0), rope_theta=theta,
        )  # fmt: skip
    expect(vision, "spatial_patch_size", vision.get("patch_size"))
    blocks = _block_numbers(vision, "fullatt_block_indexes")
    geometry = Geometry(**patches, window_size=whole_number(vision, "window_size"))
    return QwenVisionConfig(**tower, full_attention=blocks, geometry=geometry, rope_theta=theta)


def _block_numbers(vision: Mapping[str, Any], key: str) -> tuple[int, ...]:
    if vision.get(key) is None:
        raise ValueError(f"vision_config needs {key}, a list of block numbers")
    return whole_numbers(vision, key, MAX_LAYERS, MAX_LAYERS)


def _bound(data: Mapping[str, Any], key: str, in_size: str) -> int:
    """A bound on pixels; newer files name it an "edge" in `size`, though it is an area."""
    if data.get(key) is not None:
        return whole_number(data, key, most=_MAX_PIXELS)
    return whole_number(optional_section(data, "size"), in_size, most=_MAX_PIXELS)


def _three(section: Mapping[str, Any], key: str) -> tuple[float, float, float]:
    value = section.get(key)
    if not isinstance(value, list) or len(value) != 3:
        raise ValueError(f"{key} is {value!r}; three numbers are needed")
    if not all(type(v) in (int, float) and 0 <= v <= 1 for v in value):
        raise ValueError(f"{key} is {value!r}; three numbers from 0 to 1 are needed")
    red, green, blue = (float(v) for v in value)
    return red, green, blue
