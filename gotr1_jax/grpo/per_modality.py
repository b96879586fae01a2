"""Values of the plan's and of the image's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PerModality:
    """Float32, one of the sampled plan tokens and one of the image tokens: scalars or (B,)."""

    text: Any
    image: Any

    def take(self, rows: Any) -> PerModality:
        """Those of some rows, of arrays (B,)."""
        return PerModality(self.text[rows], self.image[rows])
