"""A tiny judge to be taught: its sizes, and the values of a job that teaches it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from gotr1_jax.judge_sft.config import NewJudgeConfig, NewTextConfig, NewVisionConfig

TINY_JUDGE = NewJudgeConfig(
    NewTextConfig(
        hidden_size=32, mlp_size=48, num_layers=2, num_heads=2, num_kv_heads=2, rope_theta=100.0
    ),
    NewVisionConfig(width=16, mlp_size=24, num_layers=2, num_heads=2, full_attention=(1,)),
    vocab_limit=2048,
)

TINY_JUDGE3 = replace(
    TINY_JUDGE,
    family="qwen3_vl",
    vision=NewVisionConfig(
        width=16, mlp_size=24, num_layers=3, num_heads=2, position_side=4, deepstack=(0, 1)
    ),
)


def judge_values(run_dir: Path) -> dict[str, Any]:
    """Plain values of a job of four steps on the shapes world."""
    text, vision = TINY_JUDGE.text, TINY_JUDGE.vision
    return {
        "run_dir": str(run_dir),
        "steps": 4,
        "batch_size": 8,
        "micro_batch": 8,
        "log_every": 1,
        "export_dtype": "float32",
        "model": {
            "text": vars(text),
            "vision": {**vars(vision), "full_attention": list(vision.full_attention)},
            "vocab_limit": 2048,
        },
        "data": {
            "max_tokens": 128,
            "max_answer_tokens": 48,
            "shapes": {"questions": {"canvas": 112}, "searches": 1, "examples": 64},
        },
        "optimizer": {"learning_rate": 0.01, "schedule": "constant"},
        "checkpoint": {"every": 2},
    }
