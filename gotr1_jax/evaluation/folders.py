"""The image folders of the benchmarks, checked against the captions: complete, nothing extra."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gotr1_jax.errors import InputError
from gotr1_jax.evaluation.geneval_rules import GenevalPrompt, parse_prompt
from gotr1_jax.io.reading import is_stray_file, list_folder, read_json_object, read_text
from gotr1_jax.rewards.multimodal.words import is_digits

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class BenchmarkImage:
    """An image to score.

    Attributes:
        name: its path within the benchmark's folder.
        path: its file.
        caption: index of its caption.
    """

    name: str
    path: Path
    caption: int


def find_compbench_images(
    folder: Path, captions: Sequence[str], count: int | None
) -> list[BenchmarkImage]:
    """The images of one category of T2I-CompBench: samples/{caption}_{000000}.png.

    The number counts images over all captions, `count` those of one caption (None: as many as
    the first caption has). Raises InputError for missing, extra and misnamed images.
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
                f"{found[index]} has the number of {caption!r}; are these other captions?"
            )
    _refuse_extra((found[index] for index in sorted(found.keys() - wanted.keys())), len(wanted))
    return [BenchmarkImage(f"samples/{found[i].name}", found[i], i // count) for i in wanted]


def find_geneval_images(
    folder: Path, wanted: Sequence[GenevalPrompt], count: int | None
) -> list[BenchmarkImage]:
    """GenEval's images: {00000}/samples/{00000}.png next to each line's metadata.jsonl.

    `count` as for `find_compbench_images`. Raises InputError for missing and extra images or
    folders, and for a folder whose metadata is of another line.
    """
    folders = {int(f.name): f for f in _entries(folder) if f.is_dir() and is_digits(f.name)}
    items: list[BenchmarkImage] = []
    for index, metadata in enumerate(wanted):
        if index not in folders:
            raise InputError(f"{folder} has no folder {index:05d}, of {metadata.prompt!r}")
        _check_metadata(folders[index] / "metadata.jsonl", metadata)
        images = _entries(folders[index] / "samples")
        count = len(images) if count is None else count
        names = {f"{i:05d}.png": i for i in range(count)}
        _refuse_extra([path for path in images if path.name not in names], count)
        if len(images) < count or not count:
            raise InputError(
                f"{folders[index] / 'samples'} holds {len(images)} of {count or 'its'} images"
            )
        items += [
            BenchmarkImage(path.relative_to(folder).as_posix(), path, index)
            for path in sorted(images, key=lambda path: names[path.name])
        ]
    extra = [folder for index, folder in sorted(folders.items()) if index >= len(wanted)]
    _refuse_extra(extra, len(wanted))
    return items


def find_dpg_images(folder: Path, stems: Sequence[str]) -> list[BenchmarkImage]:
    """DPG-Bench's images: one {stem}.png for each prompt file; InputError as above."""
    found: Mapping[str, Path] = {path.stem: path for path in _entries(folder)}
    for stem in stems:
        if stem not in found:
            raise InputError(f"{folder} has no image {stem}.png")
    extra = (path for stem, path in sorted(found.items()) if stem not in set(stems))
    _refuse_extra(extra, len(stems))
    return [BenchmarkImage(found[stem].name, found[stem], i) for i, stem in enumerate(stems)]


def find_numbered_images(
    folder: Path, stems: Sequence[str], captions: Sequence[str], count: int | None
) -> list[BenchmarkImage]:
    """The images of captions: {00000}/image_{00}.png as `gotr1 generate` writes them, or files.

    Files may lie in any folder below, named by the caption's stem: {stem}.png, {stem}-0.png,
    {stem}_0.png. `count` as for `find_compbench_images`. Raises InputError for missing and extra
    images, and for folders of other captions.
    """
    entries = _entries(folder)
    places = {i: f for f in entries if f.is_dir() and is_digits(f.name) for i in [int(f.name)]}
    if places and all((f / "result.json").is_file() for f in places.values()):
        found = _images_by_folder(folder, places, captions)
    else:
        found = _images_by_stem(folder, stems)
    if count is None:
        count = max(1, len(found[0]))
    items = []
    for index, paths in enumerate(found):
        if len(paths) != count:
            raise InputError(
                f"{folder} holds {len(paths)} of {count} images of {captions[index][:80]!r} "
                f"({stems[index]})"
            )
        items += [BenchmarkImage(p.relative_to(folder).as_posix(), p, index) for p in paths]
    return items


def _images_by_folder(
    folder: Path, places: Mapping[int, Path], captions: Sequence[str]
) -> list[list[Path]]:
    for index, caption in enumerate(captions):
        if index not in places:
            raise InputError(f"{folder} has no folder {index:05d}, of {caption[:80]!r}")
        prompt = read_json_object(places[index] / "result.json").get("prompt")
        if prompt != caption:
            raise InputError(
                f"{places[index]} is of {str(prompt)[:80]!r}, but the questions are about "
                f"{caption[:80]!r}; are these other captions?"
            )
    _refuse_extra((f for i, f in sorted(places.items()) if i >= len(captions)), len(captions))
    names = (sorted(places[i].glob("image_[0-9]*.png")) for i in range(len(captions)))
    return [list(paths) for paths in names]


def _images_by_stem(folder: Path, stems: Sequence[str]) -> list[list[Path]]:
    index = {stem: i for i, stem in enumerate(stems)}
    found: list[list[tuple[int, Path]]] = [[] for _ in stems]
    files = (p for p in folder.rglob("*") if not is_stray_file(p))
    for path in sorted(p for p in files if p.suffix.lower() in _ENDINGS):
        stem, _, number = path.stem.replace("-", "_").rpartition("_")
        original = path.stem[: len(stem)]
        if path.stem in index:
            found[index[path.stem]].append((-1, path))
        elif original in index and is_digits(number):
            found[index[original]].append((int(number), path))
        else:
            raise InputError(
                f"{path} is of no caption: no {stems[0]}.png, {stems[0]}_0.png or the like"
            )
    return [[path for _, path in sorted(paths)] for paths in found]


def _entries(folder: Path) -> list[Path]:
    """The entries of a folder, sorted by name, without files that are no data."""
    if not folder.is_dir():
        raise InputError(f"there are no images: {folder} is no folder")
    return list_folder(folder, "images")


def _first_count(found: Mapping[int, Path], captions: Sequence[str]) -> int:
    """Images a caption: those of the first one, up to where the second one's begin."""
    second = next((c for c in captions if c != captions[0]), None)
    ahead = [i for i, path in found.items() if path.name.split("_")[0] == second]
    if not ahead:
        return max(1, -(-len(found) // len(captions)))
    return max(1, min(ahead) // captions.index(second or captions[0]))


def _check_metadata(path: Path, wanted: GenevalPrompt) -> None:
    if not path.is_file():
        raise InputError(f"{path} is missing; GenEval's images need their metadata file")
    found = parse_prompt(read_text(path, "metadata").strip(), str(path))
    if found != wanted:
        raise InputError(
            f"{path} is about {found.prompt!r}, but the line of --prompts about {wanted.prompt!r}"
        )


def _refuse_extra(extra: Iterable[Path], wanted: int) -> None:
    first = next(iter(extra), None)
    if first is not None:
        raise InputError(f"{first} does not belong there: {wanted} are wanted; move it away")
