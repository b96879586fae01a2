"""Sizes and special ids of the job's models, from configuration files or from checkpoint names.

No weights are read and nothing is downloaded: a compiler needs shapes only.
"""

from __future__ import annotations

import re
from pathlib import Path

from gotr1_jax.convert.config_json import parse_config
from gotr1_jax.convert.find import CONFIG_FILE, EMBEDDED_CHECKPOINTS, RUN_MODEL
from gotr1_jax.convert.folders import read_config
from gotr1_jax.convert.qwen_vl import read_qwen_config
from gotr1_jax.errors import InputError
from gotr1_jax.models.config import JANUS_PRO_1B, JANUS_PRO_7B, JanusConfig
from gotr1_jax.models.qwen_config import (
    QWEN2_5_VL_3B,
    QWEN2_5_VL_7B,
    QWEN3_VL_2B,
    QWEN3_VL_4B,
    QWEN3_VL_8B,
    QWEN3_VL_32B,
    QwenConfig,
)
from gotr1_jax.tokenizers.janus import TOKENIZER_FILE, SpecialIds, TextTokenizer

POLICY_SIZES = {"1b": JANUS_PRO_1B, "7b": JANUS_PRO_7B}
_QWEN2_5 = {"3b": QWEN2_5_VL_3B, "7b": QWEN2_5_VL_7B}
_QWEN3 = {"2b": QWEN3_VL_2B, "4b": QWEN3_VL_4B, "8b": QWEN3_VL_8B, "32b": QWEN3_VL_32B}
JUDGE_SIZES = _QWEN2_5 | _QWEN3
# The ids do not matter: the shapes of a program do not depend on them.
_ANY_IDS = SpecialIds(bos=0, eos=1, pad=2, boi=3, eoi=4, image=5)


def policy_sizes(init: str, size: str | None) -> tuple[JanusConfig, SpecialIds]:
    """Sizes of the policy that `init` names, `size` (1b, 7b) if given.

    InputError if the checkpoint is not on this machine and its name has no size.
    """
    if size is not None:
        return POLICY_SIZES[size], _ANY_IDS
    place = local_checkpoint(init)
    if place is not None:
        sizes = parse_config(read_config(place), str(place / CONFIG_FILE))[0]
        has_tokenizer = (place / TOKENIZER_FILE).is_file()
        ids = TextTokenizer.from_dir(place).specials if has_tokenizer else _ANY_IDS
        return sizes, ids
    return POLICY_SIZES[_size_in_name(init, tuple(POLICY_SIZES), "policy")], _ANY_IDS


def local_checkpoint(init: str) -> Path | None:
    """The folder of the policy that `init` names; None: it is not on this machine."""
    folder = EMBEDDED_CHECKPOINTS.get(init, Path(init))
    places = (folder, folder / RUN_MODEL)
    return next((place for place in places if (place / CONFIG_FILE).is_file()), None)


def judge_sizes(checkpoint: str, size: str | None) -> QwenConfig:
    """Sizes of a judge, as `policy_sizes`; `size` is one of JUDGE_SIZES."""
    if size is not None:
        return JUDGE_SIZES[size]
    folder = EMBEDDED_CHECKPOINTS.get(checkpoint, Path(checkpoint))
    if (folder / CONFIG_FILE).is_file():
        return read_qwen_config(folder)
    # Both families have a 32B, but only one of them is known here.
    family = _QWEN3 if "qwen3" in checkpoint.lower() else _QWEN2_5
    return family[_size_in_name(checkpoint, tuple(family), "judge")]


def _size_in_name(name: str, known: tuple[str, ...], what: str) -> str:
    """The size in a name, like 7b in deepseek-ai/Janus-Pro-7B."""
    found = set(re.findall(r"(?<![a-z0-9])\d+b(?![a-z0-9])", name.lower())) & set(known)
    if len(found) != 1:
        raise InputError(
            f"the size of the {what} {name} is unknown: it is not on this machine, and its name "
            f"has none of the known sizes; give --{what}-size {' or '.join(known)}"
        )
    return found.pop()
