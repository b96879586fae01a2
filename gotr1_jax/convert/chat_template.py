"""Chat templates, which `transformers` applies to messages: a checkpoint's own, and Janus's.

Released Janus checkpoints hold none, and the Hugging Face port needs one: their format is in
DeepSeek's code. The text is the one that `tokenizers.janus.chat_parts` makes.
"""

from __future__ import annotations

import re
from pathlib import Path

from tokenizers import Tokenizer

from gotr1_jax.io.reading import read_json_object, read_text
from gotr1_jax.tokenizers.janus import SPECIAL_STRINGS, TOKENIZER_FILE

TEMPLATE_FILE = "chat_template.jinja"
_JSON_FILES = ("chat_template.json", "processor_config.json", "tokenizer_config.json")

# A message's content is a text, or a list of parts of type "image" and "text". The blanks that
# stand around a message are dropped; an image and what is next to it are on lines of their own.
_TEMPLATE = """\
{%- macro show(content) -%}
{%- if content is string -%}{{ content | trim }}
{%- else -%}
{%- set shown = namespace(text='') -%}
{%- for part in content -%}
{%- if part['type'] == 'image' -%}
{%- set piece = IMAGE ~ ('' if loop.last else '\\n') -%}
{%- set piece = piece if loop.first else '\\n' ~ piece -%}
{%- else -%}
{%- set after = not loop.first and content[loop.index0 - 1]['type'] != 'image' -%}
{%- set piece = (' ' if after else '') ~ (part['text'] | trim) -%}
{%- endif -%}
{%- set shown.text = shown.text ~ piece -%}
{%- endfor -%}
{{ shown.text | trim }}
{%- endif -%}
{%- endmacro -%}
{{- START -}}
{%- for message in messages -%}
{%- set text = show(message['content']) -%}
{%- if message['role'] | lower == 'user' -%}
{{ '<|User|>: ' ~ text ~ '\\n\\n' }}
{%- elif message['role'] | lower == 'assistant' -%}
{%- if loop.last and not add_generation_prompt -%}
{{ '<|Assistant|>:' ~ (' ' ~ text if text else '') }}
{%- else -%}
{{ '<|Assistant|>: ' ~ text ~ END }}
{%- endif -%}
{%- elif text -%}
{{ text ~ '\\n\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|Assistant|>:' }}{%- endif -%}
"""


def chat_template(source: Path) -> str:
    """The chat template of the checkpoint in `source`, Janus's where it has none.

    BOS is part of Janus's where the tokenizer does not put it in front of a text by itself.
    """
    if stored := _stored_template(source):
        return stored
    bos = SPECIAL_STRINGS["bos"]
    tokenizer = Tokenizer.from_str(read_text(source / TOKENIZER_FILE))
    adds_bos = tokenizer.token_to_id(bos) in tokenizer.encode("a").ids[:1]
    words = {
        "IMAGE": SPECIAL_STRINGS["image"],
        "START": "" if adds_bos else bos,
        "END": SPECIAL_STRINGS["eos"],
    }
    template = _TEMPLATE
    for name, text in words.items():
        template = template.replace(name, f"'{text}'")
    return template


def opens_thought(source: Path) -> bool:
    """Whether the chat template of the checkpoint in `source` begins every answer with <think>."""
    _, _, prompt = _stored_template(source).rpartition("add_generation_prompt")
    return re.search(r"assistant(\\n|\n)<think>(?!(\\n|\n)*</think>)", prompt) is not None


def _stored_template(source: Path) -> str:
    if (source / TEMPLATE_FILE).is_file():
        return read_text(source / TEMPLATE_FILE)
    for name in _JSON_FILES:
        found = read_json_object(source / name, missing_ok=True).get("chat_template")
        if isinstance(found, str) and found.strip():
            return found
    return ""
