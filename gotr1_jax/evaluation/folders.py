"""The images of a benchmark's folder, held against its captions: all there, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gotr1_jax.errors import InputError
from gotr1_jax.evaluation.geneval_rules import Metadata, parse_metadata

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Item:
    """An image that is to be scored.

    Attributes:
        name: its path within the benchmark's folder.
        path: its file.
        place: of its caption.
    """

    name: str
    path: Path
    place: int


def compbench_items(folder: Path, captions: Sequence[str], count: int | None) -> list[Item]:
    """The images of one category of T2I-CompBench: samples/{caption}_{000000}.png.

    The number counts images over all captions, `count` a caption (None: as many as are there
    of the first). Raises InputError for missing, extra and misnamed images.
    """
    samples = folder / "samples"
    found: dict[int, Path] = {}
    for path in _entries(samples):
        number = re.search(r"_(\d+)\.\w+$", path.name)
        if path.suffix.lower() not in _ENDINGS or number is None:
            raise InputError(f"{path} is no image of T2I-CompBench ({{caption}}_{{000000}}.png)")
        index = int(number.group(1))
        if index in found:
            raise InputError(f"{path} and {found[index].name} have the same number")
        found[index] = path
    if count is None:
        count = _first_count(found, captions)
    wanted = {p * count + i: caption for p, caption in enumerate(captions) for i in range(count)}
    for index, caption in wanted.items():
        if index not in found:
            raise InputError(
                f"{samples} lacks image {index:06d}, of {caption!r}: it holds {len(found)} of "
                f"{len(wanted)} ({count} a caption)"
            )
    for index, caption in wanted.items():
        if found[index].name.split("_")[0] != caption:
            raise InputError(
                f"{found[index]} is at the place of {caption!r}; are these other captions?"
            )
    _refuse_extra((found[index] for index in sorted(found.keys() - wanted.keys())), len(wanted))
    return [Item(f"samples/{found[i].name}", found[i], i // count) for i in wanted]


def geneval_items(folder: Path, wanted: Sequence[Metadata], count: int | None) -> list[Item]:
    """GenEval's images: {00000}/samples/{00000}.png beside each line's metadata.jsonl.

    `count` as for `compbench_items`. Raises InputError for missing and extra images or folders
    and for a folder whose metadata is that of another line.
    """
    folders = {int(f.name): f for f in _entries(folder) if f.is_dir() and f.name.isdigit()}
    items: list[Item] = []
    for place, metadata in enumerate(wanted):
        if place not in folders:
            raise InputError(f"{folder} has no folder {place:05d}, of {metadata.prompt!r}")
        _check_metadata(folders[place] / "metadata.jsonl", metadata)
        images = _entries(folders[place] / "samples")
        count = len(images) if count is None else count
        names = {f"{index:05d}.png": index for index in range(count)}
        _refuse_extra([path for path in images if path.name not in names], count)
        if len(images) < count or not count:
            raise InputError(
                f"{folders[place] / 'samples'} holds {len(images)} of {count or 'its'} images"
            )
        items += [
            Item(path.relative_to(folder).as_posix(), path, place)
            for path in sorted(images, key=lambda path: names[path.name])
        ]
    _refuse_extra([f for place, f in sorted(folders.items()) if place >= len(wanted)], len(wanted))
    return items


def dpg_items(folder: Path, stems: Sequence[str]) -> list[Item]:
    """DPG-Bench's images: one {stem}.png for each prompt file; InputError as above."""
    found: Mapping[str, Path] = {path.stem: path for path in _entries(folder)}
    for stem in stems:
        if stem not in found:
            raise InputError(f"{folder} has no image {stem}.png")
    extra = (path for stem, path in sorted(found.items()) if stem not in set(stems))
    _refuse_extra(extra, len(stems))
    return [Item(found[stem].name, found[stem], place) for place, stem in enumerate(stems)]


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, by name; hidden files apart."""
    if not folder.is_dir():
        raise InputError(f"there are no images: {folder} is no folder")
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _first_count(found: Mapping[int, Path], captions: Sequence[str]) -> int:
    """Images a caption: those of the first one, up to where the second one's begin."""
    second = next((c for c in captions if c != captions[0]), None)
    ahead = [i for i, path in found.items() if path.name.split("_")[0] == second]
    if not ahead:
        return max(1, -(-len(found) // len(captions)))
    return max(1, min(ahead) // captions.index(second or captions[0]))


def _check_metadata(path: Path, wanted: Metadata) -> None:
    if not path.is_file():
        raise InputError(f"{path} is missing; GenEval's images lie beside their metadata")
    found = parse_metadata(path.read_text(encoding="utf-8").strip(), str(path))
    if found != wanted:
        raise InputError(
            f"{path} is about {found.prompt!r}, but the line of --prompts about {wanted.prompt!r}"
        )


def _refuse_extra(extra: Iterable[Path], wanted: int) -> None:
    first = next(iter(extra), None)
    if first is not None:
        raise InputError(f"{first} does not belong there: {wanted} are wanted; move it away")
