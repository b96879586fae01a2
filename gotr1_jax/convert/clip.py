"""Reading HPS v2.1, PickScore and other CLIP checkpoints, and converting them.

    checkpoint = load_clip("HPS_v2.1_compressed.pt", jnp.bfloat16)
    clip = checkpoint.module()

Two formats are read: the released file (github.com/tgxs002/HPSv2: a torch pickle with open_clip's
names under `state_dict` and no sizes, which are ViT-H/14's), and a directory in the format of
`transformers.CLIPModel` (OpenAI's CLIPs, PickScore). `convert_clip` makes the second of both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from gotr1_jax.convert.find import CONFIG_FILE
from gotr1_jax.convert.folders import describe_weights, refuse_quantized
from gotr1_jax.convert.json_fields import (
    expect,
    optional_section,
    positive_number,
    refuse_unknown,
    whole_number,
)
from gotr1_jax.convert.reader import Tensor, model_type_of, open_pickle, open_tensors
from gotr1_jax.convert.rules import CONV, LINEAR, Naming, Rule, Source, linear, norm, sources
from gotr1_jax.convert.tree import check_tensors, load_tree, model_view, tree_shapes
from gotr1_jax.convert.writer import OutTensor, dtype_code, write_checkpoint
from gotr1_jax.errors import InputError
from gotr1_jax.io.reading import read_json
from gotr1_jax.models.clip import Clip, abstract_clip
from gotr1_jax.models.config import VIT_H_14, ClipConfig, ClipTowerConfig
from gotr1_jax.tokenizers.clip import ClipTokenizer

HPS_FILE = "HPS_v2.1_compressed.pt"
_TREE, _SECTION, _SCALE = "clip", "state_dict", "logit_scale"
_ACTIVATIONS = ("gelu", "quick_gelu")  # by the names of transformers; its default is the second
# Field of ClipTowerConfig -> key in a section of config.json.
_TOWER_KEYS = {
    "width": "hidden_size",
    "mlp_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
}
_TEXT_SIZES = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8, "vocab_size": 49408, "max_position_embeddings": 77}  # fmt: skip  # noqa: E501
_VISION_SIZES = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224, "patch_size": 32}  # fmt: skip  # noqa: E501

_KEYS = {
    "projection_dim", "text_config", "text_config_dict", "vision_config", "vision_config_dict",
    "tie_word_embeddings",  # there are no output embeddings
}  # fmt: skip
_TOWER_KNOWN = {
    *_TEXT_SIZES, *_VISION_SIZES, "hidden_act", "layer_norm_eps", "num_channels", "projection_dim",
    "tie_word_embeddings",
}  # fmt: skip


def _open_clip_rules() -> Iterator[Rule]:
    vision, text = f"{_TREE}.vision.", f"{_TREE}.text."
    yield Rule(f"{vision}patch.kernel", "visual.conv1.weight", CONV)
    yield Rule(f"{vision}class_token", "visual.class_embedding")
    yield Rule(f"{vision}positions", "visual.positional_embedding")
    yield from norm(f"{vision}norm_pre", "visual.ln_pre")
    yield from norm(f"{vision}norm", "visual.ln_post")
    yield Rule(f"{vision}projection.kernel", "visual.proj")
    yield Rule(f"{text}table.table", "token_embedding.weight")
    yield Rule(f"{text}positions", "positional_embedding")
    yield from norm(f"{text}norm", "ln_final")
    yield Rule(f"{text}projection.kernel", "text_projection")
    for tower, prefix in ((vision, "visual."), (text, "")):
        path, name = f"{tower}blocks.", f"{prefix}transformer.resblocks.{{l}}."
        yield from norm(f"{path}norm1", f"{name}ln_1")
        yield from norm(f"{path}norm2", f"{name}ln_2")
        for third, letter in enumerate("qkv"):
            yield from linear(f"{path}{letter}", f"{name}attn.in_proj_", third)
        yield from linear(f"{path}out", f"{name}attn.out_proj.")
        yield from linear(f"{path}fc1", f"{name}mlp.c_fc.")
        yield from linear(f"{path}fc2", f"{name}mlp.c_proj.")


def _hf_rules() -> Iterator[Rule]:
    vision, text = f"{_TREE}.vision.", f"{_TREE}.text."
    for tower, model in ((vision, "vision_model."), (text, "text_model.")):
        yield Rule(f"{tower}positions", f"{model}embeddings.position_embedding.weight")
        path, name = f"{tower}blocks.", f"{model}encoder.layers.{{l}}."
        yield from norm(f"{path}norm1", f"{name}layer_norm1")
        yield from norm(f"{path}norm2", f"{name}layer_norm2")
        for letter in "qkv":
            yield from linear(f"{path}{letter}", f"{name}self_attn.{letter}_proj.")
        yield from linear(f"{path}out", f"{name}self_attn.out_proj.")
        for fc in ("fc1", "fc2"):
            yield from linear(f"{path}{fc}", f"{name}mlp.{fc}.")
    yield Rule(f"{vision}patch.kernel", "vision_model.embeddings.patch_embedding.weight", CONV)
    yield Rule(f"{vision}class_token", "vision_model.embeddings.class_embedding")
    yield from norm(f"{vision}norm_pre", "vision_model.pre_layrnorm")  # spelled so there
    yield from norm(f"{vision}norm", "vision_model.post_layernorm")
    yield Rule(f"{vision}projection.kernel", "visual_projection.weight", LINEAR)
    yield Rule(f"{text}table.table", "text_model.embeddings.token_embedding.weight")
    yield from norm(f"{text}norm", "text_model.final_layer_norm")
    yield Rule(f"{text}projection.kernel", "text_projection.weight", LINEAR)


# The scale is no parameter of the towers; masks and positions follow from the sizes.
OPEN_CLIP = Naming(tuple(_open_clip_rules()), re.compile(r"logit_scale$|attn_mask$"))
HF = Naming(tuple(_hf_rules()), re.compile(r"logit_scale$|.*\.position_ids$"))


@dataclass(frozen=True)
class ClipCheckpoint:
    """A loaded checkpoint.

    Attributes:
      config: sizes.
      state: parameters of a `Clip`, a pure `nnx.State`.
      dtype: of those parameters.
      source: the file or directory.
      logit_scale: natural logarithm of the factor of the cosine in the contrastive loss; None
        where the checkpoint holds none.
    """

    config: ClipConfig
    state: Any
    dtype: Any
    source: Path
    logit_scale: float | None = None

    def module(self) -> Clip:
        """The model as a module; it computes in the dtype of what it is given."""
        return nnx.merge(nnx.split(abstract_clip(self.config, self.dtype))[0], self.state)

    def tokenizer(self, vocabulary: str | Path | None = None) -> ClipTokenizer:
        """The tokenizer that fits, read from `vocabulary` or from where the weights are.

        Raises InputError if no vocabulary is there (see `ClipTokenizer.from_path`).
        """
        return read_vocabulary(self.source, self.config, vocabulary)


@cache
def abstract_state(config: ClipConfig, dtype: Any = jnp.float32) -> Any:
    """The state of a `Clip` as shapes only; shardings are made of it."""
    return nnx.split(abstract_clip(config, dtype))[1]


def load_clip(
    path: str | Path,
    dtype: Any = jnp.float32,
    shardings: Any = None,
    hps_config: ClipConfig = VIT_H_14,
) -> ClipCheckpoint:
    """Reads `HPS_v2.1_compressed.pt`, or a directory in the format of `transformers.CLIPModel`.

    Every name and shape is checked before anything is allocated; then one array after another
    is read, cast to `dtype` and placed.

    Args:
      path: the file or directory.
      dtype: of the parameters.
      shardings: tree of shardings like `abstract_state`; each device then reads its own slices
        only. Without it arrays lie on the default device.
      hps_config: sizes of a file, which says none; a directory has a config.json.

    Raises InputError, in one line, for what is neither, for a file that is missing, truncated or
    corrupt, and for unknown, missing and misshapen tensors.
    """
    path = Path(path)
    config, tensors, naming = _checked_tensors(path, hps_config)
    state = load_tree(_TREE, abstract_state(config, dtype), naming, tensors, dtype, shardings)
    return ClipCheckpoint(config, state, dtype, path, _logit_scale(tensors))


def read_clip_config(path: str | Path, hps_config: ClipConfig = VIT_H_14) -> ClipConfig:
    """Sizes of what `load_clip` reads; InputError if there is nothing of the kind."""
    path = Path(path)
    if path.is_file():
        return hps_config
    file = path / CONFIG_FILE
    if not file.is_file():
        what = f"it holds no {CONFIG_FILE}" if path.is_dir() else "there is no such file"
        what += f"; it {kind}" if (kind := describe_weights(path)) else ""
        raise InputError(
            f"no CLIP at {path}: {what}; give {HPS_FILE}, what it was converted to, or a folder "
            "of transformers.CLIPModel"
        )
    return parse_clip_config(read_json(file), str(file))


def read_vocabulary(
    path: str | Path, config: ClipConfig, vocabulary: str | Path | None = None
) -> ClipTokenizer:
    """The tokenizer for the weights at `path`, from `vocabulary` or from the same folder."""
    path = Path(path)
    place = vocabulary or (path.parent if path.is_file() else path)
    return ClipTokenizer.from_path(place, config.vocab_size, config.context_length)


def is_clip(path: str | Path) -> bool:
    """Whether `path` is HPS's pickle, or a directory whose config.json names a CLIP."""
    path = Path(path)
    return path.suffix == ".pt" or model_type_of(path) == "clip"


