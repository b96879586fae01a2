"""Choosing a judge."""

from __future__ import annotations

from gotr1_jax.errors import InputError
from gotr1_jax.rewards.shapes_judge import ShapesJudge
from gotr1_jax.rewards.types import Judge

JUDGE_KINDS = ("shapes",)


def build_judge(kind: str) -> Judge:
    """The judge of that kind; raises InputError for an unknown one."""
    if kind != "shapes":
        raise InputError(f"unknown judge kind {kind!r}: use one of {', '.join(JUDGE_KINDS)}")
    return ShapesJudge()
