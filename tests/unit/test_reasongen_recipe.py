"""The recipe of ReasonGen-R1's second stage, against the numbers that its paper gives."""

from __future__ import annotations

from pathlib import Path

from gotr1_jax.config import load_config
from gotr1_jax.grpo.config import EntropyConfig, GrpoConfig
from gotr1_jax.tokenizers.janus import REASONGEN_RL_TEMPLATE

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "reasongen_r1_grpo.yaml"


def test_settings_of_the_paper() -> None:
    config = load_config(GrpoConfig, CONFIG)
    rollout, update, loss = config.rollout, config.update, config.loss
    assert config.steps == 400
    assert (rollout.captions_per_step, rollout.samples_per_caption) == (32, 8)
    assert rollout.captions_per_step // update.updates_per_rollout == 16
    assert (rollout.max_plan_tokens, rollout.guidance, update.resample_rounds) == (448, 1.0, 8)
    assert (config.optimizer.learning_rate, config.policy.lora) == (5e-6, None)
    assert (loss.kl, loss.clip_low, loss.clip_high) == ("none", 0.2, 0.2)
    assert config.entropy == EntropyConfig(2.0, 7.0, 5e-5, 5e-3)
    assert config.judge.scored_terms == tuple(config.reward.terms) == ("verdict",)
    assert config.judge.questions.reading == "text" and config.reward.total == "sum"
    assert config.policy.template == REASONGEN_RL_TEMPLATE