def convert_clip(
    source: str | Path,
    target: str | Path,
    vocabulary: str | Path | None = None,
    dtype: str = "bfloat16",
    hps_config: ClipConfig = VIT_H_14,
) -> Path:
    """Writes the weights at `source` as a directory in the format of `transformers.CLIPModel`.

    Tensor after tensor is copied: no more than one is in memory. The vocabulary is written into
    the same directory, so that a judge needs nothing else.

    Args:
      source: what `load_clip` reads.
      target: the directory; it appears whole or not at all. One that was converted earlier is
        replaced.
      vocabulary: file or directory (see `ClipTokenizer.from_path`); None: next to `source`.
      dtype: "bfloat16" or "float32", of the stored weights.

    Returns `target`. Raises InputError as `load_clip` does, and if there is no vocabulary or the
    target is something else; RunError if it cannot be written.
    """
    source, target = Path(source), Path(target)
    config, tensors, naming = _checked_tensors(source, hps_config)
    tokenizer = read_vocabulary(source, config, vocabulary)
    out: list[OutTensor] = []
    for path, shape in tree_shapes(_TREE, abstract_state(config)).items():
        for new, old in zip(sources(path, shape, HF), sources(path, shape, naming)):
            get = partial(_renamed, old, new, tensors)
            out.append(OutTensor(new.name, new.shape, get, dtype_code(dtype)))
    if (scale := _logit_scale(tensors)) is not None:
        # Not rounded: e to the power of it multiplies PickScore's values, by about 100.
        out.append(OutTensor(_SCALE, (), lambda: np.array(scale, np.float32)))
    config_json = clip_config_to_json(config, dtype)
    write_checkpoint(target, config_json, out, write_files=tokenizer.save)
    return target


