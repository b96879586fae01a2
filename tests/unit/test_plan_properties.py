"""Plans under random and mutated texts: nothing is lost, nothing raises, edits stay local."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from gotr1_jax.errors import InputError
from gotr1_jax.plan import (
    BOX_END,
    BOX_START,
    OBJ_END,
    OBJ_START,
    Box,
    Plan,
    add_object,
    format_object,
    parse_plan,
    remove_object,
    rename_object,
    replace_box,
    swap_boxes,
)

PIECES = [
    OBJ_START, OBJ_END, BOX_START, BOX_END, "(1,2),(3,4)", "(36,66),(907,694)", " ", "\n", ",", "(",
    "<|obj_", "start|>", "end|>", "<|", "|>", "<", "9" * 30, "-7", "\u0663", "red circle", "\ud800",
    "\U0001f431", "\u202e", "\x00", "\u3000", "e\u0301", "<begin_of_image>",
]  # fmt: skip
WHOLE = format_object("teal vase", Box(646, 449, 968, 918))
BOX, NAME = Box(5, 6, 7, 8), "new name"


def random_texts(seed: int, count: int) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(count):
        yield "".join(rng.choice([*PIECES, WHOLE]) for _ in range(rng.randrange(25)))


def mutations(text: str, seed: int, count: int) -> Iterator[str]:
    """`text` with a few characters dropped, doubled, moved or replaced."""
    rng = random.Random(seed)
    for _ in range(count):
        for _ in range(rng.randrange(1, 6)):
            a, b = sorted(rng.randrange(len(text) + 1) for _ in range(2))
            b = min(b, a + rng.randrange(40))
            how = rng.randrange(4)
            if how == 0:
                text = text[:a] + text[b:]
            elif how == 1:
                text = text[:b] + text[a:]
            elif how == 2:
                text = text[:a] + rng.choice(PIECES) + text[b:]
            else:
                text = text[b:] + text[:b]
        yield text


def contents(plan: Plan) -> list[tuple[str, Box | None]]:
    return [(o.name, o.box) for o in plan.objects]


def check(text: str) -> None:
    """What holds of every text."""
    plan = parse_plan(text)
    assert str(plan) == text == plan.text
    assert plan.num_stray >= 0 and plan.num_dropped == 0
    end = 0
    for item in plan.objects:
        assert end <= item.start < item.end <= len(text)
        assert text.startswith(OBJ_START, item.start)
        assert text[: item.end].endswith((OBJ_END, BOX_END))
        own = parse_plan(text[item.start : item.end])
        assert contents(own) == [(item.name, item.box)]
        end = item.end


def check_edits(text: str, rng: random.Random) -> None:
    """What holds of every change to every text."""
    plan = parse_plan(text)
    before = contents(plan)
    added = add_object(plan, NAME, BOX)
    assert contents(added) == [*before, (NAME, BOX)]
    if not before:
        return
    i = rng.randrange(len(before))
    name, old = before[i]
    head, tail = plan.text[: plan.objects[i].start], plan.text[plan.objects[i].end :]

    replaced = replace_box(plan, i, BOX)
    assert contents(replaced) == [*before[:i], (name, BOX), *before[i + 1 :]]
    assert str(replaced).startswith(head) and str(replaced).endswith(tail)
    if old is not None and old == Box(1, 2, 3, 4):
        assert str(replace_box(replaced, i, old)).count("(1,2),(3,4)") == text.count("(1,2),(3,4)")

    renamed = rename_object(plan, i, f" {NAME} ")
    assert contents(renamed) == [*before[:i], (NAME, old), *before[i + 1 :]]
    assert str(renamed).startswith(head) and str(renamed).endswith(tail)
    if name:
        assert str(rename_object(renamed, i, name)) == text

    removed = remove_object(plan, i)
    assert contents(removed) == before[:i] + before[i + 1 :]
    assert str(removed).startswith(head)
    assert len(str(removed)) <= len(head) + len(tail) + len(BOX_END) + 1

    j = rng.randrange(len(before))
    if before[i][1] is not None and before[j][1] is not None:
        swapped = swap_boxes(plan, i, j)
        assert swapped.objects[i].box == before[j][1] and swapped.objects[j].box == before[i][1]
        assert [o.name for o in swapped.objects] == [n for n, _ in before]
        assert contents(swap_boxes(swapped, i, j)) == before


@pytest.mark.parametrize("seed", range(4))
def test_random_texts(seed: int) -> None:
    rng = random.Random(seed)
    for text in random_texts(seed, 1500):
        check(text)
        check_edits(text, rng)


@pytest.mark.parametrize("name", ["gotr1_1b_tulips.txt", "gotr1_7b_tulips.txt"])
def test_mutated_plans(shared: Path, name: str) -> None:
    original = (shared / "chains" / name).read_text(encoding="utf-8")
    rng = random.Random(0)
    for text in mutations(original, seed=len(name), count=300):
        check(text)
        check_edits(text, rng)


def test_ten_thousand_objects() -> None:
    text = " and ".join(
        format_object(f"object {i}", Box(i % 500, 0, 999, 999)) for i in range(10_000)
    )
    plan = parse_plan(text, max_objects=10_000)
    assert str(plan) == text and len(plan.objects) == 10_000
    assert plan.objects[9_999].name == "object 9999" and plan.objects[777].box == Box(
        277, 0, 999, 999
    )
    kept = parse_plan(text)
    edited = replace_box(kept, 63, BOX)
    assert (len(edited.objects), edited.num_dropped) == (64, 9_936)
    assert str(edited) == text.replace("(63,0),(999,999)", "(5,6),(7,8)", 1)


def test_edits_by_hand() -> None:
    red = format_object("red circle", Box(1, 2, 3, 4))
    plan = parse_plan(f"A {red} on {WHOLE}.")
    assert str(remove_object(plan, 0)) == f"A on {WHOLE}."
    assert str(remove_object(plan, 1)) == f"A {red} on ."
    assert str(rename_object(plan, 0, "dog")) == str(plan).replace("red circle", "dog")
    assert str(swap_boxes(plan, 0, 1)) == str(plan).replace("(1,2),(3,4)", "X").replace(
        "(646,449),(968,918)", "(1,2),(3,4)"
    ).replace("X", "(646,449),(968,918)")
    assert str(add_object(plan, "cup", BOX)) == f"A {red} on {WHOLE} {format_object('cup', BOX)}."
    # Behind the last object, so never behind the token that starts the image.
    painted = add_object(parse_plan(f"{red}<begin_of_image>"), "cup", BOX)
    assert str(painted).endswith("<|box_end|><begin_of_image>")
    assert str(add_object(parse_plan(""), "cup", BOX)) == format_object("cup", BOX)


def test_a_removed_object_leaves_its_neighbors_alone() -> None:
    bare, stray = f"{OBJ_START}a{OBJ_END}", f"{BOX_START}(1,2),(3,4){BOX_END}"
    left = remove_object(parse_plan(f"{bare} {WHOLE} {stray}"), 1)
    assert contents(left) == [("a", None)]
    halves = remove_object(parse_plan(f"<|obj_{WHOLE}start|>b{OBJ_END}"), 0)
    assert contents(halves) == []


def test_index_by_name() -> None:
    plan = parse_plan(WHOLE + format_object("Cat", BOX))
    assert plan.index(" cat ") == 1
    with pytest.raises(InputError, match="'dog'.*'teal vase', 'Cat'"):
        plan.index("dog")


def test_refused_edits() -> None:
    plan = parse_plan(f"{WHOLE}{OBJ_START}a{OBJ_END}")
    for edit in (
        lambda: remove_object(plan, 2),
        lambda: rename_object(plan, -1, "x"),
        lambda: rename_object(plan, 0, f"x{BOX_END}"),
        lambda: add_object(plan, OBJ_START, BOX),
        lambda: swap_boxes(plan, 0, 1),
        lambda: swap_boxes(plan, 0, 7),
    ):
        with pytest.raises(InputError):
            edit()
