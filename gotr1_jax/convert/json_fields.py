"""Reading and checking the fields of a parsed config.json; ValueError for what does not fit.

Tools that train or serve a model write notes of their own into its config.json. Those change no
arithmetic and are ignored; a key that may change it is refused, unless its value asks for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Fields = Mapping[str, Any]

MAX_SIZE, MAX_LAYERS = 1 << 24, 1024
"""Bounds far above any model's: more is a mistake that would only end in memory errors."""
_MAX_NUMBER = 1e30

# Values of keys that other models have and that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,), "alibi": (False,), "attn_logit_softcapping": (0,),
    "embedding_multiplier": (1,), "encoder_no_repeat_ngram_size": (0,),
    "final_logit_softcapping": (0,), "is_causal": (True,), "is_encoder_decoder": (False,),
    "lm_head_bias": (False,), "logit_scale": (1,), "logits_scaling": (1,), "mlp_bias": (False,),
    "normalize_embedding": (False,), "num_experts": (0, 1),
    "num_local_experts": (0, 1), "partial_rotary_factor": (1,), "parallel_attn": (False,),
    "qk_layernorm": (False,), "qk_norm": (False,),
    "residual_multiplier": (1,), "rotary_pct": (1,),
    "scale_attn_weights": (True,), "scale_embedding": (False,), "use_qk_norm": (False,),
    "use_parallel_residual": (False,), "use_sliding_window": (False,),
}  # fmt: skip
# Notes about files, training, generation and memory, that change no forward pass.
_NOTES = {
    "architectures", "auto_map", "author", "bad_words_ids", "base_model", "base_model_name",
    "begin_suppress_tokens", "chat_template", "chunk_size_feed_forward", "comment",
    "created_at", "created_by", "custom_pipelines", "dataset", "datasets", "date",
    "decoder_start_token_id", "description", "device_map", "diversity_penalty", "do_sample",
    "dtype", "early_stopping", "exponential_decay_length_penalty", "finetuned_from",
    "finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing",
    "gradient_checkpointing_kwargs", "id2label", "ignore_index", "initializer_factor",
    "initializer_range", "is_decoder", "keys_to_ignore_at_inference", "label2id", "language",
    "layerdrop", "length_penalty", "library_name", "license", "logit_scale_init_value",
    "low_cpu_mem_usage", "max_length", "max_new_tokens", "max_position_embeddings",
    "max_seq_len", "max_seq_length", "max_window_layers", "min_length", "model_max_length",
    "model_type", "no_repeat_ngram_size", "note", "notes", "num_beam_groups", "num_beams",
    "num_return_sequences", "original_max_position_embeddings", "output_attentions",
    "output_hidden_states", "output_scores", "padding_side", "prefix", "pretraining_tp",
    "problem_type", "processor_class", "rank", "remove_invalid_values", "repetition_penalty",
    "return_dict", "return_dict_in_generate", "seed", "seq_length", "sliding_window",
    "suppress_tokens", "tags", "task", "task_specific_params", "temperature",
    "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class", "tokens_per_second",
    "tokenizer_padding_side", "top_k", "top_p", "torch_dtype", "torchscript",
    "transformers_version", "trust_remote_code", "typical_p", "url", "use_bfloat16",
    "use_cache", "use_cache_quantization", "version", "world_size",
}  # fmt: skip
_NOTE_PATTERN = re.compile(
    r"_.*|"
    # Tools, with whatever they add.
    r"(unsloth|swift|ms_swift|llamafactory|llama_factory|axolotl|mergekit|trl|peft|"
    r"verl|easyr1|openrlhf|deepspeed|fsdp|megatron|nemo|accelerate|wandb|mlflow|hf|huggingface|"
    r"modelscope|vllm|sglang|lmdeploy|xtuner|torchtune|liger|use_liger|use_flash|flash_attn|"
    r"flash_attention|freeze|unfreeze|tune|train|training|finetune|lr|learning_rate)(_.*)?|"
    r".*_(version|implementation|path|name|name_or_path|author|date|license|url|lr|dropout|"
    r"pdrop|droprate|token_id|token_ids|token_index|timestamp|commit|checkpointing|compile)|"
    r".*(attn|attention)_(kernel|backend|impl)|(hidden|attention|activation|residual)?_?dropout(_.*)?"
)


