"""What a folder holds that is no checkpoint which is read here, and what to do with it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from gotr1_jax.convert.find import CONFIG_FILE, RUN_CONFIG
from gotr1_jax.errors import InputError
from gotr1_jax.io.contents import describe_binary
from gotr1_jax.io.reading import read_json, read_json_object, read_start

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_FULL = "give the checkpoint that it was made of"
_MOST_ENTRIES = 10_000  # of a folder that are looked at

# (pattern of a name in the folder, what the folder is and what to do).
_SIGNS: tuple[tuple[str, str], ...] = (
    (r".*\.gguf|.*\.ggml", f"is a model of llama.cpp (GGUF): {_FULL}"),
    (r"quantize_config\.json|gptq_model.*|.*-gptq.*", f"is quantised (GPTQ): {_FULL}"),
    (r"quant_config\.json|awq_model.*", f"is quantised (AWQ): {_FULL}"),
    (
        r"zero_to_fp32\.py|global_step\d+|.*zero_pp_rank_.*|mp_rank_\d+_model_states\.pt",
        "is a training checkpoint of DeepSpeed: make one file of it with its zero_to_fp32.py",
    ),
    (
        r"model_world_size_\d+_rank_\d+\.pt",
        "is a training checkpoint of verl: merge its shards with `python -m verl.model_merger`",
    ),
    (
        r".*\.distcp|pytorch_model_fsdp_\d+|\.metadata|.*_fsdp_.*",
        "is a sharded training checkpoint (FSDP, torch.distributed.checkpoint): merge it with "
        "`accelerate merge-weights`, or save a full state dictionary",
    ),
    (
        r"mp_rank_\d+(_\d+)?|latest_checkpointed_iteration\.txt",
        "is a training checkpoint of Megatron: convert it to the Hugging Face format first",
    ),
    (
        r"_CHECKPOINT_METADATA|_METADATA|_sharding|manifest\.ocdbt|ocdbt\.process_\d+",
        "is a training checkpoint of Orbax: give the directory of the run that wrote it, or what "
        "`gotr1 export` made of it",
    ),
    (r".*\.onnx|.*\.onnx_data", f"is a model of ONNX: {_FULL}"),
    (r"weights(\.\d+)?\.npz", f"is a model of MLX: {_FULL}"),
    (r".*\.mlmodel|.*\.mlpackage|.*\.tflite|openvino_model\..*|.*\.engine",
     f"is compiled for one device: {_FULL}"),
    (r"tf_model\.h5|saved_model\.pb|.*\.keras", "is a model of TensorFlow: give that for torch"),
    (r"flax_model.*\.msgpack", "is a model of Flax in msgpack: give that for torch"),
    (r"consolidated\..*", "holds weights under their author's own names: give the checkpoint in "
     "the Hugging Face format"),
    (r"model_index\.json|diffusion_pytorch_model.*", "is a pipeline of diffusers, another kind of "
     "model"),
    (r".*\.(incomplete|crdownload|part|partial|aria2|download)",
     "holds a download that is not finished: download it again"),
    (r"snapshots|refs", "is an entry of the hub's cache: give the folder under its snapshots/"),
)  # fmt: skip
# (any or all, pattern in their names, what the tensors are and what to do).
_TENSOR_SIGNS: tuple[tuple[Callable[[Iterable[bool]], bool], str, str], ...] = (
    (any, r"\.lora_[AB]\.|\.lora_[AB]$|^base_model\.model\.|\.lora_(up|down)\.",
     "they are adapters of peft, or weights that peft wrapped: merge them with merge_and_unload() "
     "and save that"),
    (any, r"\.(qweight|qzeros|g_idx)$", f"they are quantised (GPTQ, AWQ): {_FULL}"),
    (any, r"\.(absmax|quant_map|nested_absmax|SCB|weight_format)$|quant_state",
     f"they are quantised (bitsandbytes): {_FULL}"),
    (any, r"\.(weight_packed|weight_scale|weight_scale_inv|input_scale|scales)$",
     f"they are quantised (compressed-tensors, FP8, MLX): {_FULL}"),
    (any, r"^(blk\.\d+|token_embd)\.", f"they are those of a GGUF file: {_FULL}"),
    (any, r"(^|\.)_(fsdp_wrapped_module|forward_module)\.",
     "they were saved from inside a wrapper of FSDP: save the full state dictionary"),
    (all, r"^module\.",
     "they were saved from inside DistributedDataParallel: save model.module.state_dict()"),
    (all, r"^_orig_mod\.",
     "they were saved from inside torch.compile: save model._orig_mod.state_dict()"),
)  # fmt: skip
_WEIGHTS = re.compile(r".*\.(safetensors|bin|pt|pth|ckpt)(\.index\.json)?")
# Files of trainers, and weights whose folder only lacks a config.json.
_OTHER_FILES = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state.*)\.\w+|(pytorch_)?model(-.*)?\.(safetens"
    r"ors|bin)(\.index\.json)?"
)


def read_config(path: Path) -> Any:
    """The parsed config.json of a checkpoint directory; InputError if it has none."""
    file = path / CONFIG_FILE
    if not path.is_dir():
        if path.exists():
            raise InputError(f"no checkpoint at {path}: it {_file(path)}; give a folder")
        raise InputError(f"no checkpoint at {path}: there is no such directory")
    if not file.is_file():
        what = describe_weights(path) or _folder_within(path)
        known = f"; it {what}" if what else ""
        raise InputError(f"no checkpoint at {path}: it holds no {CONFIG_FILE}{known}")
    return read_json(file)


def describe_weights(folder: Path, complete: bool = False) -> str | None:
    """What the weights in a folder are, where they are not read: "is ..." or "holds ...".

    With `complete` the folder holds weights that are read; then only what would be left out
    beside them is told, an adapter.
    """
    names = _names(folder)
    if any(name in names for name in ADAPTER_WEIGHTS) or (ADAPTER_CONFIG in names and not complete):
        return _adapter(folder, complete)
    if complete:
        return None
    for pattern, what in _SIGNS:
        if any(re.fullmatch(pattern, name) for name in names):
            return what
    others = [
        name for name in names if _WEIGHTS.fullmatch(name) and not _OTHER_FILES.fullmatch(name)
    ]
    if not others:
        return None
    return f"holds {', '.join(others[:3])}, and weights are read from model.safetensors or " + (
        "pytorch_model.bin, or what their .index.json names: rename it if it is such a file"
    )


def refuse_quantized(data: Mapping[str, Any], source: str) -> None:
    """InputError for a parsed config.json that says that the weights are quantised."""
    sections = [data, *(part for part in data.values() if isinstance(part, dict))]
    for section in sections:
        for key in ("quantization_config", "compression_config", "quantization"):
            if value := section.get(key):
                stated = value if isinstance(value, dict) else {}
                how = stated.get("quant_method") or stated.get("format")
                bits = stated.get("bits") or ("4" if stated.get("load_in_4bit") else None)
                notes = [str(how)[:40]] if how else []
                notes += [f"{str(bits)[:8]} bits"] if bits else []
                shown = f" ({', '.join(notes)})" if notes else ""
                raise InputError(
                    f"{source} has a {key}{shown}: quantised weights are not read; {_FULL}"
                )


def describe_names(names: list[str]) -> str | None:
    """What the names of tensors tell about a file that does not fit, with what to do."""
    fitting = (
        what
        for of_them, pattern, what in _TENSOR_SIGNS
        if names and of_them(re.search(pattern, name) is not None for name in names)
    )
    return next(fitting, None)


def _adapter(folder: Path, complete: bool) -> str:
    base = "its base"
    if (folder / ADAPTER_CONFIG).is_file():
        try:
            named = read_json_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
        except InputError:
            named = None
        base = f"its base, {str(named)[:200]!r}" if named else base
    if complete:
        return (
            "holds an adapter of peft beside complete weights, which would be left out: merge it "
            f"into {base} with merge_and_unload(), or move it away"
        )
    return (
        f"is an adapter of peft, not a whole model: merge it into {base}, with "
        "PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(DIR) and give "
        "DIR"
    )


def _folder_within(folder: Path) -> str | None:
    """A checkpoint one level below, as trainers leave them."""
    inner = [n for n in _names(folder) if (folder / n / CONFIG_FILE).is_file()]
    if inner:
        last = sorted(inner, key=lambda name: (len(name), name))[-1]
        return f"has checkpoints inside: give {folder / last}"
    if any((folder / n / RUN_CONFIG).is_file() for n in _names(folder)):
        return "has directories of runs inside: give one of them"
    return None


def _file(path: Path) -> str:
    """What a file is that was given in place of a folder."""
    if not path.is_file():
        return "is neither a folder nor a file"
    kind = describe_binary(read_start(path))
    return f"is a file, {kind}" if kind else "is a file"


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry, _ in zip(entries, range(_MOST_ENTRIES)))
    except OSError:
        return []
