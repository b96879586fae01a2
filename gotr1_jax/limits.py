"""What a field of a configuration may hold, written beside the field:

    learning_rate: Annotated[float, Range("(0, 1]")] = 1e-5
    name: Annotated[str, Text()]

`config.read_value` applies them, wherever a value comes from.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from typing import Annotated, Any


@dataclass(frozen=True)
class Range:
    """The numbers of an interval: Range("[0, 1)") has 0 and not 1. None is NaN or infinite.

    A float is compared as the float32 that the programs use: 1e-50 is 0, 0.99999999 is 1.

    Attributes:
      interval: "[" and "]" include an end, "(" and ")" exclude it; an end may be inf.
      also: further values, such as 0 for "off".
      why: ends the message about a number outside.
    """

    interval: str
    also: tuple[int, ...] = ()
    why: str = ""
    _ends: tuple[float, float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        low, comma, high = self.interval[1:-1].partition(",")
        if self.interval[:1] not in ("[", "(") or self.interval[-1:] not in ("]", ")") or not comma:
            raise ValueError(f"{self.interval!r} is not an interval such as [0, 1)")
        object.__setattr__(self, "_ends", (float(low), float(high)))

    def complaint(self, value: Any) -> str | None:
        """What is wrong with a number; None: nothing."""
        number = value if isinstance(value, int) else _to_float32(value)
        (low, high), first, last = self._ends, self.interval[0], self.interval[-1]
        above = number > low or (number == low and first == "[")
        below = number < high or (number == high and last == "]")
        if number in self.also or (above and below and -math.inf < number < math.inf):
            return None
        why = f"; {self.why}" if self.why else ""
        words = "a finite number" if self._ends == (-math.inf, math.inf) else self.words
        return f"it must be {words}{why}"

    @property
    def words(self) -> str:
        """The interval in words: "in [0, 1), or 7"; empty where every finite number is in it."""
        (low, high), first = self._ends, self.interval[0]
        words = f"{low:g} or more, and finite" if first == "[" else f"above {low:g}, and finite"
        if high < math.inf:
            words = f"in {self.interval}"
        elif low == -math.inf:
            words = ""
        return words + "".join(f", or {other}" for other in self.also)


def _to_float32(value: float) -> float:
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


@dataclass(frozen=True)
class Text:
    """A text that is not blank. `once`: what it must hold exactly once."""

    once: str = ""

    def complaint(self, value: Any) -> str | None:
        """What is wrong with a text; None: nothing."""
        if not value.strip():
            return "it must not be empty"
        if self.once and value.count(self.once) != 1:
            return f"it must hold {self.once} exactly once"
        return None


# The seeds that every random stream takes.
Seed = Annotated[int, Range("[0, 4294967295]")]
# A share of something, a probability.
Fraction = Annotated[float, Range("[0, 1]")]
# A factor of a term in a sum; losses are summed in float32.
Weight = Annotated[float, Range("[0, 1e6]")]
# Training steps; they are counted in int32.
Steps = Annotated[int, Range("[1, 2147483647]")]
# The same, where 0 stands for none or never.
StepsOrNever = Annotated[int, Range("[0, 2147483647]")]
# Rows of one batch or step: the token ids alone of a million rows fill several GB of every host.
ROWS = Range("[1, 1048576]", why="token ids and scores of more fill the memory of any host")
RowCount = Annotated[int, ROWS]
# Tokens of one text: no model here reads longer ones, and attention grows with the square.
TokenCount = Annotated[int, Range("[1, 131072]")]
# Captions, examples or images that are made or listed in memory before the first step.
ItemCount = Annotated[int, Range("[1, 10000000]")]
# Longer side in pixels of the sketch of a plan that judges are shown.
CanvasSide = Annotated[int, Range("[112, 2048]")]
# Divisor of logits; closer to 0 it overflows, and greedy sampling is what is meant.
Temperature = Annotated[float, Range("[0.0001, 10000]", why="for the most likely token set greedy")]
# The same, where 0 stands for greedy sampling.
TemperatureOrGreedy = Annotated[float, Range("[0.0001, 10000]", also=(0,))]
# Most likely tokens that are sampled from; 0: all.
TopK = Annotated[int, Range("[0, 10000000]")]
# Probability of the most likely tokens that are sampled from; 1: all.
TopP = Annotated[float, Range("(0, 1]")]
# Positions of the window of speculative decoding, all computed in each pass; 0: one by one.
DraftWindow = Annotated[int, Range("[2, 4096]", also=(0,), why="it counts the positions of a pass")]
# Weight of classifier-free guidance; 1: none.
Guidance = Annotated[float, Range("[0, 1000]")]
# Layers of a network, each built and traced on its own or in a scan.
LayerCount = Annotated[int, Range("[1, 1000]")]
# A width or another size of a network, or a side of its images: far above any published one.
ModelSize = Annotated[int, Range("[1, 1048576]")]
# Base of rotary frequencies.
RopeTheta = Annotated[float, Range("[1, 1e12]")]
# A small constant of a normalisation.
Epsilon = Annotated[float, Range("(0, 1)")]
# A text that is not blank: a name, a path.
FilledText = Annotated[str, Text()]
# The prompt of a caption.
PromptTemplate = Annotated[str, Text(once="{caption}")]