def section(data: Fields, key: str) -> Fields:
    """The object under `key`."""
    value = data.get(key)
    if not isinstance(value, dict):
        raise ValueError(f"the section {key} is missing")
    return value


def optional_section(data: Fields, key: str) -> Fields:
    """The object under `key`, an empty one where there is none."""
    return section(data, key) if data.get(key) is not None else {}


def expect(data: Fields, key: str, value: Any, where: str = "") -> None:
    """That `key` has this value, if it is there; `where` is the section, for the message."""
    given = data.get(key)
    if given is not None and given != value:
        raise ValueError(f"{_name(key, where)} is {given!r}; {value!r} is needed")


def refuse_unknown(data: Fields, known: Iterable[str], where: str) -> None:
    """ValueError for a key that is not `known` and may change what a model computes.

    Ignored are keys without a value, notes of tools, and keys of other models whose value asks
    for nothing.
    """
    unknown = [
        key
        for key, value in data.items()
        if key not in known
        and not (value is None or value == [] or value == {} or value == "")
        and value not in _NEUTRAL.get(key, ())
        and not (key in _NOTES or _NOTE_PATTERN.fullmatch(key))
    ]
    if unknown:
        shown = ", ".join(key if key.isprintable() else ascii(key) for key in sorted(unknown)[:8])
        raise ValueError(
            f"{where} has the unknown key {shown}, which may change what the model computes; "
            "remove it if it does not"
        )


def flag(data: Fields, key: str, where: str = "") -> bool | None:
    """The true or false under `key`, None where there is none."""
    value = data.get(key)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{_name(key, where)} is {value!r}; true or false is needed")
    return value


def whole_number(
    data: Fields, key: str, where: str = "", most: int = MAX_SIZE, usual: int | None = None
) -> int:
    """The int from 1 to `most` under `key`; `usual` where there is none."""
    value = data.get(key)
    if value is None and usual is not None:
        return usual
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{_name(key, where)} is {value!r}; a whole number of 1 or more is needed")
    if value > most:
        raise ValueError(f"{_name(key, where)} is {_short(value)}; at most {most} is possible")
    return value


def sizes(data: Fields, keys: Mapping[str, str], where: str = "") -> dict[str, int]:
    """Whole numbers by the fields of a configuration class; `keys` are theirs in `data`."""
    return {
        field: whole_number(data, key, where, MAX_LAYERS if field == "num_layers" else MAX_SIZE)
        for field, key in keys.items()
    }


def positive_number(data: Fields, key: str, where: str = "", usual: float | None = None) -> float:
    """The finite number above 0 under `key`; `usual` where there is none."""
    value: Any = data.get(key)
    if value is None and usual is not None:
        return usual
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < _MAX_NUMBER:
        raise ValueError(f"{_name(key, where)} is {_short(value)}; a number above 0 is needed")
    return float(value)


def whole_numbers(data: Fields, key: str, most: int, length: int = 64) -> tuple[int, ...]:
    """The list of ints from 0 to `most` under `key`, `length` of them at most."""
    value = data.get(key)
    if not isinstance(value, list) or not all(type(n) is int and 0 <= n <= most for n in value):
        raise ValueError(f"{key} is {_short(value)}; a list of whole numbers is needed")
    if len(value) > length:
        raise ValueError(f"{key} holds {len(value)} numbers; at most {length} are possible")
    return tuple(value)


def _short(value: Any) -> str:
    # Of an int with thousands of digits Python refuses to make text.
    if isinstance(value, int) and abs(value) >= 10**30:
        return "a number of more than 30 digits"
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "…"


def _name(key: str, where: str) -> str:
    return f"{where}.{key}" if where else key
