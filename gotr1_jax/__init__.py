"""GoT-R1 in JAX: a policy that writes a plan, paints it, and learns from rewards on both.

    from gotr1_jax import Box, Pipeline

    pipe = Pipeline.from_pretrained("embedded")
    out = pipe("a red circle left of a blue square", n=4, seed=0)

What stands in `__all__` is the stable interface.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gotr1_jax.errors import InputError, RunError
    from gotr1_jax.generate.pipeline import Pipeline, PipelineOutput
    from gotr1_jax.plan import Box, Plan, draw_overlay, parse_plan
    from gotr1_jax.rewards.base import Judge, JudgeRequest, JudgeResult

__version__ = "0.2.0"

# Imported when they are asked for: `import gotr1_jax` loads no library.
_PLACES = {
    "Pipeline": "generate.pipeline",
    "PipelineOutput": "generate.pipeline",
    "Box": "plan",
    "Plan": "plan",
    "draw_overlay": "plan",
    "parse_plan": "plan",
    "Judge": "rewards.base",
    "JudgeRequest": "rewards.base",
    "JudgeResult": "rewards.base",
    "InputError": "errors",
    "RunError": "errors",
}

__all__ = [
    "Box",
    "InputError",
    "Judge",
    "JudgeRequest",
    "JudgeResult",
    "Pipeline",
    "PipelineOutput",
    "Plan",
    "RunError",
    "draw_overlay",
    "parse_plan",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
