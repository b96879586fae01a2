"""The files of a new Qwen-VL besides its weights: tokenizer, chat template, image settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from gotr1_jax.convert.qwen_json import preprocessing_to_json
from gotr1_jax.images.clip import MEAN, STD
from gotr1_jax.images.qwen import Preprocessing
from gotr1_jax.io.files import atomic_write, write_json_atomic
from gotr1_jax.judge_sft.batch import TaughtText
from gotr1_jax.judge_sft.config import NewJudgeConfig
from gotr1_jax.tokenizers.qwen import SYSTEM
from gotr1_jax.tokenizers.train_qwen import shared_phrases, train_qwen_tokenizer

TOKENIZER_TURNS = 2000
"""Questions whose texts a new tokenizer is made of, about."""
_HALF = (0.5, 0.5, 0.5)  # Qwen3-VL's mean and deviation
_SHARED = 0.02  # of the turns: a text that so many have is a phrase

# A content is a text, or a list of parts of type "image" and "text".
_USUAL_SYSTEM = """\
{%- if messages[0]['role'] != 'system' -%}
{{ '<|im_start|>system\\nSYSTEM<|im_end|>\\n' }}
{%- endif -%}
"""
_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' ~ message['role'] ~ '\\n' }}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- else -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""


def write_new_files(
    folder: Path, examples: Iterable[TaughtText], pieces: Sequence[str], config: NewJudgeConfig
) -> None:
    """Writes what a new checkpoint has besides config.json and weights.

    Args:
      folder: an existing one.
      examples: a sample of the training data.
      pieces: parts of answers that are one token each.
      config: the limit of the vocabulary, and the bound on images.
    """
    questions, texts = list[str](), list[str]()
    usual = "" if config.is_qwen3 else SYSTEM
    for example in examples:
        for turn in example.turns:
            questions += [turn.instruction, turn.text]
            system = usual if turn.system is None else turn.system
            texts += [system, turn.instruction, turn.text, turn.answer]
    least = max(2, round(_SHARED * len(questions) / 2))
    phrases = [*shared_phrases(questions, least), *pieces]
    tokenizer = train_qwen_tokenizer(texts, phrases, config.vocab_limit)
    atomic_write(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    ends = [tokenizer.token_to_id(end) for end in ("<|im_end|>", "<|endoftext|>")]
    opening = "" if config.is_qwen3 else _USUAL_SYSTEM.replace("SYSTEM", SYSTEM)
    template = opening + _TEMPLATE
    atomic_write(folder / "chat_template.jinja", template)
    write_json_atomic(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": 131072,
            "clean_up_tokenization_spaces": False,
            "chat_template": template,
        },
    )
    write_json_atomic(
        folder / "generation_config.json",
        {"do_sample": False, "eos_token_id": ends, "pad_token_id": ends[1]},
    )
    settings = preprocessing_to_json(new_preprocessing(config))
    write_json_atomic(folder / "preprocessor_config.json", settings)


def new_preprocessing(config: NewJudgeConfig) -> Preprocessing:
    """How a new model sees images: the released settings, with its own bound on pixels."""
    geometry = config.geometry
    mean, std = (_HALF, _HALF) if config.is_qwen3 else (MEAN, STD)
    return Preprocessing(geometry, geometry.unit_size**2, config.max_pixels, mean, std)
