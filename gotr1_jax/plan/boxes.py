"""Boxes in thousandths of the image, their IoU, conversion from and to pixels."""

from __future__ import annotations

from dataclasses import dataclass

SCALE = 1000
LAST = SCALE - 1


@dataclass(frozen=True)
class Box:
    """A box as a plan writes it: (x1, y1) top left, (x2, y2) bottom right, origin top left.

    Units are thousandths of the image's width (x) and height (y), 0..999. Values are kept as
    written, so a box may be inverted or out of range; `clean` gives a usable one.
    """

    x1: int
    y1: int
    x2: int
    y2: int

    @property
    def is_valid(self) -> bool:
        """Whether the box as written lies within 0..999 and has an area."""
        return 0 <= self.x1 < self.x2 <= LAST and 0 <= self.y1 < self.y2 <= LAST

    def clean(self) -> Box:
        """This box with every value clamped to 0..999 and inverted sides collapsed.

        An inverted side becomes empty (x2 = x1), so an inverted box has no area and overlaps
        nothing. Swapping the corners instead would reward their wrong order.

        >>> Box(-5, 10, 1200, 20).clean()
        Box(x1=0, y1=10, x2=999, y2=20)
        """
        x1, y1, x2, y2 = (min(max(v, 0), LAST) for v in (self.x1, self.y1, self.x2, self.y2))
        return Box(x1, y1, max(x1, x2), max(y1, y2))

    @property
    def area(self) -> int:
        """Area after `clean`, in squared thousandths (0 .. 999²)."""
        box = self.clean()
        return (box.x2 - box.x1) * (box.y2 - box.y1)


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes after `Box.clean`, in [0, 1].

    0 if either box has no area (degenerate, inverted, or outside the image).

    >>> iou(Box(0, 0, 100, 100), Box(0, 50, 100, 100))
    0.5
    """
    shared = shared_area(a, b)
    return shared / (a.area + b.area - shared) if shared else 0.0


def shared_area(a: Box, b: Box) -> int:
    """Area of the intersection of two boxes after `Box.clean`, in squared thousandths."""
    a, b = a.clean(), b.clean()
    width = min(a.x2, b.x2) - max(a.x1, b.x1)
    height = min(a.y2, b.y2) - max(a.y1, b.y1)
    return max(width, 0) * max(height, 0)


def box_from_pixels(x1: float, y1: float, x2: float, y2: float, width: int, height: int) -> Box:
    """The box of a half-open pixel box (x2, y2 exclusive) in a (width, height) image.

    Each value is round(1000 · pixel / side), clamped to 0..999.

    >>> box_from_pixels(16, 8, 32, 48, 64, 64)
    Box(x1=250, y1=125, x2=500, y2=750)
    """

    pixels, sides = (x1, y1, x2, y2), (width, height, width, height)
    return Box(*(max(0, min(LAST, round(SCALE * v / s))) for v, s in zip(pixels, sides)))


def box_to_pixels(box: Box, width: int, height: int) -> tuple[float, float, float, float]:
    """(x1, y1, x2, y2) of a box as written, in pixels of a (width, height) image.

    >>> box_to_pixels(Box(250, 125, 500, 750), 64, 64)
    (16.0, 8.0, 32.0, 48.0)
    """
    x1, x2 = box.x1 * width / SCALE, box.x2 * width / SCALE
    return x1, box.y1 * height / SCALE, x2, box.y2 * height / SCALE
