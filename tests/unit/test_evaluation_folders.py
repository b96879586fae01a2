"""Benchmark folders with images missing, extra, misnamed, or of something else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gotr1_jax.errors import InputError
from gotr1_jax.evaluation.folders import find_compbench_images, find_dpg_images, find_geneval_images
from gotr1_jax.evaluation.geneval_rules import parse_prompt


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")


def refuses(message: str, call: Any, *args: Any) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as error:
        call(*args)
    assert "\n" not in str(error.value)


CAPTIONS = ["a cat.", "a dog", "a cat."]


@pytest.fixture
def compbench(tmp_path: Path) -> Path:
    names = [f"{c}_{p * 2 + i:06d}.png" for p, c in enumerate(CAPTIONS) for i in range(2)]
    touch(*(tmp_path / "samples" / name for name in names), tmp_path / "samples" / ".hidden")
    return tmp_path


@pytest.mark.parametrize("count", [None, 2])
def test_compbench_images_in_the_order_of_their_numbers(compbench: Path, count: int | None) -> None:
    items = find_compbench_images(compbench, CAPTIONS, count)
    assert [item.caption for item in items] == [0, 0, 1, 1, 2, 2]
    assert items[3].name == "samples/a dog_000003.png" and items[3].path.is_file()


def test_compbench_images_that_are_not_as_they_should(compbench: Path) -> None:
    samples = compbench / "samples"
    refuses("'a bird'", find_compbench_images, compbench, ["a cat.", "a bird", "a cat."], 2)
    refuses("lacks image 000006", find_compbench_images, compbench, [*CAPTIONS, "x"], 2)
    refuses("lacks image 000006", find_compbench_images, compbench, CAPTIONS, 3)
    refuses(
        "does not belong there: 4 are wanted", find_compbench_images, compbench, CAPTIONS[:2], 2
    )
    touch(samples / "notes.txt")
    refuses("notes.txt is no image", find_compbench_images, compbench, CAPTIONS, 2)
    (samples / "notes.txt").unlink()
    touch(samples / "a dog_0002.jpg")
    refuses("have the same number", find_compbench_images, compbench, CAPTIONS, 2)
    (samples / "a dog_0002.jpg").unlink()
    (samples / "a dog_000003.png").unlink()
    refuses("lacks image 000003, of 'a dog'", find_compbench_images, compbench, CAPTIONS, None)
    refuses("is no folder", find_compbench_images, compbench / "none", CAPTIONS, 2)


LINES = [
    json.dumps({"tag": "single_object", "include": [{"class": c, "count": 1}], "prompt": f"a {c}"})
    for c in ("cat", "dog")
]
WANTED = [parse_prompt(line, "x") for line in LINES]


@pytest.fixture
def geneval(tmp_path: Path) -> Path:
    for place, line in enumerate(LINES):
        folder = tmp_path / f"{place:05d}"
        touch(*(folder / "samples" / f"{i:05d}.png" for i in range(3)), folder / "grid.png")
        (folder / "metadata.jsonl").write_text(line + "\n")
    touch(tmp_path / "generation.json", tmp_path / "plans" / "00000.json")
    return tmp_path


@pytest.mark.parametrize("count", [None, 3])
def test_geneval_images_lie_beside_their_metadata(geneval: Path, count: int | None) -> None:
    items = find_geneval_images(geneval, WANTED, count)
    assert [item.caption for item in items] == [0, 0, 0, 1, 1, 1]
    assert items[4].name == "00001/samples/00001.png" and items[4].path.is_file()


def test_geneval_folders_that_are_not_as_they_should(geneval: Path) -> None:
    refuses(
        "00001 does not belong there: 1 are wanted", find_geneval_images, geneval, WANTED[:1], 3
    )
    refuses(
        "has no folder 00002, of 'a cat'", find_geneval_images, geneval, [*WANTED, WANTED[0]], 3
    )
    refuses("is about 'a cat', but the line", find_geneval_images, geneval, WANTED[::-1], 3)
    refuses("holds 3 of 4 images", find_geneval_images, geneval, WANTED, 4)
    refuses("00002.png does not belong", find_geneval_images, geneval, WANTED, 2)
    (geneval / "00001" / "samples" / "00001.png").unlink()
    refuses("00001/samples holds 2 of 3 images", find_geneval_images, geneval, WANTED, None)
    (geneval / "00001" / "metadata.jsonl").write_text('{"prompt": "a dog"}\n')
    refuses("no line of GenEval's metadata", find_geneval_images, geneval, WANTED, None)
    (geneval / "00001" / "metadata.jsonl").unlink()
    refuses("metadata.jsonl is missing", find_geneval_images, geneval, WANTED, None)


def test_dpg_images_have_the_names_of_the_prompts(tmp_path: Path) -> None:
    touch(*(tmp_path / f"{stem}.png" for stem in ("12", "a_b")))
    assert [item.name for item in find_dpg_images(tmp_path, ["a_b", "12"])] == ["a_b.png", "12.png"]
    refuses("has no image 7.png", find_dpg_images, tmp_path, ["12", "7"])
    refuses("a_b.png does not belong there", find_dpg_images, tmp_path, ["12"])


def test_a_name_that_only_looks_like_a_number(geneval: Path) -> None:
    """Python calls ² a digit, and cannot read it."""
    wanted = find_geneval_images(geneval, WANTED, None)
    (geneval / "²" / "samples").mkdir(parents=True)
    assert find_geneval_images(geneval, WANTED, None) == wanted