def parse_clip_config(data: Any, source: str) -> ClipConfig:
    """Sizes from a parsed config.json of a CLIPModel; `source` names it in error messages.

    What a file leaves out has the value that `transformers` gives it. Raises InputError for
    another kind of model, and for arithmetic that `models.clip` does not do.
    """
    if not isinstance(data, dict) or data.get("model_type") != "clip":
        kind = data.get("model_type") if isinstance(data, dict) else None
        raise InputError(f"{source} describes a model of type {kind!r}; CLIP ('clip') is needed")
    refuse_quantized(data, source)
    try:
        refuse_unknown(data, _KEYS, "the file")
        text, vision = _section_of(data, "text"), _section_of(data, "vision")
        config = ClipConfig(
            vision=_tower({**_VISION_SIZES, **vision}, "vision_config"),
            text=_tower({**_TEXT_SIZES, **text}, "text_config"),
            image_size=whole_number({**_VISION_SIZES, **vision}, "image_size", "vision_config"),
            patch_size=whole_number({**_VISION_SIZES, **vision}, "patch_size", "vision_config"),
            vocab_size=whole_number({**_TEXT_SIZES, **text}, "vocab_size", "text_config"),
            context_length=whole_number(
                {**_TEXT_SIZES, **text}, "max_position_embeddings", "text_config"
            ),
            embedding_size=whole_number(
                {"projection_dim": 512, **data}, "projection_dim", "the file"
            ),
        )
        # Older files say 2 and mean the largest id.
        end = text.get("eos_token_id", 49407)
        if end not in (2, None, config.vocab_size - 1):
            raise ValueError(f"text_config.eos_token_id {end!r} is not the last of the vocabulary")
    except (TypeError, ValueError) as error:
        raise InputError(f"{source}: {error}") from error
    return config


