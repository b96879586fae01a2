"""The plan grammar: named objects with boxes inside free text.

A plan is free text in which an object is written, as the released GoT-R1 checkpoints do,

    <|obj_start|>red tulip bouquet<|obj_end|> <|box_start|>(36,66),(907,694)<|box_end|>

A policy under training writes anything, so every text has a defined parse:

* An object is a name between obj_start and obj_end with no other marker inside. A marker out of
  order discards the open name: of nested starts the innermost counts.
* Its box is the box section that follows, after white space at most. It must be exactly four
  integers `(x1,y1),(x2,y2)`; spaces around the integers are allowed. Anything else (missing
  section, floats, words, two boxes) leaves the box None.
* Integers of more than nine digits saturate at ±999 999 999, which bounds the time to read one.
* Objects past `max_objects` are counted, not kept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gotr1_jax.errors import InputError
from gotr1_jax.plan.boxes import Box

OBJ_START = "<|obj_start|>"
OBJ_END = "<|obj_end|>"
BOX_START = "<|box_start|>"
BOX_END = "<|box_end|>"
MAX_OBJECTS = 64

MARKER = re.compile(r"<\|(?:obj|box)_(?:start|end)\|>")
# Possessive quantifiers: a hostile section cannot make the matcher backtrack.
_NUMBER = r"\s*+([+-]?+[0-9]++)\s*+"
_POINT = rf"\s*+\({_NUMBER},{_NUMBER}\)\s*+"
_SECTION = re.compile(rf"{_POINT},{_POINT}")
_MAX_DIGITS = 9
# Marks of objects and boxes in this and other grammars (Qwen-VL, Kosmos, Florence, PaliGemma), and
# pairs of coordinates.
_LIKE_BOXES = re.compile(
    r"<\|?/?(?:obj|object|object_ref|ref|box|bbox|quad|point|phrase|patch_index)(?:_|\||>)"
    r"|<loc_?[0-9]|\bbbox|[(\[<]\s*+-?[0-9.]++\s*+,\s*+-?[0-9.]++\s*+[,)\]>]",
    re.IGNORECASE,
)


def normalise_name(name: str) -> str:
    """The form in which names are compared: case folded, single spaces.

    >>> normalise_name(" Red  Circle")
    'red circle'
    """
    return " ".join(name.casefold().split())


@dataclass(frozen=True)
class PlanObject:
    """One object of a plan.

    Attributes:
        name: stripped text between the name markers; may be empty.
        box: the box as written; None if it is missing or unreadable.
        start, end: half-open character span in the plan's text, from obj_start to the end of
            the box section (readable or not), or of obj_end if there is no section.
    """

    name: str
    box: Box | None
    start: int
    end: int


@dataclass(frozen=True)
class Plan:
    """A parsed plan; `str(plan)` is the text it was parsed from.

    Attributes:
        text: the whole text.
        objects: the kept objects, in the order of the text.
        num_dropped: objects past the parser's limit.
        num_stray: markers that belong to no object with a readable box.
    """

    text: str
    objects: tuple[PlanObject, ...]
    num_dropped: int = 0
    num_stray: int = 0

    def __str__(self) -> str:
        return self.text

    @property
    def boxes(self) -> tuple[tuple[str, Box], ...]:
        """(name, box as written) of the objects with a readable box."""
        return tuple((o.name, o.box) for o in self.objects if o.box is not None)

    # Imported late: edits build on plans.

    def replace_box(self, index: int, box: Box) -> Plan:
        """See `plan.editing.replace_box`."""
        from gotr1_jax.plan.editing import replace_box

        return replace_box(self, index, box)

    def swap_boxes(self, first: int, second: int) -> Plan:
        """See `plan.editing.swap_boxes`."""
        from gotr1_jax.plan.editing import swap_boxes

        return swap_boxes(self, first, second)

    def rename_object(self, index: int, name: str) -> Plan:
        """See `plan.editing.rename_object`."""
        from gotr1_jax.plan.editing import rename_object

        return rename_object(self, index, name)

    def add_object(self, name: str, box: Box) -> Plan:
        """See `plan.editing.add_object`."""
        from gotr1_jax.plan.editing import add_object

        return add_object(self, name, box)

    def remove_object(self, index: int) -> Plan:
        """See `plan.editing.remove_object`."""
        from gotr1_jax.plan.editing import remove_object

        return remove_object(self, index)

    def index(self, name: str) -> int:
        """Index of the first object with that name, as `normalise_name` compares; InputError if
        there is none."""
        wanted = normalise_name(name)
        for number, item in enumerate(self.objects):
            if normalise_name(item.name) == wanted:
                return number
        names = ", ".join(repr(item.name) for item in self.objects) or "no objects"
        raise InputError(f"the plan has no object {name!r}; it has {names}")


def _integer(digits: str) -> int:
    """int(digits), saturated at nine digits; int() refuses thousands of digits."""
    magnitude = digits.lstrip("+-").lstrip("0")
    value = int(magnitude or "0") if len(magnitude) <= _MAX_DIGITS else 10**_MAX_DIGITS - 1
    return -value if digits.startswith("-") else value


def _read_box(section: str) -> Box | None:
    match = _SECTION.fullmatch(section)
    return Box(*map(_integer, match.groups())) if match else None


def parse_plan(text: str, max_objects: int = MAX_OBJECTS) -> Plan:
    """The objects in a plan's text, at most `max_objects`; never raises, linear in its length.

    >>> plan = parse_plan("a <|obj_start|>cat<|obj_end|> <|box_start|>(1,2),(30,40)<|box_end|>!")
    >>> plan.boxes
    (('cat', Box(x1=1, y1=2, x2=30, y2=40)),)
    >>> str(plan).endswith("!")
    True
    """
    objects: list[PlanObject] = []
    dropped = markers = complete = 0

    def close(start: int, name: tuple[int, int], box: Box | None, end: int) -> None:
        nonlocal dropped, complete
        complete += box is not None
        if len(objects) < max_objects:
            objects.append(PlanObject(text[slice(*name)].strip(), box, start, end))
        else:
            dropped += 1

    open_at: tuple[int, int] | None = None  # start and end of an obj_start without its end
    named: tuple[int, tuple[int, int], int] | None = None  # start, name span, end of obj_end
    section_at: int | None = None  # first character of the box section of `named`
    for match in MARKER.finditer(text):
        marker, (begin, end) = match.group(), match.span()
        markers += 1
        if marker == BOX_END and named and section_at is not None:
            close(named[0], named[1], _read_box(text[section_at:begin]), end)
            named = section_at = None
            continue
        if marker == BOX_START and named and section_at is None:
            gap = text[named[2] : begin]
            if not gap or gap.isspace():
                section_at = end
                continue
        if named:  # anything else ends the named object without a box
            close(named[0], named[1], None, named[2])
            named = section_at = None
        if marker == OBJ_END and open_at:
            named = (open_at[0], (open_at[1], begin), end)
        open_at = (begin, end) if marker == OBJ_START else None
    if named:
        close(named[0], named[1], None, named[2])
    return Plan(text, tuple(objects), dropped, markers - 4 * complete)


def has_unread_boxes(text: str) -> bool:
    """Whether a text looks as if it had boxes, of which the parser reads none.

    Control tokens of this and other grammars, "bbox" and pairs of numbers in brackets count.

    >>> has_unread_boxes("a cat (1,2),(300,400)"), has_unread_boxes("The cat is on the left.")
    (True, False)
    """
    return _LIKE_BOXES.search(text) is not None and not parse_plan(text).boxes


def format_box(box: Box) -> str:
    """The box section of an object.

    >>> format_box(Box(1, 2, 3, 4))
    '<|box_start|>(1,2),(3,4)<|box_end|>'
    """
    return f"{BOX_START}({box.x1},{box.y1}),({box.x2},{box.y2}){BOX_END}"


def check_name(name: str) -> None:
    """Raise InputError if a name holds one of the four markers."""
    if MARKER.search(name):
        raise InputError(f"object name {name!r} holds a plan marker: take it out of the name")


def format_object(name: str, box: Box) -> str:
    """The text of one object, as the released checkpoints write it.

    Raises InputError if the name holds one of the four markers.

    >>> format_object("cat", Box(10, 20, 400, 500))
    '<|obj_start|>cat<|obj_end|> <|box_start|>(10,20),(400,500)<|box_end|>'
    """
    check_name(name)
    return f"{OBJ_START}{name}{OBJ_END} {format_box(box)}"
