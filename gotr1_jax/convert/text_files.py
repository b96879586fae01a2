"""Tokenizer and processor files of a checkpoint, in either format.

tokenizer.json is always copied unchanged. The smaller files name classes: the released files those
of Janus's code, the port's files those of `transformers`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gotr1_jax.convert.chat_template import TEMPLATE_FILE, chat_template
from gotr1_jax.convert.generation_config import (
    GENERATION_FILE,
    GenerationConfig,
    generation_json,
    read_generation_config,
)
from gotr1_jax.convert.hf_json import generation_to_json
from gotr1_jax.convert.names import Format
from gotr1_jax.convert.open_checkpoint import OpenCheckpoint
from gotr1_jax.convert.writer import copy_files
from gotr1_jax.io.files import write_json
from gotr1_jax.io.reading import read_json_object
from gotr1_jax.tokenizers.janus import SPECIAL_STRINGS, TOKENIZER_FILE, TextTokenizer

SHARED_FILES = (TOKENIZER_FILE, "special_tokens_map.json", "added_tokens.json")
"""The same in both formats."""
SAME_FORM_FILES = (
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    GENERATION_FILE,
    "chat_template.json",
    "chat_template.jinja",
)
"""Copied where the format stays the same, else written for the new one."""
_TOKENIZER, _PROCESSOR, _IMAGES = SAME_FORM_FILES[:3]
_IMAGE_KEYS = (
    "min_size", "image_mean", "image_std", "rescale_factor", "do_normalize", "background_color",
)  # fmt: skip
_GUIDANCE = 5  # of released checkpoints, which the port states
_PORT_TOKENS = {"image_token": "image", "boi_token": "boi", "eoi_token": "eoi"}


def write_text_files(
    opened: OpenCheckpoint, form: Format, folder: Path, generation: GenerationConfig | None = None
) -> None:
    """Puts the files that go with the weights of `opened` into `folder`.

    generation: how the weights that are written want to be sampled, where it is not as `opened`.

    Raises InputError for a file that does not hold a JSON object or a wrong value, OSError.
    """
    read_generation_config(opened.path)  # what is carried over can be read
    same = opened.form == form
    copy_files(opened.path, SHARED_FILES + (SAME_FORM_FILES if same else ()), folder)
    if form == "hf":
        (folder / TEMPLATE_FILE).write_text(chat_template(opened.path), encoding="utf-8")
    made = {}
    if not same:
        made = _port_files(opened) if form == "hf" else _released_files(opened)
    if not same or generation is not None:
        wanted = _generation(opened, form, generation or GenerationConfig())
        made |= {GENERATION_FILE: wanted} if wanted else {}
    for name, data in made.items():
        write_json(folder / name, data, ascii_only=False)


def _port_files(opened: OpenCheckpoint) -> dict[str, Any]:
    old = read_json_object(opened.path / _IMAGES, missing_ok=True)
    size = int(old.get("image_size", opened.config.siglip.image_size))
    tokens = (opened.config.siglip.image_size // opened.config.siglip.patch_size) ** 2
    extra = {key: SPECIAL_STRINGS[name] for key, name in _PORT_TOKENS.items()}
    return {
        _TOKENIZER: {
            **read_json_object(opened.path / _TOKENIZER, missing_ok=True),
            **_special_names(),
            # The class that released files name drops the spaces of this vocabulary.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "processor_class": "JanusProcessor",
            **extra,
            "extra_special_tokens": extra,
        },
        _PROCESSOR: {"processor_class": "JanusProcessor", "num_image_tokens": tokens},
        _IMAGES: {
            "image_processor_type": "JanusImageProcessor",
            "processor_class": "JanusProcessor",
            "size": {"height": size, "width": size},
            "do_resize": True,
            "do_rescale": True,
            "do_pad": True,
            "resample": 3,
            **_image_values(old),
        },
    }


def _generation(opened: OpenCheckpoint, form: Format, settings: GenerationConfig) -> dict[str, Any]:
    """generation_config.json: the source's, with the stated `settings` in it."""
    old = read_json_object(opened.path / GENERATION_FILE, missing_ok=True)
    if opened.form == form:
        return generation_json(settings, old)
    if form == "original":
        return generation_json(settings, {k: v for k, v in old.items() if k != "generation_kwargs"})
    own = generation_to_json(TextTokenizer.from_dir(opened.path).specials)
    stated = {key: value for key, value in old.items() if value is not None}
    return generation_json(settings, {"guidance_scale": _GUIDANCE, **stated, **own})


def _released_files(opened: OpenCheckpoint) -> dict[str, Any]:
    old = read_json_object(opened.path / _IMAGES, missing_ok=True)
    stated = old.get("size")
    stated = stated.get("height") if isinstance(stated, dict) else stated
    size = int(stated or opened.config.siglip.image_size)
    tokens = (opened.config.siglip.image_size // opened.config.siglip.patch_size) ** 2
    tokenizer = read_json_object(opened.path / _TOKENIZER, missing_ok=True)
    for key in (*_PORT_TOKENS, "processor_class", "extra_special_tokens"):
        tokenizer.pop(key, None)
    return {
        _TOKENIZER: {
            **tokenizer, **_special_names(), "tokenizer_class": "LlamaTokenizerFast",
        },
        _PROCESSOR: {
            "processor_class": "VLChatProcessor",
            "add_special_token": False,
            "ignore_id": -100,
            "image_tag": SPECIAL_STRINGS["image"],
            "mask_prompt": False,
            "num_image_tokens": tokens,
            "sft_format": "deepseek",
        },
        _IMAGES: {
            "image_processor_type": "VLMImageProcessor",
            "processor_class": "VLChatProcessor",
            "image_size": size,
            **_image_values(old),
        },
    }  # fmt: skip


def _image_values(old: dict[str, Any]) -> dict[str, Any]:
    """How pixels are prepared; missing values are those of the released files."""
    usual = {
        "min_size": 14,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "rescale_factor": 1 / 255,
        "do_normalize": True,
    }
    return usual | {key: old[key] for key in _IMAGE_KEYS if key in old}


def _special_names() -> dict[str, str]:
    return {f"{name}_token": SPECIAL_STRINGS[name] for name in ("bos", "eos", "pad")}
