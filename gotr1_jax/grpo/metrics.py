"""What a step of reinforcement learning writes into its line of metrics.jsonl."""

from __future__ import annotations

import numpy as np

from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.grpo.dynamic_sampling import SampledGroups
from gotr1_jax.grpo.update import PolicyMetrics
from gotr1_jax.rewards.combine import term_statistics
from gotr1_jax.trainer.optimizer import make_schedule
from gotr1_jax.trainer.state import TrainState


def step_metrics(
    config: GrpoConfig,
    groups: SampledGroups,
    results: list[PolicyMetrics],
    state: TrainState,
    rollout_seconds: float,
    step_seconds: float,
) -> dict[str, float]:
    """What a line of metrics.jsonl holds, without the judge's own metrics.

    Args:
      config: of the run.
      groups: what was sampled.
      results: of each optimizer step on it.
      state: after the last of them.
      rollout_seconds: time until all groups were sampled and scored; step_seconds: until now.
    """
    scored = groups.scored
    values = dict(term_statistics({"total": scored.total_B, **scored.scores}))
    values |= {
        "reward/frac_zero_std": groups.zero_variance_frac,
        "rollout/rounds": float(groups.rounds),
        "rollout/missing_groups": float(groups.zero_variance_P.sum()),
        "rollout/wasted_frac": groups.wasted_frac,
        "plan/length": float(scored.plan_tokens_B.mean()),
        "plan/truncated_frac": float(scored.truncated_B.mean()),
        "plan/parsed_frac": float((scored.boxes_B > 0).mean()),
        "plan/boxes": float(scored.boxes_B.mean()),
    }
    for name in ("text", "image"):
        ratios = [getattr(r.stats.ratio_max, name) for r in results]
        values[f"policy/ratio_max/{name}"] = float(max(ratios))
        clipped = [getattr(r.stats.clip_frac, name) for r in results]
        values[f"policy/clip_frac/{name}"] = float(np.mean(clipped))
        kl = [getattr(r.stats.kl, name) for r in results if r.stats.kl is not None]
        if kl:
            values[f"policy/kl/{name}"] = float(np.mean(kl))
        entropy = [getattr(r.entropy, name) for r in results]
        values[f"policy/entropy/{name}"] = float(np.mean(entropy))
        if (alpha := results[-1].alpha) is not None:
            values[f"policy/entropy_coefficient/{name}"] = float(getattr(alpha, name))
    values["policy/logp_diff/text"] = float(results[0].logp_diff.text)
    # The sampler always draws under guidance: without it another distribution is scored.
    if config.loss.logp_mode != "conditional" or config.rollout.guidance == 1:
        values["policy/logp_diff/image"] = float(results[0].logp_diff.image)
    schedule = make_schedule(config.optimizer, config.steps * config.update.updates_per_rollout)
    values |= {
        "time/rollout": rollout_seconds - scored.reward_seconds,
        "time/reward": scored.reward_seconds,
        "judge/seconds": scored.judge_seconds,
        "time/update": step_seconds - rollout_seconds,
        "time/step": step_seconds,
    }
    values["loss"] = float(np.mean([r.loss for r in results]))
    values["grad_norm"] = float(np.mean([r.grad_norm for r in results]))
    values["lr"] = float(schedule(max(int(state.updates) - 1, 0)))
    values["updates/skipped"] = float(state.skipped)
    values["samples_per_second"] = len(scored) * groups.rounds / step_seconds
    return values
