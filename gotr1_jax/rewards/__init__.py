"""Rewards: the terms, the judges that score them, and how they combine.

What a judge of one's own needs; everything else is imported from its module.
"""

from __future__ import annotations

from gotr1_jax.rewards.base import Judge, JudgeRequest, JudgeResult

__all__ = ["Judge", "JudgeRequest", "JudgeResult"]
