"""Judges that read pictures and text: what they are asked, how they are read, what it scores."""

from __future__ import annotations

from gotr1_jax.grpo.alarms import FailureTracker
from gotr1_jax.rewards.multimodal.config import QuestionsConfig
from gotr1_jax.rewards.multimodal.counts import take_figures
from gotr1_jax.rewards.multimodal.instructions import VERSION
from gotr1_jax.rewards.multimodal.terms import MULTIMODAL_TERMS, MultimodalJudge
from gotr1_jax.vlm_engine.answer_cache import AnswerCache
from gotr1_jax.vlm_engine.base import (
    Answer,
    Engine,
    Picture,
    Question,
    Scale,
    ScoringEngine,
    make_picture,
)

__all__ = [
    "MULTIMODAL_TERMS",
    "VERSION",
    "Answer",
    "AnswerCache",
    "Engine",
    "FailureTracker",
    "MultimodalJudge",
    "Picture",
    "Question",
    "QuestionsConfig",
    "Scale",
    "ScoringEngine",
    "make_picture",
    "take_figures",
]
