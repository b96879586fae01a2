"""What a person should hear of while a run goes on."""

from __future__ import annotations


class ZeroRewardAlarm:
    """Says when rewards have all been 0 for so many steps in a row that something is wrong."""

    def __init__(self, steps: int) -> None:
        """steps: of nothing but zeros, until it is said, and until it is said again; 0: never."""
        self._steps = steps
        self._zeros = 0

    def add(self, mean: float) -> str | None:
        """Takes in a step's mean reward, which is at least 0 for every sample; the line, or None.

        NaN, where the judge could tell nothing, is no zero.
        """
        self._zeros = self._zeros + 1 if mean == 0 else 0
        if not self._steps or not self._zeros or self._zeros % self._steps:
            return None
        return (
            f"alarm: every reward of the last {self._zeros} steps was 0, so nothing was learned; "
            "look at the plans and pictures in samples/, and which term of reward/ is 0"
        )
