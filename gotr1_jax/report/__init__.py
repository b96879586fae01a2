"""The HTML page of a run: what its policy learned, at a glance."""

from __future__ import annotations

from gotr1_jax.report.page import write_report

__all__ = ["write_report"]
