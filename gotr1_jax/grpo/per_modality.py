"""Values of the plan's and of the image's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PerModality:
    """What belongs to the sampled plan tokens and what to the image tokens: mostly float32 scalars
    or arrays (B,) or (P, G), before training the expressions that they learn from."""

    text: Any
    image: Any

    def take(self, rows: Any) -> PerModality:
        """Those of some rows, of arrays (B,)."""
        return PerModality(self.text[rows], self.image[rows])