def clip_config_to_json(config: ClipConfig, dtype: str) -> dict[str, Any]:
    """The config.json of a CLIPModel of these sizes."""

    def tower(sizes: ClipTowerConfig) -> dict[str, Any]:
        named = {key: getattr(sizes, field) for field, key in _TOWER_KEYS.items()}
        extra = {"hidden_act": sizes.activation, "layer_norm_eps": sizes.norm_eps}
        return {**named, **extra, "projection_dim": config.embedding_size}

    text = {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "bos_token_id": config.vocab_size - 2,
        "eos_token_id": config.vocab_size - 1,
        "pad_token_id": 0,
    }
    vision = {"image_size": config.image_size, "patch_size": config.patch_size}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embedding_size,
        "text_config": {"model_type": "clip_text_model", **tower(config.text), **text},
        "vision_config": {"model_type": "clip_vision_model", **tower(config.vision), **vision},
        "torch_dtype": dtype,
    }


def _section_of(data: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The section of a tower; older files state it twice, and both have to agree."""
    section = dict(optional_section(data, f"{part}_config"))
    for key, value in optional_section(data, f"{part}_config_dict").items():
        expect(section, key, value, f"{part}_config")
        section[key] = value
    refuse_unknown(section, _TOWER_KNOWN, f"{part}_config")
    expect(section, "num_channels", 3, f"{part}_config")
    return {key: value for key, value in section.items() if value is not None}


def _tower(section: Mapping[str, Any], where: str) -> ClipTowerConfig:
    if (act := section.get("hidden_act", "quick_gelu")) not in _ACTIVATIONS:
        raise ValueError(f"{where}.hidden_act {act!r} is not {' or '.join(_ACTIVATIONS)}")
    eps = positive_number({"layer_norm_eps": 1e-5, **section}, "layer_norm_eps", where)
    if eps >= 1:
        raise ValueError(f"{where}.layer_norm_eps is {eps!r}; a small number is needed")
    sizes = {field: whole_number(section, key, where) for field, key in _TOWER_KEYS.items()}
    return ClipTowerConfig(**sizes, norm_eps=eps, activation=act)


def _checked_tensors(
    path: Path, hps_config: ClipConfig
) -> tuple[ClipConfig, Mapping[str, Tensor], Naming]:
    """Sizes, tensors and naming of a checkpoint whose names and shapes fit."""
    config = read_clip_config(path, hps_config)
    if path.is_file():
        tensors, naming = open_pickle(path, _SECTION), OPEN_CLIP
        fit = "HPS v2.1, a CLIP ViT-H/14"
    else:
        tensors, naming, fit = open_tensors(path), HF, "its config.json"
    check_tensors(tensors, tree_shapes(_TREE, abstract_state(config)), naming, str(path), fit)
    return config, tensors, naming


def _logit_scale(tensors: Mapping[str, Tensor]) -> float | None:
    """The logit scale of a checkpoint that has one; InputError where it is not one number."""
    tensor = tensors.get(_SCALE)
    if tensor is None:
        return None
    value = np.asarray(tensor.read(), np.float32)
    if value.size != 1 or not np.isfinite(value).all():
        raise InputError(f"{tensor.file}: {_SCALE} is not one finite number")
    return float(value.reshape(()))


def _renamed(old: Source, new: Source, tensors: Mapping[str, Tensor]) -> np.ndarray:
    """The values of `new`, which holds what `old` holds."""
    values = model_view(old, tensors)
    return values if new.axes is None else values.transpose(np.argsort(new.axes))
