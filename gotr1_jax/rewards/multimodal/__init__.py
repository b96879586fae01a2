"""Judges that read pictures and text: what they are asked, how they are read, what it scores."""

from __future__ import annotations

from gotr1_jax.rewards.multimodal.cache import AnswerCache
from gotr1_jax.rewards.multimodal.failures import FailureTracker, take_figures
from gotr1_jax.rewards.multimodal.instructions import VERSION
from gotr1_jax.rewards.multimodal.questions import (
    Answer,
    Engine,
    Picture,
    Question,
    Scale,
    ScoringEngine,
    make_picture,
)
from gotr1_jax.rewards.multimodal.settings import QuestionsConfig
from gotr1_jax.rewards.multimodal.terms import MULTIMODAL_TERMS, MultimodalJudge

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
