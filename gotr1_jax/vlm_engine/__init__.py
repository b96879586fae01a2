"""Qwen2.5-VL answering a judge's questions in batches.

Import `engine` only where arrays are wanted: `QwenEngineConfig` alone needs no jax.
"""

from __future__ import annotations

from gotr1_jax.vlm_engine.config import QwenEngineConfig

__all__ = ["QwenEngineConfig"]
