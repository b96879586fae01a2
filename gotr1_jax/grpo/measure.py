"""What an evaluation is measured under: scores are compared only where it is the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from gotr1_jax.config import to_plain
from gotr1_jax.errors import InputError
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.grpo.reward_config import RewardConfig
from gotr1_jax.rewards.terms import TermConfig
from gotr1_jax.sampler.config import SamplerConfig
from gotr1_jax.trainer.resume import describe_texts

MEASURED_UNDER = "measured_under"
# Of sampling: settings under which the same samples are drawn, in another time.
_SAME_SAMPLES = ("speculative",)


def measured_under(
    config: GrpoConfig, captions: tuple[str, ...], judge: str, init: str = ""
) -> dict[str, str]:
    """All that the scores of an evaluation depend on besides the trained weights, by name.

    Args:
      config: of the run.
      captions: that are evaluated.
      judge: its identity.
      init: digest of the weights that the run starts from.
    """
    policy, reward = config.policy, config.reward
    return {
        "captions": describe_texts(captions, "captions"),
        "samples": str(config.evaluation.samples),
        "judge": judge,
        "reward": _reward_text(reward),
        "sampling": _sampling_text(config.rollout.sampling),
        "policy": json.dumps([policy.init, init, policy.dtype, policy.param_dtype]),
        "template": f"{policy.prompt_template}, {policy.max_prompt_tokens} tokens at most",
    }


def _sampling_text(sampling: SamplerConfig) -> str:
    values = {k: v for k, v in to_plain(sampling).items() if k not in _SAME_SAMPLES}
    if values["cache_dtype"] == "auto":  # as in runs from before there was a choice
        del values["cache_dtype"]
    return json.dumps(values)


def _reward_text(reward: RewardConfig) -> str:
    """The total and its terms, with the settings of those that have any."""
    terms = reward.terms.items()
    settings = {name: term.described() for name, term in terms if term != TermConfig()}
    text = f"{reward.total} of {', '.join(reward.terms)}"
    return f"{text} {json.dumps(settings)}" if settings else text


def check_measured_under(stored: object, wanted: Mapping[str, str], where: str) -> None:
    """InputError, with the first difference, unless both are the same."""
    if not isinstance(stored, Mapping):
        raise InputError(f"{where} does not say what it was measured under")
    for name, value in wanted.items():
        if stored.get(name) != value:
            raise InputError(
                f"{where} was measured under another {name}: "
                f"{str(stored.get(name, 'none'))[:200]}, now {value[:200]}"
            )


def digest(under: Mapping[str, str]) -> str:
    """A short name for what an evaluation is measured under."""
    return hashlib.sha256(json.dumps(under, sort_keys=True).encode()).hexdigest()[:16]
