"""Changes of plans. Every function returns a new plan and keeps all other text and objects."""

from __future__ import annotations

from gotr1_jax.errors import InputError
from gotr1_jax.plan.boxes import Box
from gotr1_jax.plan.grammar import (
    BOX_END,
    BOX_START,
    OBJ_END,
    OBJ_START,
    Plan,
    PlanObject,
    check_name,
    format_box,
    format_object,
    parse_plan,
)


def replace_box(plan: Plan, index: int, box: Box) -> Plan:
    """A new plan in which object `index` has `box`, whether it had one or not.

    Raises InputError if there is no such object.

    >>> plan = parse_plan("a <|obj_start|>cat<|obj_end|> <|box_start|>(1,2),(3,4)<|box_end|>.")
    >>> str(replace_box(plan, 0, Box(500, 20, 900, 500)))
    'a <|obj_start|>cat<|obj_end|> <|box_start|>(500,20),(900,500)<|box_end|>.'
    """
    item = _object(plan, index)
    name_end = _name_span(plan, item)[1] + len(OBJ_END)
    section = plan.text.find(BOX_START, name_end, item.end)
    if section < 0:
        before, after = plan.text[:name_end] + " ", plan.text[name_end:]
    else:
        before, after = plan.text[:section], plan.text[item.end :]
    # Parsed again: the spans of later objects move.
    return parse_plan(before + format_box(box) + after, max_objects=len(plan.objects))


def swap_boxes(plan: Plan, first: int, second: int) -> Plan:
    """A new plan in which two objects have exchanged their boxes.

    Raises InputError if an object does not exist or has no readable box.

    >>> plan = add_object(parse_plan(""), "cat", Box(0, 0, 9, 9))
    >>> plan = add_object(plan, "dog", Box(1, 2, 3, 4))
    >>> swap_boxes(plan, plan.index("cat"), plan.index("dog")).boxes
    (('cat', Box(x1=1, y1=2, x2=3, y2=4)), ('dog', Box(x1=0, y1=0, x2=9, y2=9)))
    """
    a, b = (_object(plan, index).box for index in (first, second))
    if a is None or b is None:
        missing = first if a is None else second
        raise InputError(f"object {missing} of the plan has no readable box to swap")
    return replace_box(replace_box(plan, first, b), second, a)


def rename_object(plan: Plan, index: int, name: str) -> Plan:
    """A new plan in which object `index` is called `name`; blanks around the name stay.

    Raises InputError if there is no such object or the name holds a plan marker.

    >>> plan = parse_plan("<|obj_start|> cat <|obj_end|>")
    >>> str(rename_object(plan, 0, "dog"))
    '<|obj_start|> dog <|obj_end|>'
    """
    check_name(name)
    begin, end = _name_span(plan, _object(plan, index))
    written = plan.text[begin:end]
    begin += len(written) - len(written.lstrip())
    text = plan.text[:begin] + name.strip() + plan.text[begin + len(written.strip()) :]
    return parse_plan(text, max_objects=len(plan.objects))


def add_object(plan: Plan, name: str, box: Box) -> Plan:
    """A new plan with one more object after the last one, or before a text without objects.

    Raises InputError if the name holds a plan marker.

    >>> str(add_object(parse_plan("It is night."), "cat", Box(1, 2, 3, 4)))
    '<|obj_start|>cat<|obj_end|> <|box_start|>(1,2),(3,4)<|box_end|> It is night.'
    """
    text = format_object(name, box)
    if plan.objects:
        at = plan.objects[-1].end
        whole = f"{plan.text[:at]} {text}{plan.text[at:]}"
    else:
        whole = f"{text} {plan.text}" if plan.text else text
    return parse_plan(whole, max_objects=len(plan.objects) + 1)


def remove_object(plan: Plan, index: int) -> Plan:
    """A new plan without object `index` and one of the blanks around it.

    Raises InputError if there is no such object.

    >>> plan = add_object(parse_plan("A cat."), "dog", Box(1, 2, 3, 4))
    >>> str(remove_object(plan, 0))
    'A cat.'
    """
    item = _object(plan, index)
    before, after = plan.text[: item.start], plan.text[item.end :]
    if (not before or before[-1].isspace()) and after[:1].isspace():
        after = after[1:]
    elif before and after and not before[-1].isspace() and not after[0].isspace():
        before += " "  # must join neither two words nor two halves of a marker
    left = [o for i, o in enumerate(plan.objects) if i != index]
    kept = parse_plan(before + after, max_objects=len(left))
    if [(o.name, o.box) for o in kept.objects] != [(o.name, o.box) for o in left]:
        # Stray markers on both sides have joined into an object; a stray BOX_END keeps them apart.
        kept = parse_plan(before + BOX_END + after, max_objects=len(left))
    return kept


def _object(plan: Plan, index: int) -> PlanObject:
    if not 0 <= index < len(plan.objects):
        raise InputError(f"plan has no object {index}: it has {len(plan.objects)}, counted from 0")
    return plan.objects[index]


def _name_span(plan: Plan, item: PlanObject) -> tuple[int, int]:
    """Half-open span of the text between the name markers."""
    begin = item.start + len(OBJ_START)
    return begin, plan.text.index(OBJ_END, begin)
