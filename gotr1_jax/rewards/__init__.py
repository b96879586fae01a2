"""Rewards: the terms, the judges that score them, and how they combine."""

from __future__ import annotations

from gotr1_jax.rewards.base import TERMS, Judge, JudgeRequest, JudgeResult, stack_scores
from gotr1_jax.rewards.combine import RULES, check_rule, combine, term_statistics
from gotr1_jax.rewards.factory import JUDGE_KINDS, JudgeConfig, build_judge, make_judge

__all__ = [
    "JUDGE_KINDS",
    "RULES",
    "TERMS",
    "Judge",
    "JudgeConfig",
    "JudgeRequest",
    "JudgeResult",
    "build_judge",
    "check_rule",
    "combine",
    "make_judge",
    "stack_scores",
    "term_statistics",
]
