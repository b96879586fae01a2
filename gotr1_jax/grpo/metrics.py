"""The metrics of a step: a line of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gotr1_jax.errors import InputError
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.grpo.diversity import step_diversity
from gotr1_jax.grpo.dynamic_sampling import SampledGroups
from gotr1_jax.grpo.losses import is_maximum
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
      results: of each optimizer step on it, on the host.
      state: after the last of them.
      rollout_seconds: time until all groups were sampled and scored; step_seconds: until now.
    """
    scored, table = groups.scored, groups.scored.table
    schedule = make_schedule(config.optimizer, config.steps * config.update.updates_per_rollout)
    values = {
        **term_statistics({"total": table.total_B, **table.scores}),
        "judge/failed_frac": groups.drawn.failed / groups.drawn.samples,
        "reward/frac_zero_std": groups.zero_variance_frac,
        "rollout/rounds": float(groups.rounds),
        "rollout/missing_groups": float(groups.zero_variance_P.sum()),
        "rollout/wasted_frac": groups.wasted_frac,
        "plan/length": float(table.plan_tokens_B.mean()),
        "plan/truncated_frac": float(table.truncated_B.mean()),
        "plan/parsed_frac": float((table.boxes_B > 0).mean()),
        "plan/boxes": float(table.boxes_B.mean()),
        # Plans that try to score themselves.
        "plan/score_like_text": float(table.score_like_B.mean()),
        **step_diversity(table.keys, scored.group_size, config.rollout.images_per_plan),
        **advantage_metrics(groups),
        **_policy_metrics(results),
        # The judge may have worked while samples were drawn, and log-probs computed.
        "time/rollout": rollout_seconds - scored.reward_seconds + scored.overlap_seconds,
        "time/reward": scored.reward_seconds,
        "time/overlap": scored.overlap_seconds,
        "judge/seconds": scored.judge_seconds,
        "time/update": step_seconds - rollout_seconds,
        "time/step": step_seconds,
        "loss": float(np.mean([result.loss for result in results])),
        "grad_norm": float(np.mean([result.grad_norm for result in results])),
        "lr": float(schedule(max(int(state.updates) - 1, 0))),
        "updates/skipped": float(state.skipped),
        "samples_per_second": len(scored) * groups.rounds / step_seconds,
    }
    own = own_metrics(results)
    taken = sorted(own.keys() & values.keys())
    if taken:
        raise InputError(
            f"the loss {config.loss.kind} gives {', '.join(taken)}, which the run measures itself; "
            "give it another name"
        )
    return {**values, **own}


def advantage_metrics(groups: SampledGroups) -> dict[str, float]:
    """`advantage/NAME/MODALITY` over the samples in the loss: their deviation (population), the
    largest absolute value, and the share that is 0; NaN where there are no samples."""
    values = {}
    for modality in ("text", "image"):
        kept = np.asarray(getattr(groups.advantages, modality), np.float64)[groups.row_mask_B]
        known = kept if kept.size else np.full(1, np.nan)
        values[f"advantage/std/{modality}"] = float(known.std())
        values[f"advantage/abs_max/{modality}"] = float(np.abs(known).max())
        is_zero = np.where(np.isnan(known), np.nan, known == 0)
        values[f"advantage/zero_frac/{modality}"] = float(is_zero.mean())
    return values


def _policy_metrics(results: list[PolicyMetrics]) -> dict[str, float]:
    """`policy/NAME/MODALITY` of the optimizer steps on one rollout."""
    first, last = results[0], results[-1]
    stats = [result.stats for result in results]
    importance = [s.importance for s in stats if s.importance is not None]
    columns = {
        "ratio_max": [s.ratio_max for s in stats],
        "clip_frac": [s.clip_frac for s in stats if s.clip_frac is not None],
        "kl": [s.kl for s in stats if s.kl is not None],
        "importance_mean": [s.mean for s in importance],
        "importance_max": [s.max for s in importance],
        "importance_cut_frac": [s.cut_frac for s in importance],
        "entropy": [result.entropy for result in results],
        "entropy_coefficient": [last.alpha] if last.alpha is not None else [],
        # Later updates have moved away from the policy that sampled.
        "logp_diff": [first.logp_diff],
    }
    return {
        f"policy/{name}/{modality}": _combine(name, [getattr(x, modality) for x in column])
        for name, column in columns.items()
        for modality in (("text", "image") if column else ())
    }


def own_metrics(results: list[PolicyMetrics]) -> dict[str, float]:
    """What a loss of one's own returns besides the loss, by the names that it gives."""
    names = results[0].stats.own
    return {name: _combine(name, [result.stats.own[name] for result in results]) for name in names}


def _combine(name: str, numbers: Sequence[Any]) -> float:
    return float(np.max(numbers) if is_maximum(name) else np.mean(numbers))
